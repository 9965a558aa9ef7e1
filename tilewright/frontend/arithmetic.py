"""What torch's symbolic numbers come to at given sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NoNumberError(ArithmeticError):
    """An expression has no value at these sizes: it divides by zero, or takes the root of a negative number."""


def evaluated(expr: Any, sizes: Mapping[Any, int]) -> int | float | bool:
    """A sympy expression of an exporter's symbols at given sizes. Raises NoNumberError."""
    from torch.utils._sympy import interp
    from torch.utils._sympy.reference import PythonReferenceAnalysis

    said = interp.log.disabled
    # that an expression has no value here is an answer, and torch would print it
    interp.log.disabled = True
    try:
        number = interp.sympy_interp(PythonReferenceAnalysis, dict(sizes), expr)
    except (ArithmeticError, ValueError) as fault:
        raise NoNumberError(f"{expr} has no value: {fault}") from fault
    finally:
        interp.log.disabled = said
    if isinstance(number, complex):
        raise NoNumberError(f"{expr} has no real value")
    found: int | float | bool = number
    return found
