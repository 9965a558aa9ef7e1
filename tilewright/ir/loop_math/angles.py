"""The angle of a point, and with it every inverse of a trigonometric function."""

from __future__ import annotations

from typing import Final

from tilewright.ir.dtypes import I32
from tilewright.ir.loop_math import tables
from tilewright.ir.loop_math.evaluation import horner, like, require_f32, with_sign_of
from tilewright.ir.loops import LoopBuilder, Value

# pi / 2 as an f32 and the rest of it; twice as much is pi.
_HALF_PI: Final = 1.5707963705062866
_HALF_PI_REST: Final = -4.371139000186241e-08


def atan2(b: LoopBuilder, y: Value, x: Value) -> Value:
    """The angle of the point (x, y) with the first axis, from -pi to pi with y's sign, zeros' signs included.

    A polynomial of the smaller coordinate over the larger, counted from the axis that is nearest.
    """
    require_f32(y, "atan2")
    height, width = b.abs(y), b.abs(x)
    steep = b.compare("gt", height, width)
    low, high = b.select(steep, width, height), b.select(steep, height, width)
    # where both are 0 or infinite there is no quotient
    equal = b.select(b.compare("eq", high, 0.0), like(b, 0.0, high), like(b, 1.0, high))
    t = b.select(b.compare("eq", low, high), equal, b.div(low, high))
    square = b.mul(t, t)
    angle = b.fma(b.mul(t, square), horner(b, square, tables.ATAN), t)
    left = b.compare("lt", b.bitcast(x, I32), b.const(0, I32, x.type.lanes))
    halves = b.select(steep, like(b, 1.0, t), b.select(left, like(b, 2.0, t), like(b, 0.0, t)))
    turned = b.select(b.xor(steep, left), b.neg(angle), angle)
    return with_sign_of(b, b.fma(halves, _HALF_PI, b.fma(halves, _HALF_PI_REST, turned)), y)
