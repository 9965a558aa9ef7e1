"""What a capture relied on between sizes: proved over the declared ranges, or a guard of every call, or an error now.

Nothing is left out. A relation that a narrower range of one dim settles is an error that prints that range; one with
holes in it (multiples, `t != 4`, equal dims) is checked at every call; one that the dim expressions cannot say is an
error as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tilewright.errors import Problem, SpecialisationError
from tilewright.frontend.captured import Guard, Relation
from tilewright.frontend.proving import at_most
from tilewright.frontend.symbols import Symbols, UnknownSizeError, line_of
from tilewright.ir.dims import Dim, DimSpace, Expr, exact_div

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


@dataclass(frozen=True)
class Fact:
    """Something about sizes that the trace took for granted. guard: the same as a guard, where that can be said."""

    text: str
    dims: tuple[Dim, ...]
    holds: Callable[[Mapping[str, int]], bool]
    tried: int
    guard: Guard | None
    where: str | None

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
    elif not expr.is_Boolean or expr.args:
        yield expr


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
    from torch.utils._sympy.interp import sympy_interp
    from torch.utils._sympy.reference import PythonReferenceAnalysis

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
            return bool(sympy_interp(PythonReferenceAnalysis, given, expr))
        except ZeroDivisionError:
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


def settled(facts: Iterable[Fact], space: DimSpace, own: Mapping[str, int]) -> tuple[Guard, ...]:
    """The guards that every call is held to. own: the sizes of the user's example.

    SpecialisationError lists the facts that the example breaks, that a narrower range of a dim would settle, or that no
    guard can say.
    """
    guards: dict[str, Guard] = {}
    narrowed: dict[str, tuple[int, int]] = {}
    faults: dict[str, Problem] = {}
    steps: dict[str, str] = {}
    for fact in {f.text: f for f in facts}.values():
        admitted = _admitted(fact)
        if admitted is not None and len(admitted) == math.prod(_count(d) for d in fact.dims):
            continue
        if not fact.holds(own):
            shown = ", ".join(f"{d.name} = {own[d.name]}" for d in fact.dims)
            faults[fact.text] = Problem(f"the capture holds for {fact.text} only, not for {shown}", where=fact.where)
            steps.setdefault("", "change the line that decides by this size, or leave the dim out of dims")
            continue
        run = None
        if admitted is not None and len(fact.dims) == 1:
            run = _run([sizes[0] for sizes in admitted], own[fact.dims[0].name])
        whole = run is not None and admitted is not None and run[1] - run[0] + 1 == len(admitted)
        if fact.guard is not None and not whole:
            guards.setdefault(fact.text, fact.guard)
        elif run is not None:
            dim = fact.dims[0]
            low, high = narrowed.get(dim.name, (dim.min, _top(dim)))
            narrowed[dim.name] = max(low, run[0]), min(high, run[1])
            faults.setdefault(dim.name, Problem("", where=fact.where))
        else:
            names = " and ".join(d.name for d in fact.dims)
            faults[fact.text] = Problem(
                f"the model decides by {fact.text}, which no check of a call can say", where=fact.where
            )
            steps.setdefault(names, f"leave {names} out of dims, or declare ranges small enough to be tried out")
    for name, (low, high) in narrowed.items():
        dim = space.dims[name]
        text = f"{name} is declared {dim}, the model admits {low}..{high}"
        faults[name] = Problem(text, where=faults[name].where)
        steps[name] = f'declare tw.Dim("{name}", {low}, {high})'
    if faults:
        step = ", ".join(steps[key] for key in sorted(steps, reverse=True))
        raise SpecialisationError(
            list(faults.values()), step=f"{step}; or change the line that decides" if narrowed else step
        )
    return tuple(guards.values())


def _count(dim: Dim) -> float:
    return math.inf if dim.max is None else dim.max - dim.min + 1


def _top(dim: Dim) -> int:
    return dim.min if dim.max is None else dim.max


def _admitted(fact: Fact) -> list[tuple[int, ...]] | None:
    """The sizes of the fact's dims for which it holds; None where there are too many to try."""
    if math.prod(_count(d) for d in fact.dims) > fact.tried:
        return None
    names = [d.name for d in fact.dims]
    sizes = itertools.product(*(range(d.min, _top(d) + 1) for d in fact.dims))
    return [at for at in sizes if fact.holds(dict(zip(names, at, strict=True)))]


def _run(admitted: list[int], own: int) -> tuple[int, int]:
    """The longest stretch of admitted sizes around the example's."""
    known = set(admitted)
    low = high = own
    while low - 1 in known:
        low -= 1
    while high + 1 in known:
        high += 1
    return low, high
