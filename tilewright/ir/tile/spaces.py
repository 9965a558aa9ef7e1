"""Sums over a kernel's iteration space: what a term counts at one point, and the exact sum over all points by
enumeration.

A `Term` is a product of factors under a path of loops and conditions. Its loops fall into groups that no bound,
condition or factor ties together; the sum is the product of the groups' sums, so only loops that belong together are
walked together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from tilewright.errors import IRError
from tilewright.ir.dims import Atom, Expr, ceildiv, floordiv, maximum, minimum
from tilewright.ir.tile.base import Array

Values: TypeAlias = Mapping[str, Any]  # integers, or int64 arrays with one entry a point


@dataclass(frozen=True, slots=True)
class Loop:
    """A symbol that takes lo, lo + step, ... below hi."""

    name: str
    lo: Expr
    hi: Expr
    step: int

    @property
    def span(self) -> Expr:
        """hi - lo, but never negative."""
        gap = self.hi - self.lo
        low, _ = gap.interval({})
        return gap if low is not None and low >= 0 else maximum(gap, 0)

    @property
    def trips(self) -> Expr:
        return ceildiv(self.span, self.step)


@dataclass(frozen=True, slots=True)
class Relation:
    """What a symbol means that is 1 where a comparison holds and 0 where it does not."""

    a: Expr
    relation: str
    b: Expr


@dataclass(frozen=True, slots=True)
class Datum:
    """What a symbol means that is an integer in memory: element `address` of a buffer."""

    buffer: int
    address: Expr


@dataclass(frozen=True, slots=True)
class Condition:
    """A branch on the path: the value is nonzero (or zero, for `otherwise`)."""

    value: Expr
    holds: bool


@dataclass(frozen=True, slots=True)
class Clip:
    """The coordinates of start, start + 1, ... (extent of them) that lie at or above every low and below every high."""

    start: Expr
    extent: int
    lows: tuple[Expr, ...]
    highs: tuple[Expr, ...]

    @property
    def first(self) -> Expr:
        return reduce(maximum, self.lows, self.start)

    @property
    def end(self) -> Expr:
        return reduce(minimum, self.highs, self.start + self.extent)

    @property
    def count(self) -> Expr:
        return maximum(self.end - self.first, 0)


@dataclass(frozen=True, slots=True)
class PageSpan:
    """How many pages the clipped coordinates c touch, at positions shift + scale * c of the paged axis."""

    clip: Clip
    page: int
    scale: int
    shift: Expr

    @property
    def count(self) -> Expr:
        first = floordiv(self.shift + self.clip.first * self.scale, self.page)
        last = floordiv(self.shift + (self.clip.end - 1) * self.scale, self.page)
        # steps wider than a page touch one page each
        return maximum(minimum(last - first + 1, self.clip.count), 0)


Factor: TypeAlias = Clip | PageSpan
Part: TypeAlias = Loop | Condition | Factor


@dataclass(frozen=True, slots=True)
class Term:
    """scale * the sum over the path of the product of the factors' counts."""

    path: tuple[Loop | Condition, ...]
    factors: tuple[Factor, ...]
    scale: int

    @property
    def loops(self) -> list[Loop]:
        return [p for p in self.path if isinstance(p, Loop)]


@dataclass(slots=True)
class Symbols:
    """The symbols of a kernel's index values that are not its dims; their names start with a prefix that no dim has."""

    prefix: str
    loops: dict[str, Loop] = field(default_factory=dict)
    relations: dict[str, Relation] = field(default_factory=dict)
    data: dict[str, Datum] = field(default_factory=dict)

    def fresh(self) -> str:
        return f"{self.prefix}{len(self.loops) + len(self.relations) + len(self.data)}"

    def reached(self, exprs: Iterable[Expr]) -> frozenset[str]:
        """The symbols that expressions depend on, through comparisons and addresses."""
        found: set[str] = set()
        pending = list(exprs)
        while pending:
            for name in pending.pop().symbols - found:
                found.add(name)
                if name in self.relations:
                    pending += [self.relations[name].a, self.relations[name].b]
                elif name in self.data:
                    pending.append(self.data[name].address)
        return frozenset(found)

    def variables(self, *exprs: Expr) -> frozenset[str]:
        """The loops that expressions depend on."""
        return self.reached(exprs) & self.loops.keys()

    def depends_on_data(self, *exprs: Expr) -> bool:
        return not self.reached(exprs).isdisjoint(self.data)


def exprs_of(part: Part) -> tuple[Expr, ...]:
    """The expressions in a part of a term."""
    match part:
        case Loop():
            return (part.lo, part.hi)
        case Condition():
            return (part.value,)
        case Clip():
            return (part.start, *part.lows, *part.highs)
        case PageSpan():
            return (part.shift, *exprs_of(part.clip))


def groups(term: Term, symbols: Symbols) -> list[Term]:
    """The term as a product of terms without common loops; the first has the scale and what depends on no loop."""
    parts = [*term.path, *term.factors]
    touched = [symbols.variables(*exprs_of(p)) | ({p.name} if isinstance(p, Loop) else frozenset()) for p in parts]
    group_of = {loop.name: number for number, loop in enumerate(term.loops)}
    for names in touched:
        tied = {group_of[name] for name in names}
        group_of = {name: min(tied) if group in tied else group for name, group in group_of.items()}
    result = []
    for group in (None, *sorted(set(group_of.values()))):
        chosen = [p for p, names in zip(parts, touched, strict=True) if _group(names, group_of) == group]
        path = tuple(p for p in chosen if isinstance(p, (Loop, Condition)))
        factors = tuple(p for p in chosen if isinstance(p, (Clip, PageSpan)))
        result.append(Term(path, factors, term.scale if group is None else 1))
    return result


def _group(names: frozenset[str], group_of: Mapping[str, int]) -> int | None:
    return group_of[next(iter(names))] if names else None


class Enumeration:
    """Exact sums at given dims, and where terms depend on data, with the integers in memory.

    buffers: the kernel's buffers by number; only those that index are looked at.
    """

    def __init__(self, symbols: Symbols, dims: Mapping[str, int], buffers: Sequence[Array] | None = None) -> None:
        self.symbols, self.dims = symbols, dims
        self.flat = [b.reshape(-1) for b in buffers] if buffers is not None else []

    def sum(self, term: Term) -> int:
        """The term's value."""
        total = 1
        for part in groups(term, self.symbols):
            if not total:
                break
            total *= self._group(part)
        return total

    def _group(self, term: Term) -> int:
        """Walks all points of a group of loops at once, as arrays with one entry a point."""
        points: dict[str, Any] = dict(self.dims)
        size = 1
        for part in term.path:
            if isinstance(part, Loop):
                lo, hi = (np.broadcast_to(self.value(e, points), (size,)) for e in (part.lo, part.hi))
                trips = np.maximum(0, -((lo - hi) // part.step))
                parent = np.repeat(np.arange(size), trips)
                nth = np.arange(parent.size) - np.repeat(np.cumsum(trips) - trips, trips)
                points = {n: v[parent] if isinstance(v, np.ndarray) else v for n, v in points.items()}
                points[part.name] = lo[parent] + nth * part.step
                size = parent.size
            else:
                kept = np.broadcast_to((self.value(part.value, points) != 0) == part.holds, (size,))
                points = {n: v[kept] if isinstance(v, np.ndarray) else v for n, v in points.items()}
                size = int(kept.sum())
        product = np.ones(size, np.int64)
        for factor in term.factors:
            product = product * self.value(factor.count, points)
        return int(product.sum()) * term.scale

    def value(self, expr: Expr, points: Values) -> Any:
        """An expression at every point."""
        total: Any = 0
        for monomial, coefficient in expr.terms:
            part: Any = coefficient
            for atom in monomial:
                part = part * self._atom(atom, points)
            total = total + part
        return total

    def _atom(self, atom: Atom, points: Values) -> Any:
        if atom.args:
            a, b = (self.value(arg, points) for arg in atom.args)
            return _FUNCTIONS[atom.name](a, b)
        if atom.name in points:
            return points[atom.name]
        if atom.name in self.symbols.relations:
            relation = self.symbols.relations[atom.name]
            holds = _RELATIONS[relation.relation](self.value(relation.a, points), self.value(relation.b, points))
            return np.asarray(holds).astype(np.int64)
        datum = self.symbols.data[atom.name]
        if not self.flat:
            raise IRError(
                "this count depends on integers in memory and has no bound", step="give the kernel's buffers to at()"
            )
        source = self.flat[datum.buffer]
        # a lane that a condition rules out may point anywhere
        address = np.clip(self.value(datum.address, points), 0, max(source.size - 1, 0))
        return source[address].astype(np.int64) if source.size else np.zeros_like(address)


_FUNCTIONS = {"floordiv": np.floor_divide, "mod": np.mod, "min": np.minimum, "max": np.maximum}
_RELATIONS = {"<": np.less, "<=": np.less_equal, "==": np.equal, "!=": np.not_equal}
