"""sin and cos."""

from __future__ import annotations

import math
from typing import Final

from tilewright.ir.dtypes import F32, F64, I32, I64
from tilewright.ir.loop_math import tables
from tilewright.ir.loop_math.evaluation import MAGIC64, horner, like, require_f32
from tilewright.ir.loops import LoopBuilder, Value

# pi / 2 in parts of 27 bits: their products with a quadrant below 2**26 are exact in f64.
_HALF_PI: Final = (1.5707963109016418, 1.5893254712295857e-08, 6.123233995736766e-17)


def _quadrant(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """x = q * pi / 2 + r with |r| <= pi / 4, reduced in f64: r as f32, q as i32 (its two low bits count)."""
    wide = b.cast(x, F64)
    shifted = b.fma(wide, 2 / math.pi, MAGIC64)
    n = b.sub(shifted, MAGIC64)
    r = wide
    for part in _HALF_PI:
        r = b.fma(n, -part, r)
    r32 = b.cast(r, F32)
    r32 = b.max(like(b, -0.8, r32), b.min(like(b, 0.8, r32), r32))
    return r32, b.cast(b.bitcast(shifted, I64), I32)


def _sine_of_quadrant(b: LoopBuilder, r: Value, q: Value) -> Value:
    square = b.mul(r, r)
    sine = b.mul(r, b.fma(horner(b, square, tables.SIN), square, 1.0))
    cosine = b.fma(horner(b, square, tables.COS), b.mul(square, square), b.fma(square, -0.5, 1.0))
    chosen = b.select(b.compare("ne", b.and_(q, 1), 0), cosine, sine)
    sign = b.shl(b.and_(q, 2), 30)
    return b.bitcast(b.xor(b.bitcast(chosen, I32), sign), F32)


def sin(b: LoopBuilder, x: Value) -> Value:
    """Sine of radians."""
    require_f32(x, "sin")
    r, q = _quadrant(b, x)
    return _sine_of_quadrant(b, r, q)


def cos(b: LoopBuilder, x: Value) -> Value:
    """Cosine of radians."""
    require_f32(x, "cos")
    r, q = _quadrant(b, x)
    return _sine_of_quadrant(b, r, b.add(q, 1))
