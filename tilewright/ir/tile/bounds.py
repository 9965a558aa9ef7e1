"""Bounds for counts that depend on integers in memory: lengths, offsets and page numbers are only known to be 0 or
more.

What depends on them is widened: a branch counts as taken, a view's data-dependent end as its declared extent, a loop
up to a data-dependent end as reaching the end of what it indexes. Loops over the segments of one axis together reach
the end of that axis once, because offsets never fall.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import reduce
from itertools import permutations

from tilewright.ir.dims import Atom, Expr, exact_div, floordiv, maximum, minimum
from tilewright.ir.tile.spaces import Clip, Condition, Factor, Loop, PageSpan, Symbols, Term, exprs_of


def bounded(term: Term, symbols: Symbols, limits: Mapping[str, Expr]) -> Term | None:
    """A term without data that is at least as large; None where nothing bounds a loop."""
    term = _joined(term, symbols, limits)
    path: list[Loop | Condition] = []
    for part in term.path:
        if isinstance(part, Loop):
            lo = _end(part.lo, symbols, upper=False)
            hi = _end(part.hi, symbols, upper=True)
            hi = hi if hi is not None else limits.get(part.name)
            if lo is None or hi is None:
                return None
            path.append(replace(part, lo=lo, hi=hi))
        elif not symbols.depends_on_data(part.value):
            path.append(part)
    return Term(tuple(path), tuple(_wider(f, symbols) for f in term.factors), term.scale)


def _joined(term: Term, symbols: Symbols, limits: Mapping[str, Expr]) -> Term:
    """The term with a loop over segments and the loop over a segment's length made one loop over all lengths.

    Segments of n elements in all, walked in steps of `step`, take (n + count * (step - 1)) / step steps at most.
    """
    for inner in term.loops:
        outer = _segments_of(inner, term, symbols)
        total = limits.get(inner.name)
        if outer is None or total is None or not symbols.depends_on_data(inner.hi):
            continue
        more = (outer.span - 1) * (inner.step - 1)
        one = replace(inner, lo=Expr.of(0), hi=total + more)
        path = tuple(one if part is inner else part for part in term.path if part is not outer)
        factors = tuple(_without(f, outer.name, symbols) for f in term.factors)
        return Term(path, factors, term.scale)
    return term


def _segments_of(inner: Loop, term: Term, symbols: Symbols) -> Loop | None:
    """The loop whose coordinate picks the segment that a loop walks: from 0 to offsets[at + 1] - offsets[at]."""
    names = [name for name in inner.hi.symbols if name in symbols.data]
    pairs = [pair for pair in permutations(names, 2) if inner.hi == Expr.of(pair[1]) - pair[0]]
    if len(pairs) != 1 or inner.lo != Expr.of(0):
        return None
    begin, end = (symbols.data[name] for name in pairs[0])
    if begin.buffer != end.buffer or end.address - begin.address != Expr.of(1):
        return None
    for outer in term.loops:
        rest = [part for part in term.path if part not in (inner, outer)]
        tied = any(outer.name in symbols.variables(*exprs_of(part)) for part in rest)
        if outer.step == 1 and not tied and outer.name not in symbols.variables(begin.address - outer.name):
            return outer
    return None


def _without(factor: Factor, name: str, symbols: Symbols) -> Factor:
    """At least as large a factor that does not speak of a coordinate."""
    if isinstance(factor, PageSpan) or name not in symbols.variables(*exprs_of(factor)):
        return factor
    lows = tuple(e for e in factor.lows if name not in symbols.variables(e))
    highs = tuple(e for e in factor.highs if name not in symbols.variables(e))
    if name in symbols.variables(factor.start):
        return Clip(Expr.of(0), factor.extent, (), ())
    return Clip(factor.start, factor.extent, lows, highs)


def limits_of(terms: Iterable[Term], symbols: Symbols) -> dict[str, Expr]:
    """Where loops with a data-dependent end stop indexing anything: the largest end of what their coordinate places."""
    found: dict[str, Expr] = {}
    for term in terms:
        loops = [loop for loop in term.loops if symbols.depends_on_data(loop.hi)]
        clips = [f.clip if isinstance(f, PageSpan) else f for f in term.factors]
        for loop in loops:
            for clip in clips:
                offset = clip.start.substitute({loop.name: 0})
                if exact_div(clip.start - offset, loop.name) != Expr.of(1):
                    continue
                ends = [high for high in clip.highs if not symbols.depends_on_data(high)]
                if ends:
                    end = reduce(minimum, ends) - (0 if symbols.variables(offset) else offset)
                    if not symbols.depends_on_data(end):
                        found[loop.name] = maximum(found[loop.name], end) if loop.name in found else end
    return found


def _wider(factor: Factor, symbols: Symbols) -> Factor:
    if isinstance(factor, PageSpan):
        wider = _wider(factor.clip, symbols)
        # a lane touches one page at most
        return (
            wider
            if symbols.depends_on_data(factor.shift) or not isinstance(wider, Clip)
            else replace(factor, clip=wider)
        )
    lows = tuple(e for e in factor.lows if not symbols.depends_on_data(e))
    highs = tuple(e for e in factor.highs if not symbols.depends_on_data(e))
    start = reduce(maximum, lows, Expr.of(0)) if symbols.depends_on_data(factor.start) else factor.start
    return Clip(start, factor.extent, lows, highs)


def _end(expr: Expr, symbols: Symbols, *, upper: bool) -> Expr | None:
    """The largest or smallest value over all data; None where data has no such bound."""
    if not symbols.depends_on_data(expr):
        return expr
    total = Expr.of(0)
    for monomial, coefficient in _unrounded(expr, symbols, upper=upper).terms:
        part = Expr.of(coefficient)
        for atom in monomial:
            end = _atom_end(atom, symbols, upper=upper == (coefficient > 0))
            if end is None:
                return None
            part = part * end
        total = total + part
    return total


def _unrounded(expr: Expr, symbols: Symbols, *, upper: bool) -> Expr:
    """A bound of the expression in which multiples that data are rounded down to have become the data: what the rest
    of the expression takes away from them is the same data."""
    total = Expr.of(0)
    for monomial, coefficient in expr.terms:
        atom = monomial[0] if len(monomial) == 1 else None
        step = atom.args[1].constant if atom is not None and atom.name == "floordiv" else None
        term = Expr(((monomial, coefficient),))
        if atom is not None and step == coefficient and step > 0 and symbols.depends_on_data(term):
            term = atom.args[0] + (0 if upper else 1 - step)
        total = total + term
    return total


def _atom_end(atom: Atom, symbols: Symbols, *, upper: bool) -> Expr | None:
    itself = Expr((((atom,), 1),))
    if not symbols.depends_on_data(itself):
        return itself
    if not atom.args:
        if atom.name in symbols.relations:
            return Expr.of(int(upper))
        return None if upper else Expr.of(0)
    a, b = (_end(arg, symbols, upper=upper) for arg in atom.args)
    match atom.name:
        case "min":
            known = [e for e in (a, b) if e is not None]
            # one side alone bounds a minimum from above
            return reduce(minimum, known) if len(known) == 2 or (known and upper) else None
        case "max":
            return None if a is None or b is None else maximum(a, b)
        case "mod":
            return (None if b is None else b - 1) if upper else Expr.of(0)
        case _:
            return None if a is None or symbols.depends_on_data(atom.args[1]) else floordiv(a, atom.args[1])
