"""What the expansions share: polynomials, constants of a value's type, signs."""

from __future__ import annotations

from typing import Final

from tilewright.errors import IRError
from tilewright.ir.dtypes import F32, F64, I32, I64
from tilewright.ir.loops import LoopBuilder, Value

# Adding 1.5 * 2**(mantissa bits) rounds to the nearest integer and leaves that integer in the low bits.
MAGIC32: Final = 1.5 * 2.0**23
MAGIC64: Final = 1.5 * 2.0**52
ONE: Final = 0x3F800000  # the bits of 1.0
SIGN: Final = -(1 << 31)
SIGN64: Final = -(1 << 63)
# ln 2 in two parts: the first has 10 bits, so that its product with an exponent is exact without a fused multiply-add.
LN2_HIGH: Final = 0.693359375
LN2_LOW: Final = -2.12194440054690583e-4


def horner(b: LoopBuilder, x: Value, coefficients: tuple[float, ...]) -> Value:
    """c[0] + c[1] x + ..., from the highest degree down."""
    total = like(b, coefficients[-1], x)
    for c in coefficients[-2::-1]:
        total = b.fma(total, x, c)
    return total


def like(b: LoopBuilder, number: float, x: Value) -> Value:
    """A constant of the type of x."""
    return b.const(number, x.type.dtype, x.type.lanes)


def require_f32(x: Value, name: str) -> None:
    """Raises IRError for other dtypes: there are no other forms."""
    if x.type.dtype is not F32:
        raise IRError(f"{name} is expanded for f32, not for {x.type}", step="cast to f32 around it")


def with_sign_of(b: LoopBuilder, magnitude: Value, x: Value) -> Value:
    """|magnitude| with x's sign, where magnitude is not negative. Both are f32 or both f64."""
    bits, mask = (I64, SIGN64) if x.type.dtype is F64 else (I32, SIGN)
    sign = b.and_(b.bitcast(x, bits), mask)
    return b.bitcast(b.or_(b.bitcast(magnitude, bits), sign), x.type.dtype)
