"""What a capture relied on between sizes: proved over the declared ranges, or a guard of every call, or an error now.

Nothing is left out. A relation that only sizes of 0 and 1 break is tried out at those (`trial`), because models often
branch there to no effect. A relation that a narrower range of one dim settles is an error that prints that range; one
with holes in it (multiples, `t != 4`, equal dims) is checked at every call; one that the dim expressions cannot say is
an error as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tilewright.errors import Problem, SpecialisationError
from tilewright.frontend.arithmetic import NoNumberError, evaluated
from tilewright.frontend.proving import at_most
from tilewright.frontend.symbols import Symbols, UnknownSizeError, line_of
from tilewright.ir.dims import Atom, Dim, DimSpace, Expr, exact_div
from tilewright.ir.guards import Guard, Relation

# So many sizes that break a fact are held against the model one by one.
_DOUBTED: Final = 16
# So many combinations of sizes are tried to prove a relation: a few ms of dim expressions, tens of ms of sympy's.
_TRIED: Final = 16_384
_TRIED_IN_SYMPY: Final = 2_048
_RELATIONS: Final[dict[str, Relation]] = {
    "Equality": "==",
    "Unequality": "!=",
    "LessThan": "<=",
    "StrictLessThan": "<",
    "GreaterThan": "<=",
    "StrictGreaterThan": "<",
}


Sizes: TypeAlias = list[tuple[int, ...]]


@dataclass(frozen=True)
class Fact:
    """Something about sizes that the trace took for granted. guard: the same as a guard, where that can be said."""

    text: str
    dims: tuple[Dim, ...]
    holds: Callable[[Mapping[str, int]], bool]
    tried: int
    guard: Guard | None
    where: str | None

    def refused(self) -> Sizes | None:
        """The declared sizes for which it does not hold; None where they are too many to try, or without end."""
        ranges = [range(d.min, 1 + (self._last(d) if d.max is None else d.max)) for d in self.dims]
        if any(d.max is None for d in self.dims) and (len(self.dims) > 1 or not ranges[0]):
            return None
        if math.prod(map(len, ranges)) > self.tried:
            return None
        names = [d.name for d in self.dims]
        found = [at for at in itertools.product(*ranges) if not self.holds(dict(zip(names, at, strict=True)))]
        endless = any(d.max is None for d in self.dims) and bool(found) and found[-1][0] == ranges[0][-1]
        return None if endless else found

    def _last(self, dim: Dim) -> int:
        """A size of the one dim, which has no upper bound, from which on the answer stays; -1 where none is known."""
        if self.guard is None:
            return -1
        gap = dict((self.guard.right - self.guard.left).terms)
        constant, slope = gap.pop((), 0), gap.pop((Atom(dim.name),), 0)
        # beyond its root a linear gap keeps its sign
        return -1 if gap or not slope else max(dim.min, abs(constant) // abs(slope) + 1)

    @staticmethod
    def of(guard: Guard, space: DimSpace) -> Fact:
        names = sorted(guard.left.symbols | guard.right.symbols)
        dims = tuple(space.dims[name] for name in names)
        return Fact(str(guard), dims, guard.holds, _TRIED, guard, guard.where)


def traced_facts(symbols: Symbols) -> Iterator[Fact]:
    """What torch recorded while it traced, as far as the bounds leave it open."""
    for item in getattr(symbols.shape_env, "guards", ()):
        for part in _conjuncts(item.expr):
            fact = _fact(symbols, part, line_of(item.sloc))
            if fact is not None:
                yield fact


def _conjuncts(expr: Any) -> Iterator[Any]:
    if type(expr).__name__ == "And":
        for part in expr.args:
            yield from _conjuncts(part)
    elif (product := _not_zero(expr)) is not None:
        # each factor by itself may be about small sizes alone, which all of them together are not
        for factor in product.args:
            if not factor.is_number:
                yield type(expr)(factor, 0) if type(expr).__name__ == "Unequality" else factor > 0
    elif not expr.is_Boolean or expr.args:
        yield expr


def _not_zero(expr: Any) -> Any:
    """The product of sizes that a relation says is not 0; None for other relations."""
    kind = type(expr).__name__
    if kind not in ("Unequality", "StrictGreaterThan", "StrictLessThan"):
        return None
    left, right = (expr.rhs, expr.lhs) if kind == "StrictLessThan" else (expr.lhs, expr.rhs)
    found = left if right == 0 else right if left == 0 and kind == "Unequality" else None
    sizes = found is not None and found.is_Mul and all(a.is_Symbol or a.is_positive for a in found.args)
    return found if sizes else None


def _fact(symbols: Symbols, expr: Any, where: str | None) -> Fact | None:
    """One guard of torch; None where the bounds prove it."""
    kind = type(expr).__name__
    if kind == "Or" and any(_fact(symbols, arm, where) is None for arm in expr.args):
        return None
    if kind in _RELATIONS:
        left, right = (expr.rhs, expr.lhs) if "Greater" in kind else (expr.lhs, expr.rhs)
        try:
            guard = Guard(symbols.size(left), _RELATIONS[kind], symbols.size(right), where)
        except UnknownSizeError:
            return _opaque(symbols, expr, where)
        guard = _reduced(symbols.space, guard)
        return None if _proved(symbols.space, guard) else Fact.of(guard, symbols.space)
    return _opaque(symbols, expr, where)


def _opaque(symbols: Symbols, expr: Any, where: str | None) -> Fact:
    """A guard that is no relation of dim expressions (an alternative, floats): torch's own arithmetic decides it."""
    free = sorted(expr.free_symbols, key=str)
    try:
        sizes = {symbol: symbols.size(symbol) for symbol in free}
    except UnknownSizeError as unknown:
        problem = Problem(f"the model decides by {expr}, which depends on the values of tensors", where=where)
        step = "replace what depends on tensor values by tensor arithmetic, or leave dims out"
        raise SpecialisationError(problem, step=step) from unknown

    def holds(values: Mapping[str, int]) -> bool:
        given = {symbol: size.evaluate(values) for symbol, size in sizes.items()}
        try:
            return bool(evaluated(expr, given))
        except NoNumberError:
            return False

    text = str(expr)
    for symbol, size in sizes.items():
        text = text.replace(str(symbol), str(size))
    names = sorted(set().union(*(size.symbols for size in sizes.values())))
    return Fact(text, tuple(symbols.space.dims[n] for n in names), holds, _TRIED_IN_SYMPY, None, where)


def _reduced(space: DimSpace, guard: Guard) -> Guard:
    """An equality or inequality of products without the factors that both sides share and that are never 0."""
    a, b = guard.left, guard.right
    if guard.relation not in ("==", "!=") or not a.terms or not b.terms:
        return guard
    for monomial, coefficient in (*a.terms, *b.terms):
        for factor in (Expr((((), abs(coefficient)),)), *(Expr((((atom,), 1),)) for atom in monomial)):
            left, right = exact_div(a, factor), exact_div(b, factor)
            if left is not None and right is not None and factor.constant != 1 and at_most(space, Expr.of(1), factor):
                return _reduced(space, Guard(left, guard.relation, right, guard.where))
    return guard


def _proved(space: DimSpace, guard: Guard) -> bool:
    a, b = guard.left, guard.right
    match guard.relation:
        case "==":
            return space.compare(a, "==", b) is True
        case "!=":
            return at_most(space, a + 1, b) or at_most(space, b + 1, a)
        case "<=":
            return at_most(space, a, b)
        case _:
            return at_most(space, a + 1, b)


@dataclass(frozen=True)
class Settled:
    """guards: what every call is held to. doubtful: facts that only some sizes of 0 and 1 break, to be tried out."""

    guards: tuple[Guard, ...]
    doubtful: tuple[Fact, ...] = ()


def settled(facts: Iterable[Fact], space: DimSpace, own: Mapping[str, int], *, doubts: bool) -> Settled:
    """Sorts facts into those that hold for all declared sizes, guards, and doubtful ones (where `doubts` are admitted).

    own: the sizes of the user's example. SpecialisationError lists the facts that the example breaks, that a narrower
    range of a dim would settle, or that no guard can say.
    """
    guards: dict[str, Guard] = {}
    doubtful: list[Fact] = []
    narrowed: dict[str, tuple[int, int | None]] = {}
    faults: dict[str, Problem] = {}
    steps: dict[str, str] = {}
    for fact in {f.text: f for f in facts}.values():
        refused = fact.refused()
        if refused is not None and not refused:
            continue
        if doubts and refused is not None and _is_about_small_sizes(fact, refused, own):
            doubtful.append(fact)
            continue
        names = " and ".join(d.name for d in fact.dims)
        if not fact.holds(own):
            shown = ", ".join(f"{d.name} = {own[d.name]}" for d in fact.dims)
            faults[fact.text] = Problem(f"the capture holds for {fact.text} only, not for {shown}", where=fact.where)
            steps.setdefault(f"leave {names} out of dims", "")
            continue
        run = _run(fact, refused, own)
        if fact.guard is not None and (run is None or not run[2]):
            guards.setdefault(fact.text, fact.guard)
        elif run is not None:
            name = fact.dims[0].name
            low, high = narrowed.get(name, (0, None))
            ends = [n for n in (high, run[1]) if n is not None]
            narrowed[name] = max(low, run[0]), min(ends) if ends else None
            faults.setdefault(name, Problem("", where=fact.where))
        else:
            text = f"the model decides by {fact.text}, which no check of a call can say"
            faults[fact.text] = Problem(text, where=fact.where)
            steps.setdefault(f"leave {names} out of dims, or declare ranges small enough to be tried out", "")
    for name, (low, high) in narrowed.items():
        upper = "" if high is None else str(high)
        text = f"{name} is declared {space.dims[name]}, the model admits {low}..{upper}"
        faults[name] = Problem(text, where=faults[name].where)
        steps.setdefault(f'declare tw.Dim("{name}", {", ".join(filter(None, (str(low), upper)))})', "")
    if faults:
        step = ", ".join(steps) + "; or change the line that decides by it"
        raise SpecialisationError(list(faults.values()), step=step)
    return Settled(tuple(guards.values()), tuple(doubtful))


def _is_about_small_sizes(fact: Fact, refused: Sizes, own: Mapping[str, int]) -> bool:
    """Whether only sizes of 0 and 1 break a fact: of the dims, or of an axis whose size is worked out from them."""
    if all(max(sizes) <= 1 for sizes in refused):
        return True
    guard = fact.guard
    # what torch takes for granted of an axis; a branch of the model's own, where the example breaks it, is traced there
    if guard is None or guard.relation != "<=" or guard.left.constant != 2 or len(refused) > _DOUBTED:
        return False
    names = [dim.name for dim in fact.dims]
    least = min(guard.right.evaluate(dict(zip(names, sizes, strict=True))) for sizes in refused)
    return least >= 0 and fact.holds(own)


def _run(fact: Fact, refused: Sizes | None, own: Mapping[str, int]) -> tuple[int, int | None, bool] | None:
    """The sizes of one dim around the example's for which a fact holds, and whether it holds for no others."""
    if refused is None or len(fact.dims) != 1:
        return None
    (dim,) = fact.dims
    size, out = own[dim.name], [n for (n,) in refused]
    low = max((n + 1 for n in out if n < size), default=dim.min)
    high = min((n - 1 for n in out if n > size), default=dim.max)
    above = 0 if high is None or dim.max is None else dim.max - high
    return low, high, len(out) == low - dim.min + above
