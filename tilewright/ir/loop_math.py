"""Elementary functions on loop-IR values: polynomials of our own, so that no kernel calls a math library.

Every function takes a builder and f32 values of any lane count, and returns the same type. Coefficients come from
`tools/fit_polynomials.py`. Largest errors in units in the last place of the result, which the tests hold over dense
samples of the whole range on every class:

    exp, exp2 1.5   expm1 1.75   log 1   log1p 1.75   tanh 2.75   sigmoid 2.5   silu 3.5   erf 1.5   softplus 2
    sin, cos 2.25 (|x| <= 1e8)   pow 1.25   rsqrt 1.5   gelu, gelu_tanh 4 for x >= -1

Below -1, where the value of gelu is small beside its argument, its error is at most 5e-8 |x|, as the argument's own
rounding is multiplied by x**2 there in any formula. silu below -87 multiplies x by a subnormal.

Infinities, NaN, zeros and signs of zero are as in torch: exp(-inf) is 0, log(0) is -inf, log(-1) is NaN, sin(inf) is
NaN, silu(-inf) is NaN. Subnormal results are right, subnormal inputs count.
sin and cos lose their accuracy gradually beyond 1e8 and stay within [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from tilewright.errors import IRError
from tilewright.ir import loop_math_tables as tables
from tilewright.ir.dtypes import F32, F64, I32, I64
from tilewright.ir.loops import LoopBuilder, Value
from tilewright.ir.loops.arithmetic import Operand

# Adding 1.5 * 2**(mantissa bits) rounds to the nearest integer and leaves that integer in the low bits.
_MAGIC32: Final = 1.5 * 2.0**23
_MAGIC64: Final = 1.5 * 2.0**52
_ONE: Final = 0x3F800000  # the bits of 1.0
_SIGN: Final = -(1 << 31)
_LOG2E: Final = math.log2(math.e)
# ln 2 in two parts: the first has 10 bits, so that its product with an exponent is exact without a fused multiply-add.
_LN2_HIGH: Final = 0.693359375
_LN2_LOW: Final = -2.12194440054690583e-4
_ROOT_HALF: Final = 0x3F3504F3  # the bits of sqrt(1/2)
_LEAST_NORMAL: Final = 2.0**-126
# pi / 2 in parts of 27 bits: their products with a quadrant below 2**26 are exact in f64.
_HALF_PI: Final = (1.5707963109016418, 1.5893254712295857e-08, 6.123233995736766e-17)
_ROOT_HALF64: Final = 0x3FE6A09E667F3BCD


def _horner(b: LoopBuilder, x: Value, coefficients: tuple[float, ...]) -> Value:
    """c[0] + c[1] x + ..., from the highest degree down."""
    total: Operand = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = b.fma(total, x, c)
    return _value(b, total, x)


def _value(b: LoopBuilder, operand: Operand, like: Value) -> Value:
    return operand if isinstance(operand, Value) else b.const(operand, like.type.dtype, like.type.lanes)


def _f32(x: Value, name: str) -> None:
    if x.type.dtype is not F32:
        raise IRError(f"{name} is expanded for f32, not for {x.type}", step="cast to f32 around it")


def _sign_of(b: LoopBuilder, magnitude: Value, x: Value) -> Value:
    """|magnitude| with x's sign, where magnitude is not negative."""
    sign = b.and_(b.bitcast(x, I32), _SIGN)
    return b.bitcast(b.or_(b.bitcast(magnitude, I32), sign), F32)


# --- exponentials ---------------------------------------------------------------------------------------------------


def _reduced(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """x = n ln 2 + r with |r| <= ln(2) / 2: r, and bits that end in the integer n."""
    shifted = b.fma(x, _LOG2E, _MAGIC32)
    n = b.sub(shifted, _MAGIC32)
    r = b.fma(n, -_LN2_LOW, b.fma(n, -_LN2_HIGH, x))
    return r, b.bitcast(shifted, I32)


def _times_power_of_two(b: LoopBuilder, value: Value, bits: Value) -> Value:
    """value * 2**n for n in -252..254 in the low bits of `bits`.

    In two factors, so that neither is subnormal or infinite and the result is rounded once: the first is 2**(n // 2).
    """
    half = b.and_(b.shl(bits, 22), -(1 << 23))
    rest = b.sub(b.shl(bits, 23), half)
    first, second = (b.bitcast(b.add(exponent, _ONE), F32) for exponent in (half, rest))
    return b.mul(b.mul(value, first), second)


def _expm1_reduced(b: LoopBuilder, r: Value) -> Value:
    """exp(r) - 1 for |r| <= ln(2) / 2, accurate near zero."""
    return b.fma(_horner(b, r, tables.EXP), b.mul(r, r), r)


def _exp_up_to(b: LoopBuilder, x: Value) -> Value:
    """exp for x <= 89."""
    # The bound comes first: `max` gives its second operand where unordered, so a NaN stays.
    x = b.max(_value(b, -104.0, x), x)
    r, bits = _reduced(b, x)
    return _times_power_of_two(b, b.fma(b.fma(_horner(b, r, tables.EXP), r, 1.0), r, 1.0), bits)


def exp(b: LoopBuilder, x: Value) -> Value:
    """e**x."""
    _f32(x, "exp")
    return _exp_up_to(b, b.min(_value(b, 89.0, x), x))


def exp2(b: LoopBuilder, x: Value) -> Value:
    """2**x."""
    _f32(x, "exp2")
    x = b.max(_value(b, -151.0, x), b.min(_value(b, 129.0, x), x))
    shifted = b.add(x, _MAGIC32)
    r = b.sub(x, b.sub(shifted, _MAGIC32))
    return _times_power_of_two(b, b.fma(_horner(b, r, tables.EXP2), r, 1.0), b.bitcast(shifted, I32))


def _expm1_up_to(b: LoopBuilder, x: Value) -> Value:
    """exp(x) - 1 for x <= 89; the sign of a zero is lost."""
    x = b.max(_value(b, -20.0, x), x)
    r, bits = _reduced(b, x)
    # Half the result, so that 2**(n-1) stays finite; doubling is exact.
    scale = b.bitcast(b.add(b.shl(bits, 23), 126 << 23), F32)
    half = b.fma(scale, _expm1_reduced(b, r), b.sub(scale, 0.5))
    return b.add(half, half)


def expm1(b: LoopBuilder, x: Value) -> Value:
    """e**x - 1."""
    _f32(x, "expm1")
    return b.select(b.compare("eq", x, 0.0), x, _expm1_up_to(b, b.min(_value(b, 89.0, x), x)))


def tanh(b: LoopBuilder, x: Value) -> Value:
    """Hyperbolic tangent: -e / (e + 2) with e = expm1(-2 |x|)."""
    _f32(x, "tanh")
    e = _expm1_up_to(b, b.mul(b.abs(x), -2.0))
    return _sign_of(b, b.abs(b.div(e, b.add(e, 2.0))), x)


def sigmoid(b: LoopBuilder, x: Value) -> Value:
    """1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow."""
    _f32(x, "sigmoid")
    z = _exp_up_to(b, b.neg(b.abs(x)))
    return b.div(b.select(b.compare("lt", x, 0.0), z, 1.0), b.add(z, 1.0))


def silu(b: LoopBuilder, x: Value) -> Value:
    """x * sigmoid(x)."""
    return b.mul(x, sigmoid(b, x))


def gelu_tanh(b: LoopBuilder, x: Value) -> Value:
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x**3): that is x * sigmoid(2 u)."""
    _f32(x, "gelu_tanh")
    slope = 2 * math.sqrt(2 / math.pi)
    inner = b.fma(b.mul(x, x), slope * 0.044715, slope)
    return b.mul(x, sigmoid(b, b.mul(x, inner)))


def gelu(b: LoopBuilder, x: Value) -> Value:
    """x * Phi(x), with the normal distribution from one exponential of a polynomial: Phi(-u) = erfc(u / sqrt 2) / 2.

    Both sides of zero come from the small tail, so that nothing cancels.
    """
    _f32(x, "gelu")
    t = b.mul(b.abs(x), math.sqrt(0.5))
    inside = b.min(_value(b, 6.5, t), t)
    exponent = b.mul(_horner(b, inside, tables.GELU), inside)
    # Beyond the polynomial's range a straight line falls more slowly than log(erfc), and still takes the result to 0.
    exponent = b.fma(b.sub(t, inside), -13.0, exponent)
    tail = b.mul(_exp_up_to(b, exponent), 0.5)
    return b.mul(x, b.select(b.compare("gt", x, 0.0), b.sub(1.0, tail), tail))


def erf(b: LoopBuilder, x: Value) -> Value:
    """The error function: a polynomial near zero, 1 - exp(polynomial) beyond."""
    _f32(x, "erf")
    near = b.fma(_horner(b, b.mul(x, x), tables.ERF), x, x)
    t = b.abs(x)
    capped = b.min(_value(b, 4.0, t), t)
    exponent = b.fma(_horner(b, capped, tables.ERFC_TAIL), b.neg(capped), b.neg(capped))
    far = _sign_of(b, b.sub(1.0, _exp_up_to(b, exponent)), x)
    return b.select(b.compare("gt", t, 0.9375), far, near)


# --- logarithms -----------------------------------------------------------------------------------------------------


def _log_of(b: LoopBuilder, f: Value, exponent: Value) -> Value:
    """log(1 + f) + exponent * ln 2 for 1 + f in [sqrt(1/2), sqrt(2)]; the largest parts are added last."""
    square = b.mul(f, f)
    small = b.mul(b.mul(_horner(b, f, tables.LOG), square), f)
    small = b.fma(exponent, _LN2_LOW, small)
    small = b.fma(square, -0.5, small)
    return b.fma(exponent, _LN2_HIGH, b.add(f, small))


def _split(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """x = m * 2**e with m in [sqrt(1/2), sqrt(2)): m and e (i32), for positive normal x."""
    bits = b.bitcast(x, I32)
    e = b.shr(b.sub(bits, _ROOT_HALF), 23)
    return b.bitcast(b.sub(bits, b.shl(e, 23)), F32), e


def _where_log_is_defined(b: LoopBuilder, result: Value, x: Value) -> Value:
    """-inf at 0, NaN below, x itself at inf and NaN."""
    outside = b.select(b.compare("eq", x, 0.0), _value(b, -math.inf, x), math.nan)
    result = b.select(b.compare("gt", x, 0.0), result, outside)
    return b.select(b.compare("lt", x, math.inf), result, x)


def log(b: LoopBuilder, x: Value) -> Value:
    """Natural logarithm."""
    _f32(x, "log")
    tiny = b.compare("lt", x, _LEAST_NORMAL)
    m, e = _split(b, b.select(tiny, b.mul(x, 2.0**23), x))
    exponent = b.add(b.cast(e, F32), b.select(tiny, _value(b, -23.0, x), 0.0))
    return _where_log_is_defined(b, _log_of(b, b.sub(m, 1.0), exponent), x)


def _log1p_core(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """log(1 + x) for -1 < x < inf, and 1 + x as rounded."""
    u = b.add(x, 1.0)
    lost = b.sub(x, b.sub(u, 1.0))
    m, e = _split(b, u)
    # 2**-e; where e is larger nothing was lost in u.
    scale = b.bitcast(b.sub(_ONE, b.shl(b.min(e, 126), 23)), F32)
    return _log_of(b, b.fma(lost, scale, b.sub(m, 1.0)), b.cast(e, F32)), u


def log1p(b: LoopBuilder, x: Value) -> Value:
    """log(1 + x), accurate near zero."""
    _f32(x, "log1p")
    result, u = _log1p_core(b, x)
    result = _where_log_is_defined(b, result, u)
    return b.select(b.compare("eq", x, 0.0), x, result)


def softplus(b: LoopBuilder, x: Value) -> Value:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    _f32(x, "softplus")
    result, _ = _log1p_core(b, _exp_up_to(b, b.neg(b.abs(x))))
    return b.add(b.max(x, 0.0), result)


# --- trigonometry ---------------------------------------------------------------------------------------------------


def _quadrant(b: LoopBuilder, x: Value) -> tuple[Value, Value]:
    """x = q * pi / 2 + r with |r| <= pi / 4, reduced in f64: r as f32, q as i32 (its two low bits count)."""
    wide = b.cast(x, F64)
    shifted = b.fma(wide, 2 / math.pi, _MAGIC64)
    n = b.sub(shifted, _MAGIC64)
    r = wide
    for part in _HALF_PI:
        r = b.fma(n, -part, r)
    r32 = b.cast(r, F32)
    r32 = b.max(_value(b, -0.8, r32), b.min(_value(b, 0.8, r32), r32))
    return r32, b.cast(b.bitcast(shifted, I64), I32)


def _sine_of_quadrant(b: LoopBuilder, r: Value, q: Value) -> Value:
    square = b.mul(r, r)
    sine = b.mul(r, b.fma(_horner(b, square, tables.SIN), square, 1.0))
    cosine = b.fma(_horner(b, square, tables.COS), b.mul(square, square), b.fma(square, -0.5, 1.0))
    chosen = b.select(b.compare("ne", b.and_(q, 1), 0), cosine, sine)
    sign = b.shl(b.and_(q, 2), 30)
    return b.bitcast(b.xor(b.bitcast(chosen, I32), sign), F32)


def sin(b: LoopBuilder, x: Value) -> Value:
    """Sine of radians."""
    _f32(x, "sin")
    r, q = _quadrant(b, x)
    return _sine_of_quadrant(b, r, q)


def cos(b: LoopBuilder, x: Value) -> Value:
    """Cosine of radians."""
    _f32(x, "cos")
    r, q = _quadrant(b, x)
    return _sine_of_quadrant(b, r, b.add(q, 1))


# --- powers ---------------------------------------------------------------------------------------------------------


def rsqrt(b: LoopBuilder, x: Value) -> Value:
    """1 / sqrt(x), f32 or f64, each step correctly rounded."""
    return b.div(_value(b, 1.0, x), b.sqrt(x))


def _log2_wide(b: LoopBuilder, x: Value) -> Value:
    """log2 of a f64 that is positive; -inf at 0, inf and NaN as they are."""
    bits = b.bitcast(x, I64)
    e = b.shr(b.sub(bits, _ROOT_HALF64), 52)
    m = b.bitcast(b.sub(bits, b.shl(e, 52)), F64)
    s = b.div(b.sub(m, 1.0), b.add(m, 1.0))
    result = b.fma(_horner(b, b.mul(s, s), tables.LOG2_ATANH), s, b.cast(b.cast(e, I32), F64))
    result = b.select(b.compare("eq", x, 0.0), _value(b, -math.inf, x), result)
    return b.select(b.compare("lt", x, math.inf), result, x)


def pow(b: LoopBuilder, x: Value, y: Value) -> Value:
    """x**y as C and torch define it, 2**(y log2 |x|) with the product in f64."""
    _f32(x, "pow")
    _f32(y, "pow")
    wide_y = b.cast(y, F64)
    logarithm = _log2_wide(b, b.cast(b.abs(x), F64))
    product = b.select(b.compare("eq", logarithm, 0.0), _value(b, 0.0, wide_y), b.mul(wide_y, logarithm))
    product = b.max(_value(b, -151.0, product), b.min(_value(b, 129.0, product), product))
    shifted = b.add(product, _MAGIC64)
    r = b.cast(b.sub(product, b.sub(shifted, _MAGIC64)), F32)
    bits = b.cast(b.bitcast(shifted, I64), I32)
    result = _times_power_of_two(b, b.fma(_horner(b, r, tables.EXP2), r, 1.0), bits)
    # A negative base: a sign for odd exponents, NaN for finite bases with exponents that are no integers.
    half = b.mul(y, 0.5)
    whole = b.compare("eq", b.trunc(y), y)
    odd = b.and_(whole, b.compare("ne", b.trunc(half), half))
    sign = b.select(odd, b.and_(b.bitcast(x, I32), _SIGN), 0)
    result = b.bitcast(b.xor(b.bitcast(result, I32), sign), F32)
    negative = b.and_(b.compare("lt", x, 0.0), b.compare("gt", x, -math.inf))
    undefined = b.and_(negative, b.not_(whole))
    undefined = b.or_(undefined, b.or_(b.is_nan(x), b.is_nan(y)))
    one = b.or_(b.compare("eq", x, 1.0), b.compare("eq", y, 0.0))
    return b.select(one, _value(b, 1.0, x), b.select(undefined, _value(b, math.nan, x), result))


MATH: Final[dict[str, Callable[..., Value]]] = {
    "exp": exp,
    "exp2": exp2,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "sin": sin,
    "cos": cos,
    "tanh": tanh,
    "erf": erf,
    "sigmoid": sigmoid,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "softplus": softplus,
    "pow": pow,
    "rsqrt": rsqrt,
}
"""The expansions by their names in `ir.scalars`: call with a builder and the operands, all f32."""
