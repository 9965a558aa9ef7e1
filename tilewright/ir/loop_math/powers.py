"""pow and rsqrt."""

from __future__ import annotations

import math
from typing import Final

from tilewright.ir.dtypes import F32, F64, I32, I64
from tilewright.ir.loop_math import tables
from tilewright.ir.loop_math.evaluation import MAGIC64, SIGN, horner, like, require_f32
from tilewright.ir.loops import LoopBuilder, Value

_ROOT_HALF: Final = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2) in f64


def rsqrt(b: LoopBuilder, x: Value) -> Value:
    """1 / sqrt(x), f32 or f64, each step correctly rounded."""
    return b.div(like(b, 1.0, x), b.sqrt(x))


def _log2_wide(b: LoopBuilder, x: Value) -> Value:
    """log2 of a f64 that is positive; -inf at 0, inf and NaN as they are."""
    bits = b.bitcast(x, I64)
    e = b.shr(b.sub(bits, _ROOT_HALF), 52)
    m = b.bitcast(b.sub(bits, b.shl(e, 52)), F64)
    s = b.div(b.sub(m, 1.0), b.add(m, 1.0))
    result = b.fma(horner(b, b.mul(s, s), tables.LOG2_ATANH), s, b.cast(b.cast(e, I32), F64))
    result = b.select(b.compare("eq", x, 0.0), like(b, -math.inf, x), result)
    return b.select(b.compare("lt", x, math.inf), result, x)


def pow(b: LoopBuilder, x: Value, y: Value) -> Value:
    """x**y as C and torch define it, 2**(y log2 |x|) with the product in f64."""
    require_f32(x, "pow")
    require_f32(y, "pow")
    wide_y = b.cast(y, F64)
    logarithm = _log2_wide(b, b.cast(b.abs(x), F64))
    product = b.select(b.compare("eq", logarithm, 0.0), like(b, 0.0, wide_y), b.mul(wide_y, logarithm))
    product = b.max(like(b, -151.0, product), b.min(like(b, 129.0, product), product))
    shifted = b.add(product, MAGIC64)
    n = b.sub(shifted, MAGIC64)
    r = b.cast(b.sub(product, n), F32)
    result = b.scale(b.fma(horner(b, r, tables.EXP2), r, 1.0), b.cast(n, F32))
    # A negative base: a sign for odd exponents, NaN for finite bases with exponents that are no integers.
    half = b.mul(y, 0.5)
    whole = b.compare("eq", b.trunc(y), y)
    odd = b.and_(whole, b.compare("ne", b.trunc(half), half))
    sign = b.select(odd, b.and_(b.bitcast(x, I32), SIGN), 0)
    result = b.bitcast(b.xor(b.bitcast(result, I32), sign), F32)
    negative = b.and_(b.compare("lt", x, 0.0), b.compare("gt", x, -math.inf))
    undefined = b.and_(negative, b.not_(whole))
    undefined = b.or_(undefined, b.or_(b.is_nan(x), b.is_nan(y)))
    one = b.or_(b.compare("eq", x, 1.0), b.compare("eq", y, 0.0))
    return b.select(one, like(b, 1.0, x), b.select(undefined, like(b, math.nan, x), result))
