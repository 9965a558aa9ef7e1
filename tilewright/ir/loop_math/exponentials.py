"""exp and the functions made of it."""

from __future__ import annotations

import math
from typing import Final

from tilewright.ir.loop_math import tables
from tilewright.ir.loop_math.evaluation import LN2_HIGH, LN2_LOW, MAGIC32, horner, like, require_f32, with_sign_of
from tilewright.ir.loops import LoopBuilder, Value

_LOG2E: Final = math.log2(math.e)


def _reduced(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """x = n ln 2 + r with |r| <= ln(2) / 2: r, and the whole number n."""
    n = b.sub(b.fma(x, _LOG2E, MAGIC32), MAGIC32)
    return b.fma(n, -LN2_LOW, b.fma(n, -LN2_HIGH, x)), n


def _expm1_reduced(b: LoopBuilder, r: Value) -> Value:
    """exp(r) - 1 for |r| <= ln(2) / 2, accurate near zero."""
    return b.fma(horner(b, r, tables.EXP), b.mul(r, r), r)


def exp_up_to(b: LoopBuilder, x: Value) -> Value:
    """exp for x <= 89."""
    # The bound comes first: `max` gives its second operand where unordered, so a NaN stays.
    x = b.max(like(b, -104.0, x), x)
    r, n = _reduced(b, x)
    return b.scale(b.fma(b.fma(horner(b, r, tables.EXP), r, 1.0), r, 1.0), n)


def exp(b: LoopBuilder, x: Value) -> Value:
    """e**x."""
    require_f32(x, "exp")
    return exp_up_to(b, b.min(like(b, 89.0, x), x))


def exp2(b: LoopBuilder, x: Value) -> Value:
    """2**x."""
    require_f32(x, "exp2")
    x = b.max(like(b, -151.0, x), b.min(like(b, 129.0, x), x))
    n = b.sub(b.add(x, MAGIC32), MAGIC32)
    r = b.sub(x, n)
    return b.scale(b.fma(horner(b, r, tables.EXP2), r, 1.0), n)


def exp2_coarse(b: LoopBuilder, x: Value) -> Value:
    """2**x with a relative error below 2**-13, exact where x is 0; 0 below 2**-126. For x <= 128.

    For weights that are rounded to 16 bits: what is in doubt lies below their last digit.
    """
    require_f32(x, "exp2_coarse")
    r = b.fraction(x)
    result = b.scale(b.fma(horner(b, r, tables.EXP2_COARSE), r, 1.0), b.floor(x))
    # a NaN stays, and so does what became one beyond the bound: it is not looked at
    return b.select(b.compare("lt", x, -126.0), like(b, 0.0, x), result)


def _expm1_up_to(b: LoopBuilder, x: Value) -> Value:
    """exp(x) - 1 for x <= 89; the sign of a zero is lost."""
    x = b.max(like(b, -20.0, x), x)
    r, n = _reduced(b, x)
    # Half the result, so that 2**(n-1) stays finite; doubling is exact.
    scale = b.scale(like(b, 0.5, n), n)
    half = b.fma(scale, _expm1_reduced(b, r), b.sub(scale, 0.5))
    return b.add(half, half)


def expm1(b: LoopBuilder, x: Value) -> Value:
    """e**x - 1."""
    require_f32(x, "expm1")
    return b.select(b.compare("eq", x, 0.0), x, _expm1_up_to(b, b.min(like(b, 89.0, x), x)))


def tanh(b: LoopBuilder, x: Value) -> Value:
    """Hyperbolic tangent: -e / (e + 2) with e = expm1(-2 |x|)."""
    require_f32(x, "tanh")
    e = _expm1_up_to(b, b.mul(b.abs(x), -2.0))
    return with_sign_of(b, b.abs(b.div(e, b.add(e, 2.0))), x)


def sigmoid(b: LoopBuilder, x: Value) -> Value:
    """1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow."""
    require_f32(x, "sigmoid")
    z = exp_up_to(b, b.neg(b.abs(x)))
    return b.div(b.select(b.compare("lt", x, 0.0), z, 1.0), b.add(z, 1.0))


def silu(b: LoopBuilder, x: Value) -> Value:
    """x * sigmoid(x)."""
    return b.mul(x, sigmoid(b, x))


def gelu_tanh(b: LoopBuilder, x: Value) -> Value:
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x**3): that is x * sigmoid(2 u)."""
    require_f32(x, "gelu_tanh")
    slope = 2 * math.sqrt(2 / math.pi)
    inner = b.fma(b.mul(x, x), slope * 0.044715, slope)
    return b.mul(x, sigmoid(b, b.mul(x, inner)))


def gelu(b: LoopBuilder, x: Value) -> Value:
    """x * Phi(x), from the root of the normal distribution's tail, w = sqrt(2 Phi(-|x|)): x / 2 times w**2 below zero
    and 2 - w**2 above. Both sides come from the small tail, so that nothing cancels.

    The root is a polynomial where the tail itself would need half as many terms again: it is a bell twice as wide, and
    an error in it counts 2 w fold. Beyond the range of the fit the polynomial falls to -inf, and max makes that 0.
    """
    require_f32(x, "gelu")
    t = b.abs(x)
    w = b.fma(horner(b, t, tables.GELU), t, 1.0)
    w = b.max(like(b, 0.0, w), w)  # a NaN stays
    return b.mul(b.mul(x, 0.5), b.select(b.compare("gt", x, 0.0), b.fma(b.neg(w), w, 2.0), b.mul(w, w)))


def erf(b: LoopBuilder, x: Value) -> Value:
    """The error function: a polynomial near zero, 1 - exp(polynomial) beyond."""
    require_f32(x, "erf")
    near = b.fma(horner(b, b.mul(x, x), tables.ERF), x, x)
    t = b.abs(x)
    capped = b.min(like(b, 4.0, t), t)
    exponent = b.fma(horner(b, capped, tables.ERFC_TAIL), b.neg(capped), b.neg(capped))
    far = with_sign_of(b, b.sub(1.0, exp_up_to(b, exponent)), x)
    return b.select(b.compare("gt", t, 0.9375), far, near)
