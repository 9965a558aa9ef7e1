"""Proves relations between sizes that interval arithmetic alone leaves open: min, max, floordiv and mod taken apart."""

from __future__ import annotations

from tilewright.ir.dims import Atom, DimSpace, Expr

# Each step removes one function; sizes in practice nest a few.
_DEPTH = 12


def at_most(space: DimSpace, a: Expr, b: Expr) -> bool:
    """Whether a <= b is proved for all sizes within bounds."""
    return nonnegative(space, b - a)


def nonnegative(space: DimSpace, value: Expr, depth: int = _DEPTH) -> bool:
    """Whether an expression is proved to be 0 or more for all sizes within bounds."""
    if space.compare(value, ">=", 0) is True:
        return True
    if not depth:
        return False
    return any(
        _without(space, atom, coefficient, value, depth - 1)
        for monomial, coefficient in value.terms
        if len(monomial) == 1 and coefficient in (1, -1)
        for atom in monomial
        if atom.args
    )


def _without(space: DimSpace, atom: Atom, coefficient: int, value: Expr, depth: int) -> bool:
    """nonnegative(value) by what one of its terms, plus or minus a function, is known to lie between."""
    rest = value - Expr((((atom,), coefficient),))
    x, y = atom.args
    positive = coefficient == 1

    def holds(expr: Expr) -> bool:
        return nonnegative(space, expr, depth)

    match atom.name:
        case "min":
            # min(x, y) + rest needs both, rest - min(x, y) either
            return (holds(x + rest) and holds(y + rest)) if positive else (holds(rest - x) or holds(rest - y))
        case "max":
            return (holds(x + rest) or holds(y + rest)) if positive else (holds(rest - x) and holds(rest - y))
        case "floordiv" if y.constant is not None and y.constant > 0:
            k = y.constant
            return holds(x + rest * k) if positive else holds(rest * k + (k - 1) - x)
        case "mod" if y.constant is not None and y.constant > 0:
            return holds(rest) if positive else holds(rest - (y.constant - 1)) or (holds(x) and holds(rest - x))
    return False
