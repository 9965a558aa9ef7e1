"""The scalar table, casts and literals as Triton expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from tilewright.ir.dtypes import F64, I1, DType

TYPES: Final[dict[str, str]] = {
    "f64": "tl.float64", "f32": "tl.float32", "f16": "tl.float16", "bf16": "tl.bfloat16",
    "i64": "tl.int64", "i32": "tl.int32", "i16": "tl.int16", "i8": "tl.int8", "u8": "tl.uint8", "i1": "tl.int1",
}  # fmt: skip
POINTERS: Final[dict[str, str]] = {
    "f64": "*fp64", "f32": "*fp32", "f16": "*fp16", "bf16": "*bf16",
    "i64": "*i64", "i32": "*i32", "i16": "*i16", "i8": "*i8", "u8": "*u8", "i1": "*i1",
}  # fmt: skip

_SIGMOID: Final = "(1.0 / (1.0 + tl.exp(-{0})))"
_FLOAT: Final[dict[str, str]] = {
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "tl.div_rn({0}, {1})",
    "fma": "({0} * {1} + {2})",
    "floordiv": "tl.floor(tl.div_rn({0}, {1}))", "remainder": "floormod({0}, {1})", "pow": "power({0}, {1})",
    "sqrt": "tl.sqrt_rn({0})", "rsqrt": "tl.rsqrt({0})", "reciprocal": "tl.div_rn(1.0, {0})",
    "exp": "tl.exp({0})", "exp2": "tl.exp2({0})",
    "exp2_coarse": "tl.exp2({0})", "log": "tl.log({0})", "sin": "tl.sin({0})", "cos": "tl.cos({0})",
    "erf": "tl.erf({0})", "floor": "tl.floor({0})", "ceil": "tl.ceil({0})",
    "trunc": "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))",
    "atan2": "angle({0}, {1})", "copysign": "signed({0}, {1})",
    "tanh": "tanh({0})", "expm1": "expm1({0})", "log1p": "log1p({0})",
    "sigmoid": _SIGMOID, "silu": "({0} * " + _SIGMOID + ")",
    "gelu": "(0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476)))",
    "gelu_tanh": "(0.5 * {0} * (1.0 + tanh(0.7978845608028654 * ({0} + 0.044715 * {0} * {0} * {0}))))",
    "softplus": "(tl.maximum({0}, 0.0) + log1p(tl.exp(-tl.abs({0}))))",
}  # fmt: skip
_INTEGER: Final[dict[str, str]] = {
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "({0} // {1})",
    "floordiv": "floordiv({0}, {1})", "remainder": "floormod({0}, {1})",
    "min": "tl.minimum({0}, {1})", "max": "tl.maximum({0}, {1})",
}  # fmt: skip
SHIFTS: Final[dict[str, str]] = {"shl": "<<", "shr": ">>"}
TYPED: Final = (*SHIFTS, "pow", "atan2", "copysign")
"""What asks for the bits or the dtype of its operands, which Triton does not know of a number."""
# The same for all dtypes that the table allows, and exact in narrow floats.
_ANY: Final[dict[str, str]] = {
    "min": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "max": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "neg": "(-{0})", "abs": "tl.abs({0})", "relu": "tl.where({0} < 0, 0, {0})",
    "eq": "({0} == {1})", "ne": "({0} != {1})", "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})",
    "ge": "({0} >= {1})", "isnan": "({0} != {0})", "isinf": '(tl.abs({0}) == float("inf"))',
    "and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})", "not": "(~{0})",
    "select": "tl.where({0}, {1}, {2})", "sign": "tl.where({0} > 0, 1, tl.where({0} < 0, -1, 0))",
}  # fmt: skip


def template(fn: str, dtype: DType) -> str | None:
    """The text of a function for operands of a dtype, with {0}, {1}, ... for them; None where there is none."""
    if fn == "round" and dtype.is_float:
        return "nearest({0}, 4503599627370496.0)" if dtype == F64 else "nearest({0}, 8388608.0)"
    if fn == "atan2" and dtype == F64:
        return None
    if fn in SHIFTS:
        filled = "{0} >> " + str(dtype.bits - 1) if fn == "shr" and dtype.kind == "int" else "{0} - {0}"
        return f"shifted({{0}} {SHIFTS[fn]} ({{1}} & {dtype.bits - 1}), {filled}, {{1}}, {dtype.bits})"
    if fn == "not" and dtype == I1:
        return "({0} == 0)"
    first = _FLOAT if dtype.is_float else _INTEGER
    return first.get(fn) or _ANY.get(fn)


def computed_wide(fn: str, dtype: DType) -> bool:
    """Whether narrow floats are computed in f32 and rounded once: all that is not a choice or a comparison."""
    return dtype.is_float and dtype.bits < 32 and fn not in _ANY


def repeats(text: str) -> bool:
    """Whether a template reads its first operand more than once, so that it should be a name."""
    return text.count("{0}") > 1


def literal(value: int | float, dtype: DType) -> str:
    """A number as Python text."""
    if not dtype.is_float:
        if dtype == I1:
            return "True" if value else "False"
        return str(int(value)) if value >= 0 else f"({int(value)})"
    if math.isnan(value) or math.isinf(value):
        return f'float("{float(value)}")'
    return repr(float(value)) if math.copysign(1.0, value) > 0 else f"({float(value)!r})"


def cast(text: str, source: DType, target: DType, number: Callable[[float], str] = repr) -> str:
    """A conversion: floats to integers towards zero, the least integer where out of range or NaN."""
    if source == target:
        return text
    if target == I1:
        return f"({text} != 0)"
    if source.is_float and target.is_integer:
        wide = 64 if target.bits == 64 else 32
        least, end = number(-(2.0 ** (wide - 1))), number(2.0 ** (wide - 1))
        inside = f"tl.where(({text} >= {least}) & ({text} < {end}), {text}, {least})"
        narrowed = "" if target.bits == wide else f".to({TYPES[target.name]})"
        return f"{inside}.to(tl.int{wide}){narrowed}"
    return f"{text}.to({TYPES[target.name]})"
