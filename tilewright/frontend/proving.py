"""Relations between sizes that a trace may rely on, over the declared bounds: asked here, proved by `ir.proofs`."""

from __future__ import annotations

from tilewright.ir.dims import DimSpace, Expr
from tilewright.ir.proofs import Assumptions


def at_most(space: DimSpace, a: Expr, b: Expr) -> bool:
    """Whether a <= b is proved for all sizes within bounds."""
    return nonnegative(space, b - a)


def nonnegative(space: DimSpace, value: Expr) -> bool:
    """Whether an expression is proved to be 0 or more for all sizes within bounds."""
    return Assumptions.of(space.bounds).nonnegative(value)
