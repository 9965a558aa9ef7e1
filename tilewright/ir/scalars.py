"""The elementwise functions: one table read by `graph.map`, `tile.map`, the frontends and every lowering.

An entry says how many operands the function takes, how its result dtype follows, what it means (as torch means it and
as NumPy computes it) and how many FLOPs one element counts. Operands of one call have equal dtypes except where the
rule says otherwise: frontends insert `graph.cast` where torch would promote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from tilewright.ir.dtypes import I1, DType

Rule = Literal["number", "float", "compare", "select", "integer", "bitwise", "predicate"]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class ScalarFunction:
    """One elementwise function.

    rule: "number" equal dtypes other than i1 -> the same; "float" floats only -> the same; "integer" integers -> the
    same; "bitwise" integers or i1 -> the same; "compare" equal dtypes -> i1; "predicate" one float -> i1; "select"
    (i1, t, t) -> t.
    torch: expression over torch and its operands a, b, c; numpy: the same on arrays of the operands' dtype.
    """

    name: str
    arity: int
    rule: Rule
    flops: int
    torch: Callable[..., Any]
    numpy: Callable[..., Array]
    doc: str

    def result(self, dtypes: Sequence[DType]) -> DType | None:
        """The result dtype, or None when the operands' dtypes break the rule."""
        if len(dtypes) != self.arity:
            return None
        match self.rule:
            case "select":
                return dtypes[1] if dtypes[0] == I1 and dtypes[1] == dtypes[2] else None
            case "predicate":
                return I1 if dtypes[0].is_float else None
        if any(t != dtypes[0] for t in dtypes):
            return None
        match self.rule:
            case "compare":
                return I1
            case "float":
                return dtypes[0] if dtypes[0].is_float else None
            case "integer":
                return dtypes[0] if dtypes[0].is_integer else None
            case "bitwise":
                return None if dtypes[0].is_float else dtypes[0]
            case _:
                return None if dtypes[0] == I1 else dtypes[0]


def _t() -> Any:
    import torch

    return torch


def _f() -> Any:
    import torch.nn.functional

    return torch.nn.functional


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _wide(function: Callable[..., Any]) -> Callable[..., Array]:
    """Computes in float64 and rounds to the operand's dtype: what the tile interpreter calls correctly rounded."""

    def apply(*operands: Array) -> Array:
        with np.errstate(all="ignore"):
            wide: Array = np.asarray(function(*(np.asarray(x, np.float64) for x in operands)))
            return wide.astype(operands[0].dtype)

    return apply


def _erf64(x: Array) -> Array:
    return np.asarray(_erf(x)) if x.size else x


def _sigmoid64(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _quiet(function: Callable[..., Any]) -> Callable[..., Array]:
    """Computes in the operands' own dtype, without NumPy's floating-point warnings."""

    def apply(*operands: Array) -> Array:
        with np.errstate(all="ignore"):
            result: Array = np.asarray(function(*operands))
            return result

    return apply


def _div(a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    # in integers, because an i64 does not fit into a double; the floor is one too low where signs differ
    quotient, rest = np.divmod(a, b)
    result: Array = quotient + ((rest != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return result


def _sign(x: Array) -> Array:
    zero, one = x.dtype.type(0), x.dtype.type(1)
    negative: Array = np.where(x < zero, np.negative(one), zero)
    result: Array = np.where(x > zero, one, negative)
    return result


def _gelu_tanh64(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


_LARGE: Final = "compiled, accurate up to 1e8 in magnitude, see loop_math"
_OUT: Final = "b is negative or not below a's width"

_TABLE: Final = [
    ScalarFunction("add", 2, "number", 1, lambda a, b: a + b, _quiet(lambda a, b: a + b), "a + b"),
    ScalarFunction("sub", 2, "number", 1, lambda a, b: a - b, _quiet(lambda a, b: a - b), "a - b"),
    ScalarFunction("mul", 2, "number", 1, lambda a, b: a * b, _quiet(lambda a, b: a * b), "a * b"),
    ScalarFunction(
        "div",
        2,
        "number",
        1,
        lambda a, b: a / b if a.is_floating_point() else _t().div(a, b, rounding_mode="trunc"),
        _quiet(_div),
        "a / b; integers truncate toward zero",
    ),
    ScalarFunction(
        "floordiv",
        2,
        "number",
        1,
        lambda a, b: _t().div(a, b, rounding_mode="floor"),
        _quiet(np.floor_divide),
        "floor(a / b)",
    ),
    ScalarFunction(
        "remainder",
        2,
        "number",
        1,
        lambda a, b: _t().remainder(a, b),
        _quiet(np.mod),
        "a - b * floor(a / b), with the sign of b",
    ),
    ScalarFunction(
        "min", 2, "number", 1, lambda a, b: _t().minimum(a, b), _quiet(np.minimum), "the smaller; NaN if either is"
    ),
    ScalarFunction(
        "max", 2, "number", 1, lambda a, b: _t().maximum(a, b), _quiet(np.maximum), "the larger; NaN if either is"
    ),
    ScalarFunction(
        "fma",
        3,
        "float",
        2,
        lambda a, b, c: a * b + c,
        _wide(lambda a, b, c: a * b + c),
        "a * b + c, in one rounding or two",
    ),
    ScalarFunction("pow", 2, "float", 8, lambda a, b: _t().pow(a, b), _wide(np.power), "a to the power b"),
    ScalarFunction("neg", 1, "number", 1, lambda a: -a, _quiet(np.negative), "-a"),
    ScalarFunction("abs", 1, "number", 1, lambda a: a.abs(), _quiet(np.abs), "|a|"),
    ScalarFunction("sign", 1, "number", 1, lambda a: a.sign(), _quiet(_sign), "-1, 0 or 1; 0 for NaN"),
    ScalarFunction("floor", 1, "float", 1, lambda a: a.floor(), _wide(np.floor), "the largest integer not above a"),
    ScalarFunction("ceil", 1, "float", 1, lambda a: a.ceil(), _wide(np.ceil), "the smallest integer not below a"),
    ScalarFunction("trunc", 1, "float", 1, lambda a: a.trunc(), _wide(np.trunc), "a without its fraction"),
    ScalarFunction("round", 1, "float", 1, lambda a: a.round(), _wide(np.rint), "nearest integer, halves to even"),
    ScalarFunction("sqrt", 1, "float", 1, lambda a: a.sqrt(), _wide(np.sqrt), "square root"),
    ScalarFunction("rsqrt", 1, "float", 2, lambda a: a.rsqrt(), _wide(lambda x: 1 / np.sqrt(x)), "1 / sqrt(a)"),
    ScalarFunction("reciprocal", 1, "float", 1, lambda a: a.reciprocal(), _wide(lambda x: 1 / x), "1 / a"),
    ScalarFunction("exp", 1, "float", 8, lambda a: a.exp(), _wide(np.exp), "e to the a"),
    ScalarFunction("exp2", 1, "float", 8, lambda a: _t().exp2(a), _wide(np.exp2), "2 to the a"),
    ScalarFunction("exp2_coarse", 1, "float", 8, lambda a: _t().exp2(a), _wide(np.exp2), "2 to the a, to 13 bits"),
    ScalarFunction("expm1", 1, "float", 8, lambda a: _t().expm1(a), _wide(np.expm1), "exp(a) - 1"),
    ScalarFunction("log", 1, "float", 8, lambda a: a.log(), _wide(np.log), "natural logarithm"),
    ScalarFunction("log1p", 1, "float", 8, lambda a: _t().log1p(a), _wide(np.log1p), "log(1 + a)"),
    ScalarFunction("sin", 1, "float", 8, lambda a: a.sin(), _wide(np.sin), f"sine of radians; {_LARGE}"),
    ScalarFunction("cos", 1, "float", 8, lambda a: a.cos(), _wide(np.cos), f"cosine of radians; {_LARGE}"),
    ScalarFunction(
        "atan2",
        2,
        "float",
        8,
        lambda a, b: _t().atan2(a, b),
        _wide(np.arctan2),
        "the angle of the point (b, a), radians",
    ),
    ScalarFunction(
        "copysign", 2, "float", 1, lambda a, b: _t().copysign(a, b), _wide(np.copysign), "|a| with the sign of b"
    ),
    ScalarFunction("tanh", 1, "float", 8, lambda a: a.tanh(), _wide(np.tanh), "hyperbolic tangent"),
    ScalarFunction("erf", 1, "float", 8, lambda a: _t().erf(a), _wide(_erf64), "error function"),
    ScalarFunction("sigmoid", 1, "float", 8, lambda a: a.sigmoid(), _wide(_sigmoid64), "1 / (1 + exp(-a))"),
    ScalarFunction("silu", 1, "float", 9, lambda a: _f().silu(a), _wide(lambda x: x * _sigmoid64(x)), "a * sigmoid(a)"),
    ScalarFunction(
        "gelu",
        1,
        "float",
        11,
        lambda a: _f().gelu(a),
        _wide(lambda x: 0.5 * x * (1 + _erf64(x / math.sqrt(2)))),
        "a * Phi(a), exact",
    ),
    ScalarFunction(
        "gelu_tanh",
        1,
        "float",
        14,
        lambda a: _f().gelu(a, approximate="tanh"),
        _wide(_gelu_tanh64),
        "the tanh form of gelu",
    ),
    ScalarFunction(
        "relu",
        1,
        "number",
        1,
        lambda a: a.relu(),
        _quiet(lambda x: np.where(x < 0, x.dtype.type(0), x)),
        "max(a, 0); NaN stays",
    ),
    ScalarFunction(
        "softplus",
        1,
        "float",
        10,
        lambda a: _t().logaddexp(a, _t().zeros_like(a)),
        _wide(lambda x: np.logaddexp(x, 0.0)),
        "log(1 + exp(a))",
    ),
    ScalarFunction("eq", 2, "compare", 1, lambda a, b: a == b, _quiet(np.equal), "a == b"),
    ScalarFunction("ne", 2, "compare", 1, lambda a, b: a != b, _quiet(np.not_equal), "a != b"),
    ScalarFunction("lt", 2, "compare", 1, lambda a, b: a < b, _quiet(np.less), "a < b"),
    ScalarFunction("le", 2, "compare", 1, lambda a, b: a <= b, _quiet(np.less_equal), "a <= b"),
    ScalarFunction("gt", 2, "compare", 1, lambda a, b: a > b, _quiet(np.greater), "a > b"),
    ScalarFunction("ge", 2, "compare", 1, lambda a, b: a >= b, _quiet(np.greater_equal), "a >= b"),
    ScalarFunction("isnan", 1, "predicate", 1, lambda a: a.isnan(), _quiet(np.isnan), "a is not a number"),
    ScalarFunction("isinf", 1, "predicate", 1, lambda a: a.isinf(), _quiet(np.isinf), "a is plus or minus infinity"),
    ScalarFunction("and", 2, "bitwise", 0, lambda a, b: a & b, np.bitwise_and, "bitwise and; logical on i1"),
    ScalarFunction("or", 2, "bitwise", 0, lambda a, b: a | b, np.bitwise_or, "bitwise or; logical on i1"),
    ScalarFunction("xor", 2, "bitwise", 0, lambda a, b: a ^ b, np.bitwise_xor, "bitwise exclusive or"),
    ScalarFunction("not", 1, "bitwise", 0, lambda a: ~a, np.invert, "bitwise not; logical on i1"),
    ScalarFunction(
        "shl", 2, "integer", 0, lambda a, b: a << b, np.left_shift, f"a shifted left by b bits; 0 where {_OUT}"
    ),
    ScalarFunction(
        "shr",
        2,
        "integer",
        0,
        lambda a, b: a >> b,
        np.right_shift,
        f"a shifted right by b bits, arithmetic; 0, or -1 below 0, where {_OUT}",
    ),
    ScalarFunction(
        "select", 3, "select", 0, lambda c, a, b: _t().where(c, a, b), np.where, "a where the condition holds, else b"
    ),
]

SCALARS: Final[dict[str, ScalarFunction]] = {f.name: f for f in _TABLE}
