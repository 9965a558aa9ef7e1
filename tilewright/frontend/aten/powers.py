"""Powers: of floats by the scalar table, of integers by squaring."""

from __future__ import annotations

import math
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.rounding import rounded_once
from tilewright.frontend.builder import Builder, Weak
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.dims import Expr


@lowers("aten.pow.Tensor_Scalar")
def power(c: Builder, self: SSAValue, exponent: Any) -> SSAValue:
    """Small exponents as torch computes them: products, roots and reciprocals."""
    if isinstance(exponent, (Weak, Expr)):
        return c.map("pow", *c.rounded(self, exponent))
    if math.isfinite(exponent) and exponent == int(exponent) and (c.result.dtype.is_integer or abs(exponent) <= 3):
        return _integer_power(c, self, int(exponent))
    if exponent == 0.5:
        return c.map("sqrt", self)
    if exponent == -0.5:
        return c.map("rsqrt", self)
    return c.map("pow", *c.rounded(self, exponent))


@rounded_once
def _integer_power(c: Builder, base: SSAValue, exponent: int) -> SSAValue:
    if exponent < 0:
        if c.result.dtype.is_integer:
            raise Unsupported("an integer to a negative power")
        return c.map("reciprocal", _integer_power(c, base, -exponent))
    if exponent == 0:
        return c.full(1, c.result.dims, c.result.dtype)
    found, factor = None, c.cast(base, c.result.dtype)
    while exponent:
        if exponent & 1:
            found = factor if found is None else c.map("mul", found, factor)
        exponent >>= 1
        factor = c.map("mul", factor, factor) if exponent else factor
    return factor if found is None else found


@lowers("aten.pow.Tensor_Tensor", "aten.pow.Scalar", "aten.float_power.Tensor_Scalar", "aten.float_power.Tensor_Tensor")
def power_tensor(c: Builder, self: Any, exponent: Any) -> SSAValue:
    if c.result.dtype.is_integer:
        digits = c.operand(exponent, c.result.dtype)
        if self == 2 and not isinstance(self, SSAValue):
            # out of range, a shift gives what such a power is modulo the dtype's range, or below 1: 0
            return c.map("shl", 1, digits)
        return _whole_power(c, c.operand(self, c.result.dtype), digits)
    return c.map("pow", *c.rounded(self, exponent))


def _whole_power(c: Builder, base: SSAValue, exponent: SSAValue) -> SSAValue:
    """Integers to integers, modulo the dtype's range: squared and multiplied by the exponent's digits.

    To a negative power torch gives 0, but 1 for 1 and 1 or -1 for -1. Exponents of more digits than the dtype has only
    occur with results that their low digits decide.
    """
    dtype = c.result.dtype
    found = c.full(1, c.result.dims, dtype)
    factor = base
    digits = dtype.bits - (dtype.kind == "int")
    for digit in range(digits):
        odd = c.map("ne", c.map("and", c.map("shr", exponent, digit), 1), 0, dtype=dtype)
        found = c.select(odd, c.map("mul", found, factor), found, dtype)
        if digit + 1 < digits:
            factor = c.map("mul", factor, factor)
    if dtype.kind == "uint":
        return found
    odd = c.map("ne", c.map("and", exponent, 1), 0, dtype=dtype)
    inverse = c.select(c.map("eq", base, 1, dtype=dtype), 1, 0, dtype)
    sign = c.select(odd, -1, 1, dtype)
    inverse = c.select(c.map("eq", base, -1, dtype=dtype), sign, inverse, dtype)
    return c.select(c.map("lt", exponent, 0, dtype=dtype), inverse, found, dtype)
