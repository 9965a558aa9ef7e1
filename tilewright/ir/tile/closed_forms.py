"""Closed forms of sums over an iteration space, where it is rectangular; None where only enumeration is exact.

The rules, each exact for every size (0 and non-multiples too):
- a clip that never clips is its extent;
- a loop that nothing depends on counts its trips;
- a clip whose start moves with one loop by exactly its extent tiles an interval: it counts the interval's overlap;
- a loop over chunks with a loop inside each chunk is one loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from tilewright.ir.dims import Atom, DimSpace, Expr, ceildiv, exact_div, floordiv, maximum, minimum, product
from tilewright.ir.tile.spaces import Clip, Factor, Loop, PageSpan, Symbols, Term, exprs_of, groups

SIZES = DimSpace()  # dims are 0 or more; kernels declare no other bounds


def closed_form(term: Term, symbols: Symbols) -> Expr | None:
    """The sum of a term as an expression over dims; None where no rule applies."""
    return _product(term, symbols, distinct=False)


def closed_distinct(term: Term, symbols: Symbols) -> Expr | None:
    """The same without repeats: loops that no factor depends on count once (and are taken to run)."""
    return _product(term, symbols, distinct=True)


def _product(term: Term, symbols: Symbols, *, distinct: bool) -> Expr | None:
    if symbols.depends_on_data(*(e for p in (*term.path, *term.factors) for e in exprs_of(p))):
        return None
    names = {loop.name for loop in term.loops}
    factors = tuple(f if distinct and _moves(f, names) else _settled(f, term.loops) for f in term.factors)
    settled = _merge_chunks(replace(term, factors=factors), symbols)
    parts = []
    for group in groups(settled, symbols):
        if distinct and group.loops and not group.factors:
            continue
        part = _group(group)
        if part is None:
            return None
        parts.append(part)
    return product(parts)


def _group(group: Term) -> Expr | None:
    loops = group.loops
    if len(loops) != len(group.path) or len(loops) > 1:
        return None
    if not loops:
        return product([group.scale, *(_constant(f) for f in group.factors)])
    if not group.factors:
        return loops[0].trips
    if len(group.factors) > 1:
        return None
    factor = group.factors[0]
    return _tiled(factor, loops[0]) if isinstance(factor, Clip) else _tiled_pages(factor, loops[0])


def _constant(factor: Factor) -> Expr:
    if isinstance(factor, PageSpan):
        return factor.count
    return _overlap(factor.start, factor.start + factor.extent, factor)


# --- one loop and one clip --------------------------------------------------------------------------------------------


def _tiled(clip: Clip, loop: Loop) -> Expr | None:
    """The sum of a clip whose blocks lie end to end along a loop."""
    begin = clip.start.substitute({loop.name: loop.lo})
    rate = exact_div(clip.start - clip.start.substitute({loop.name: 0}), loop.name)
    if rate is None or rate.constant is None or rate.constant * loop.step != clip.extent:
        return None
    if any(loop.name in e.symbols for e in (*clip.lows, *clip.highs)):
        return None
    # the blocks cover at least what the loop spans: an end there needs no min with the last, rounded-up block
    reach = begin + rate * loop.span
    return _overlap(begin, begin + loop.trips * clip.extent, clip, reach)


def _overlap(begin: Expr, end: Expr, clip: Clip, reach: Expr | None = None) -> Expr:
    """The size of the part of begin..end that the clip keeps; the end is known to be at least `reach`."""
    # where a limit lies within reach, the blocks' own end is none
    covered = reach is not None and any(SIZES.compare(high, "<=", reach) for high in clip.highs)
    limits = [*clip.highs] if covered else [end, *clip.highs]
    end = limits.pop(0)
    for high in limits:
        end = high if SIZES.compare(high, "<=", end) else minimum(end, high)
    for low in clip.lows:
        begin = begin if SIZES.compare(low, "<=", begin) else maximum(begin, low)
    size = end - begin
    return size if SIZES.compare(size, ">=", 0) else maximum(size, 0)


def _tiled_pages(span: PageSpan, loop: Loop) -> Expr | None:
    """Pages touched by blocks that start at the sequence's beginning and divide pages, or are whole pages."""
    clip = span.clip
    aligned = span.scale == 1 and span.shift == Expr.of(0) and clip.start.substitute({loop.name: loop.lo}) == Expr.of(0)
    total = _tiled(clip, loop)
    if total is None or not aligned or any(low != Expr.of(0) for low in clip.lows):
        return None
    if clip.extent % span.page == 0:
        return ceildiv(total, span.page)
    return ceildiv(total, clip.extent) if span.page % clip.extent == 0 else None


# --- clips that never clip --------------------------------------------------------------------------------------------


def _moves(factor: Factor, names: set[str]) -> bool:
    """Whether a clip lies elsewhere from one step of a loop to the next: then each step touches other elements."""
    return isinstance(factor, Clip) and not factor.start.symbols.isdisjoint(names)


def _settled(factor: Factor, loops: Sequence[Loop]) -> Factor:
    """A clip without its ends where no point of the loops reaches them."""
    if isinstance(factor, PageSpan):
        return factor
    least, most = _extreme(factor.start, loops, upper=False), _extreme(factor.start, loops, upper=True)
    names = {loop.name for loop in loops}
    if least is None or most is None or any(not e.symbols.isdisjoint(names) for e in (*factor.lows, *factor.highs)):
        return factor
    if all(SIZES.compare(low, "<=", least) for low in factor.lows) and all(
        SIZES.compare(most + factor.extent, "<=", high) for high in factor.highs
    ):
        return Clip(Expr.of(0), factor.extent, (), ())
    return factor


def _extreme(expr: Expr, loops: Sequence[Loop], *, upper: bool) -> Expr | None:
    """The largest or smallest value of an expression over its loops, or something beyond it; None where unknown."""
    names = frozenset(loop.name for loop in loops)
    for loop in reversed(loops):
        if loop.name in expr.symbols:
            blocks = loop.trips
            exact = not any(atom.args for monomial, _ in blocks.terms for atom in monomial)
            last = loop.lo + (blocks - 1) * loop.step if exact else loop.hi - 1
            found = _replaced(expr, _Range(loop.name, loop.lo, last, names), upper=upper)
            if found is None:
                return None
            expr = found
    return expr


class _Range(NamedTuple):
    """A loop's symbol with its ends, and the names of all loops."""

    name: str
    least: Expr
    most: Expr
    loops: frozenset[str]


def _replaced(expr: Expr, of: _Range, *, upper: bool) -> Expr | None:
    """A bound of an expression over one loop's range."""
    total = Expr.of(0)
    for monomial, coefficient in expr.terms:
        part = Expr.of(coefficient)
        moving = [atom for atom in monomial if of.name in _expr(atom).symbols]
        still = [atom for atom in monomial if atom not in moving]
        if moving and (len(moving) > 1 or not all(_is_size(atom, of.loops) for atom in still)):
            return None
        for atom in monomial:
            if atom in moving:
                # everything beside it is 0 or more: the coefficient's sign decides which end counts
                end = _atom_end(atom, of, upper=upper == (coefficient > 0))
                if end is None:
                    return None
                part = part * end
            else:
                part = part * _expr(atom)
        total = total + part
    return total


def _expr(atom: Atom) -> Expr:
    return Expr((((atom,), 1),))


def _is_size(atom: Atom, loops: frozenset[str]) -> bool:
    """Whether an atom is 0 or more for certain: a dim, or a function with that lower bound; not a loop."""
    low, _ = _expr(atom).interval({})
    return low is not None and low >= 0 and _expr(atom).symbols.isdisjoint(loops)


def _atom_end(atom: Atom, of: _Range, *, upper: bool) -> Expr | None:
    if not atom.args:
        return of.most if upper else of.least
    a, b = atom.args
    first = _replaced(a, of, upper=upper)
    if atom.name in ("min", "max"):
        second = _replaced(b, of, upper=upper)
        if first is None or second is None:
            return None
        return minimum(first, second) if atom.name == "min" else maximum(first, second)
    if of.name in b.symbols:
        return None
    if atom.name == "mod":
        return b - 1 if upper else Expr.of(0)
    return None if first is None else floordiv(first, b)


# --- chunks -----------------------------------------------------------------------------------------------------------


def _merge_chunks(term: Term, symbols: Symbols) -> Term:
    """`for c in lo..hi by C: for k in c..min(c + C, hi) by B` visits what `for k in lo..hi by B` does, when B divides
    C."""
    for outer in term.loops:
        users = [
            part
            for part in (*term.path, *term.factors)
            if part is not outer and outer.name in symbols.variables(*exprs_of(part))
        ]
        if len(users) != 1 or not isinstance(users[0], Loop):
            continue
        inner = users[0]
        end = Expr.of(outer.name) + outer.step
        if inner.lo != Expr.of(outer.name) or outer.step % inner.step:
            continue
        if inner.hi == minimum(end, outer.hi):
            merged = Loop(inner.name, outer.lo, outer.hi, inner.step)
        elif inner.hi == end:
            merged = Loop(inner.name, outer.lo, outer.lo + outer.trips * outer.step, inner.step)
        else:
            continue
        path = tuple(merged if part is inner else part for part in term.path if part is not outer)
        return _merge_chunks(replace(term, path=path), symbols)
    return term
