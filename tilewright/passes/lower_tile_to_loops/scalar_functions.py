"""The scalar table in loop IR: every elementwise function on scalars or vectors of one dtype.

bf16 and f16 are computed in f32 and rounded after every function, as the table's NumPy meaning does. f64 has arithmetic
but no transcendental functions: `loop_math` expands those for f32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from tilewright.ir import loop_math
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, DType
from tilewright.ir.loop_math.evaluation import with_sign_of
from tilewright.ir.loops import LoopBuilder, Predicate, Value

NARROW: Final = (BF16, F16)  # storage dtypes: computed with in f32

_TRANSCENDENTAL: Final[dict[str, Callable[..., Value]]] = {
    name: getattr(loop_math, name)
    for name in (
        "exp", "exp2", "exp2_coarse", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "gelu",
        "gelu_tanh", "softplus", "rsqrt", "pow", "atan2",
    )
}  # fmt: skip
NORMAL: Final = frozenset({"exp2_coarse"})
"""Functions whose results are never subnormal."""

_COMPARE: Final[dict[str, Predicate]] = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
_VANISHES: Final = {"exp": -104.0, "exp2": -151.0}  # arguments below which the f32 result is 0
_BITS: Final = ("and", "or", "xor")
# On masks, addition and the greater are "or", the product and the smaller are "and", as NumPy has them.
_LOGIC: Final = {"add": "or", "max": "or", "mul": "and", "min": "and"}


def computes(fn: str, dtype: DType) -> bool:
    """Whether the function has an expansion for operands of the dtype."""
    return not (dtype is F64 and fn in loop_math.F32_ONLY)


def apply(b: LoopBuilder, fn: str, args: list[Value]) -> Value:
    """The function on values of one dtype (a select's condition aside); scalars beside vectors are broadcast."""
    if fn == "select":
        return b.select(args[0], args[1], args[2])
    dtype = args[0].type.dtype
    if dtype in NARROW:
        result = _floats(b, fn, [b.cast(a, F32) for a in args])
        return result if result.type.dtype is I1 else b.cast(result, dtype)
    if fn in _COMPARE:
        return b.compare(_COMPARE[fn], args[0], args[1])
    if fn in _BITS:
        return b.binary(fn, args[0], args[1])  # type: ignore[arg-type]  # these names are BinaryKinds
    if fn == "not":
        return b.not_(args[0])
    if dtype.is_float:
        return _floats(b, fn, args)
    if dtype is I1:
        return b.binary(_LOGIC[fn], args[0], args[1])  # type: ignore[arg-type]  # "and" and "or" are BinaryKinds
    return _integers(b, fn, args)


def _floats(b: LoopBuilder, fn: str, args: list[Value]) -> Value:
    x, y = args[0], args[-1]
    match fn:
        case "add" | "sub" | "mul" | "div":
            return b.binary(fn, x, y)
        case "fma":
            return b.fma(*args)
        case "min":
            return b.minimum(x, y)
        case "max":
            return b.maximum(x, y)
        case "neg" | "abs" | "floor" | "ceil" | "trunc" | "round" | "sqrt":
            return b.unary(fn, x)
        case "reciprocal":
            return b.div(_like(b, 1.0, x), x)
        case "relu":
            return b.max(_like(b, 0.0, x), x)  # the plain form gives its second operand where unordered: NaN stays
        case "sign":
            below = b.select(b.compare("lt", x, 0.0), _like(b, -1.0, x), _like(b, 0.0, x))
            return b.select(b.compare("gt", x, 0.0), _like(b, 1.0, x), below)
        case "copysign":
            return with_sign_of(b, *b.alike(b.abs(x), y))
        case "isnan":
            return b.is_nan(x)
        case "isinf":
            return b.compare("eq", b.abs(x), float("inf"))
        case "floordiv":
            return _floor_division(b, x, y)[0]
        case "remainder":
            return _floor_division(b, x, y)[1]
        case "rsqrt" if x.type.dtype is F64:
            return b.div(_like(b, 1.0, x), b.sqrt(x))
        case name if name in _COMPARE:
            return b.compare(_COMPARE[name], x, y)
        case name if name in _VANISHES:
            # What vanishes is computed as f(0) and dropped: masked scores are -inf, and underflowing products are right
            # but a hundred times slower.
            gone, zero = b.compare("lt", x, _VANISHES[fn]), _like(b, 0.0, x)
            return b.select(gone, zero, _TRANSCENDENTAL[fn](b, b.select(gone, zero, x)))
        case _:
            return _TRANSCENDENTAL[fn](b, *args)


def _floor_division(b: LoopBuilder, x: Value, y: Value) -> tuple[Value, Value]:
    """floor(x / y), and the exact x - y * floor(x / y), which has y's sign. By 0: x / 0 and NaN, as torch has them."""
    x, y = b.alike(x, y)
    rest, zero = loop_math.fmod(b, x, y), _like(b, 0.0, x)
    quotient = b.div(b.sub(x, rest), y)
    below = b.select(b.compare("lt", y, 0.0), b.compare("gt", rest, zero), b.compare("lt", rest, zero))
    quotient = b.select(below, b.sub(quotient, 1.0), quotient)
    # (x - rest) / y is a whole number but for its rounding
    lower = b.floor(quotient)
    nearest = b.select(b.compare("gt", b.sub(quotient, lower), 0.5), b.add(lower, 1.0), lower)
    signed_zero = b.mul(b.div(x, y), zero)
    quotient = b.select(b.compare("eq", quotient, zero), signed_zero, nearest)
    return b.select(b.compare("eq", y, zero), b.div(x, y), quotient), b.select(below, b.add(rest, y), rest)


def _integers(b: LoopBuilder, fn: str, args: list[Value]) -> Value:
    x, y = args[0], args[-1]
    match fn:
        case "add" | "sub" | "mul" | "min" | "max":
            return b.binary(fn, x, y)
        case "neg" | "abs":
            return b.unary(fn, x)
        case "relu":
            return b.max(x, 0)
        case "sign":
            below = b.select(b.compare("lt", x, 0), _like(b, -1, x), _like(b, 0, x))
            return b.select(b.compare("gt", x, 0), _like(b, 1, x), below)
        case "shl" | "shr":
            return _shift(b, fn, x, y)
        case "div":
            return _division(b, "truncdiv", x, y)
        case "floordiv":
            return _division(b, "floordiv", x, y)
        case _:
            return _division(b, "mod", x, y)


def _shift(b: LoopBuilder, kind: Literal["shl", "shr"], x: Value, y: Value) -> Value:
    """A shift by any amount. Below 0 and from the width on it moves every bit out, as torch has it."""
    signed, last = y.type.dtype.kind == "int", x.type.dtype.bits - 1
    inside = b.compare("le", y, last)
    if signed:
        inside = b.and_(inside, b.compare("ge", y, 0))
    if kind == "shr" and signed:
        return b.shr(x, b.select(inside, y, _like(b, last, y)))  # the sign is what is left
    shifted = b.binary(kind, x, b.and_(y, last))
    return b.select(inside, shifted, _like(b, 0, shifted))


def _division(b: LoopBuilder, kind: str, x: Value, y: Value) -> Value:
    """An integer division that never faults: by 0 it gives 0, and the least integer by -1 wraps."""
    zero, one = _like(b, 0, y), _like(b, 1, y)
    none = b.compare("eq", y, zero)
    minus = b.compare("eq", y, _like(b, -1, y)) if y.type.dtype.kind == "int" else b.const(False, I1, y.type.lanes)
    divided = b.binary(kind, x, b.select(b.or_(none, minus), one, y))  # type: ignore[arg-type]  # three BinaryKinds
    negated = zero if kind == "mod" else b.neg(x)
    return b.select(none, _like(b, 0, divided), b.select(minus, negated, divided))


def _like(b: LoopBuilder, value: int | float, like: Value) -> Value:
    return b.const(value, like.type.dtype, like.type.lanes)
