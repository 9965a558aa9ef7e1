"""The remainder of a division of floats, exact for every pair of operands.

x / y may have thousands of binary digits before the point, so the quotient is taken 24 digits at a time, as in long
division: y times a power of two is subtracted a whole number of times. Each such product is exact as the sum of two
products of few digits, whether or not the machine has a fused multiply-add, and so is what is left.
"""

from __future__ import annotations

from typing import Final

from tilewright.errors import IRError
from tilewright.ir.dtypes import F32, F64, I64
from tilewright.ir.loop_math.evaluation import like
from tilewright.ir.loops import LoopBuilder, Value

_DIGITS: Final = 24  # of the quotient in a step
_LOW_BITS: Final = (1 << 27) - 1  # of a mantissa: what remains above has 26 digits
_MANTISSA, _BIAS = 52, 1023
_LEAST_NORMAL: Final = 2.0**-1022
_RAISED = 54  # a subnormal number times 2**54 is normal


def fmod(b: LoopBuilder, x: Value, y: Value) -> Value:
    """x - y * trunc(x / y), with the sign of x, as C's fmod: exact. By 0 and of infinity it is NaN; x by infinity is x.

    x, y: two f32 or two f64; a scalar beside a vector stands for all its lanes.
    """
    if x.type.dtype != y.type.dtype or x.type.dtype not in (F32, F64):
        raise IRError(f"fmod is expanded for two f32 or two f64, not for {x.type} and {y.type}", step="cast around it")
    x, y = b.alike(x, y)
    top, bottom = b.abs(b.cast(x, F64)), b.abs(b.cast(y, F64))
    infinite = like(b, float("inf"), top)
    zero, one = like(b, 0.0, top), like(b, 1.0, top)
    # comparisons with NaN are false
    divides = b.and_(b.compare("lt", top, infinite), b.compare("gt", bottom, zero))
    rest = _long_division(
        b,
        b.select(divides, top, zero),
        b.select(b.and_(divides, b.compare("lt", bottom, infinite)), bottom, one),
        wide=x.type.dtype is F64,
    )
    rest = b.select(b.compare("eq", bottom, infinite), top, rest)
    signed = b.select(b.compare("lt", b.cast(x, F64), zero), b.neg(rest), rest)
    result = b.select(divides, b.cast(signed, x.type.dtype), like(b, float("nan"), x))
    # what is left of -0.0, and of a negative multiple of y, is -0.0, which lt and neg above give the second alone
    return b.select(b.compare("eq", x, like(b, 0.0, x)), b.select(divides, x, result), result)


def _long_division(b: LoopBuilder, x: Value, y: Value, *, wide: bool) -> Value:
    """The remainder of x >= 0 by y > 0, both finite f64. wide: they may be any, otherwise they came from f32."""
    digits = b.sub(_exponent(b, x), _divisor_exponent(b, y) if wide else _exponent(b, y))
    most = b.max(digits if x.type.lanes == 1 else b.reduce("max", digits), 0)
    with b.loop(0, b.add(b.floordiv(most, _DIGITS), 1), 1, [x], name="d") as loop:
        left = b.sub(digits, b.mul(b.add(loop.index, 1), _DIGITS))
        shift = b.max(left, like(b, 0, left))
        rest = _less_multiples(b, loop.carries[0], _scaled(b, y, shift, parts=4 if wide else 1))
        loop.next(rest)
    return loop.results[0]


def _less_multiples(b: LoopBuilder, x: Value, y: Value) -> Value:
    """x less y as often as it goes, at most about 2**25 times."""
    times = b.trunc(b.div(x, y))
    bits = b.bitcast(y, I64)
    high = b.bitcast(b.and_(bits, like(b, ~_LOW_BITS, bits)), F64)
    rest = b.sub(b.sub(x, b.mul(times, high)), b.mul(times, b.sub(y, high)))
    # the rounded quotient may be one too many
    return b.select(b.compare("lt", rest, like(b, 0.0, rest)), b.add(rest, y), rest)


def _exponent(b: LoopBuilder, x: Value) -> Value:
    """floor(log2(x)) of a normal x as i64; of a subnormal one what the least normal number has."""
    bits = b.shr(b.bitcast(x, I64), _integer(b, _MANTISSA, x))
    return b.max(b.sub(bits, _integer(b, _BIAS, x)), _integer(b, 1 - _BIAS, x))


def _divisor_exponent(b: LoopBuilder, y: Value) -> Value:
    """floor(log2(y)), of subnormal numbers, too."""
    raised = b.sub(_exponent(b, b.mul(y, like(b, 2.0**_RAISED, y))), _integer(b, _RAISED, y))
    return b.select(b.compare("lt", y, like(b, _LEAST_NORMAL, y)), raised, _exponent(b, y))


def _scaled(b: LoopBuilder, y: Value, exponent: Value, *, parts: int) -> Value:
    """y * 2**exponent, by a power of two small enough to be a number, or by several."""
    if parts == 1:
        return b.mul(y, _power_of_two(b, exponent))
    half = b.shr(exponent, like(b, 1, exponent))
    return _scaled(b, _scaled(b, y, half, parts=parts // 2), b.sub(exponent, half), parts=parts // 2)


def _power_of_two(b: LoopBuilder, exponent: Value) -> Value:
    """2**exponent as f64, for 0 <= exponent < 1024 in i64."""
    biased = b.add(exponent, like(b, _BIAS, exponent))
    return b.bitcast(b.shl(biased, like(b, _MANTISSA, exponent)), F64)


def _integer(b: LoopBuilder, value: int, x: Value) -> Value:
    """An i64 constant with the lanes of x."""
    return b.const(value, I64, x.type.lanes)
