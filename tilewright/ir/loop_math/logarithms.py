"""log, log1p and softplus."""

from __future__ import annotations

import math
from typing import Final

from tilewright.ir.dtypes import F32, I32
from tilewright.ir.loop_math import tables
from tilewright.ir.loop_math.evaluation import LN2_HIGH, LN2_LOW, ONE, horner, like, require_f32
from tilewright.ir.loop_math.exponentials import exp_up_to
from tilewright.ir.loops import LoopBuilder, Value

_ROOT_HALF: Final = 0x3F3504F3  # the bits of sqrt(1/2)
_LEAST_NORMAL: Final = 2.0**-126


def _log_of(b: LoopBuilder, f: Value, exponent: Value) -> Value:
    """log(1 + f) + exponent * ln 2 for 1 + f in [sqrt(1/2), sqrt(2)]; the largest parts are added last."""
    square = b.mul(f, f)
    small = b.mul(b.mul(horner(b, f, tables.LOG), square), f)
    small = b.fma(exponent, LN2_LOW, small)
    small = b.fma(square, -0.5, small)
    return b.fma(exponent, LN2_HIGH, b.add(f, small))


def _split(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """x = m * 2**e with m in [sqrt(1/2), sqrt(2)): m and e (i32), for positive normal x."""
    bits = b.bitcast(x, I32)
    e = b.shr(b.sub(bits, _ROOT_HALF), 23)
    return b.bitcast(b.sub(bits, b.shl(e, 23)), F32), e


def _where_log_is_defined(b: LoopBuilder, result: Value, x: Value) -> Value:
    """-inf at 0, NaN below, x itself at inf and NaN."""
    outside = b.select(b.compare("eq", x, 0.0), like(b, -math.inf, x), math.nan)
    result = b.select(b.compare("gt", x, 0.0), result, outside)
    return b.select(b.compare("lt", x, math.inf), result, x)


def log(b: LoopBuilder, x: Value) -> Value:
    """Natural logarithm."""
    require_f32(x, "log")
    tiny = b.compare("lt", x, _LEAST_NORMAL)
    m, e = _split(b, b.select(tiny, b.mul(x, 2.0**23), x))
    exponent = b.add(b.cast(e, F32), b.select(tiny, like(b, -23.0, x), 0.0))
    return _where_log_is_defined(b, _log_of(b, b.sub(m, 1.0), exponent), x)


def log1p_core(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """log(1 + x) for -1 < x < inf, and 1 + x as rounded."""
    u = b.add(x, 1.0)
    lost = b.sub(x, b.sub(u, 1.0))
    m, e = _split(b, u)
    # 2**-e; where e is larger nothing was lost in u.
    scale = b.bitcast(b.sub(ONE, b.shl(b.min(e, 126), 23)), F32)
    return _log_of(b, b.fma(lost, scale, b.sub(m, 1.0)), b.cast(e, F32)), u


def log1p(b: LoopBuilder, x: Value) -> Value:
    """log(1 + x), accurate near zero."""
    require_f32(x, "log1p")
    result, u = log1p_core(b, x)
    result = _where_log_is_defined(b, result, u)
    return b.select(b.compare("eq", x, 0.0), x, result)


def softplus(b: LoopBuilder, x: Value) -> Value:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    require_f32(x, "softplus")
    result, _ = log1p_core(b, exp_up_to(b, b.neg(b.abs(x))))
    return b.add(b.max(x, 0.0), result)
