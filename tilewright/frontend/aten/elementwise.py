"""Arithmetic on elements: the result dtype is torch's, operands are cast to it."""

from __future__ import annotations

import math
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.rounding import rounded_once
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.dtypes import I1
from tilewright.ir.graph.base import tensor

_UNARY = {
    "neg": "neg", "abs": "abs", "sqrt": "sqrt", "rsqrt": "rsqrt", "reciprocal": "reciprocal", "exp": "exp",
    "exp2": "exp2", "expm1": "expm1", "log": "log", "log1p": "log1p", "sin": "sin", "cos": "cos", "tanh": "tanh",
    "erf": "erf", "sigmoid": "sigmoid", "relu": "relu", "silu": "silu", "special_expm1": "expm1",
    "special_erf": "erf", "special_expit": "sigmoid",
}  # fmt: skip
_INTEGER_IDENTITY = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "round", "fix": "trunc"}


def _register_unary() -> None:
    for operator, fn in _UNARY.items():
        lowers(f"aten.{operator}.default")(lambda c, self, fn=fn: c.map(fn, self))
    for operator, fn in _INTEGER_IDENTITY.items():
        lowers(f"aten.{operator}.default")(lambda c, self, fn=fn: c.map(fn, self) if c.result.dtype.is_float else self)


_register_unary()


@lowers("aten.sign.default", "aten.sgn.default")
def sign(c: Builder, self: SSAValue) -> SSAValue:
    return self if tensor(self).dtype == I1 else c.map("sign", self)


@lowers("aten.round.decimals")
@rounded_once
def round_decimals(c: Builder, self: SSAValue, decimals: int) -> SSAValue:
    scale = 10.0 ** abs(decimals)
    first, second = ("mul", "div") if decimals >= 0 else ("div", "mul")
    return c.map(second, c.map("round", c.map(first, self, scale)), scale)


@lowers("aten.square.default")
def square(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("mul", self, self)


@lowers("aten.log2.default")
@rounded_once
def log2(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("div", c.map("log", self), math.log(2))


@lowers("aten.log10.default")
@rounded_once
def log10(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("div", c.map("log", self), math.log(10))


@lowers("aten.add.Tensor", "aten.add.Scalar")
def add(c: Builder, self: Any, other: Any, alpha: Any = 1) -> SSAValue:
    if c.result.dtype == I1:
        return c.map("or", self, other)
    if other == 0 and isinstance(other, int) and c.result.dtype.is_integer:
        return c.cast(self, c.result.dtype)
    return _scaled(c, "add", self, other, alpha)


@lowers("aten.sub.Tensor", "aten.sub.Scalar")
def sub(c: Builder, self: Any, other: Any, alpha: Any = 1) -> SSAValue:
    return _scaled(c, "sub", self, other, alpha)


def _scaled(c: Builder, fn: str, a: Any, b: Any, factor: Any) -> SSAValue:
    return c.map(fn, *c.rounded(a, b)) if factor == 1 else _fused(c, fn, *c.rounded(a, b, factor))


@rounded_once
def _fused(c: Builder, fn: str, a: SSAValue, b: SSAValue, factor: SSAValue) -> SSAValue:
    return c.map(fn, a, c.map("mul", b, factor))


@lowers("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(c: Builder, self: Any, other: Any, alpha: Any = 1) -> SSAValue:
    return sub(c, other, self, alpha)


@lowers("aten.mul.Tensor", "aten.mul.Scalar", "aten.multiply.Tensor")
def mul(c: Builder, self: Any, other: Any) -> SSAValue:
    if other == 1 and isinstance(other, (int, float)) and c.result.dtype != I1:
        return c.cast(self, c.result.dtype)
    return c.map("and" if c.result.dtype == I1 else "mul", self, other)


@lowers("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.divide.Tensor")
def div(c: Builder, self: Any, other: Any) -> SSAValue:
    return c.map("div", self, other)


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode")
@rounded_once
def div_mode(c: Builder, self: Any, other: Any, *, rounding_mode: str | None = None) -> SSAValue:
    if rounding_mode == "floor":
        return c.map("floordiv", self, other)
    quotient = c.map("div", self, other)
    # integer division truncates already
    return c.map("trunc", quotient) if rounding_mode == "trunc" and c.result.dtype.is_float else quotient


@lowers("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(c: Builder, self: Any, other: Any) -> SSAValue:
    # a divisor stays the number it is
    return c.map("floordiv", self if isinstance(self, SSAValue) else c.rounded(self)[0], other)


@lowers("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def remainder(c: Builder, self: Any, other: Any) -> SSAValue:
    return c.map("remainder", *c.rounded(self, other))


@lowers("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(c: Builder, self: Any, other: Any) -> SSAValue:
    dtype = c.result.dtype
    self, other = c.rounded(self, other)
    if dtype.kind == "uint":
        return c.map("remainder", self, other)
    negative = c.map("lt", self, 0, dtype=dtype)
    if dtype.is_integer:
        # the least integer has no magnitude, so the remainder that has the divisor's sign is moved by the divisor
        rest = c.map("remainder", self, other)
        other_sign = c.map("xor", negative, c.map("lt", rest, 0, dtype=dtype), dtype=I1)
        moved = c.map("and", other_sign, c.map("ne", rest, 0, dtype=dtype), dtype=I1)
        return c.select(moved, c.map("sub", rest, other), rest, dtype)
    # the remainder of magnitudes, with the sign of the dividend
    rest = c.map("remainder", c.map("abs", self), c.map("abs", other))
    return c.select(negative, c.map("neg", rest), rest, dtype)


@lowers("aten.maximum.default", "aten.max.other")
def maximum(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    return c.map("or" if c.result.dtype == I1 else "max", self, other)


@lowers("aten.minimum.default", "aten.min.other")
def minimum(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    return c.map("and" if c.result.dtype == I1 else "min", self, other)


@lowers("aten.fmax.default")
def fmax(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    return _ignoring_nan(c, "max", self, other)


@lowers("aten.fmin.default")
def fmin(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    return _ignoring_nan(c, "min", self, other)


def _ignoring_nan(c: Builder, fn: str, a: SSAValue, b: SSAValue) -> SSAValue:
    dtype = c.result.dtype
    if not dtype.is_float:
        return c.map(fn, a, b)
    found = c.select(c.map("isnan", b), a, c.map(fn, a, b), dtype)
    return c.select(c.map("isnan", a), b, found, dtype)


@lowers("aten.clamp.default", "aten.clamp.Tensor", "aten.clip.default", "aten.clip.Tensor", "aten.hardtanh.default")
def clamp(c: Builder, self: SSAValue, min: Any = None, max: Any = None, **limits: Any) -> SSAValue:
    low, high = limits.get("min_val", min), limits.get("max_val", max)
    if low is not None:
        self = c.map("max", self, low)
    return c.map("min", self, high) if high is not None else c.cast(self, c.result.dtype)


@lowers("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(c: Builder, self: SSAValue, min: Any) -> SSAValue:
    return c.map("max", self, min)


@lowers("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(c: Builder, self: SSAValue, max: Any) -> SSAValue:
    return c.map("min", self, max)


@lowers("aten.lerp.Scalar", "aten.lerp.Tensor")
@rounded_once
def lerp(c: Builder, self: SSAValue, end: SSAValue, weight: Any) -> SSAValue:
    return c.map("add", self, c.map("mul", weight, c.map("sub", end, self)))


@lowers("aten.addcmul.default")
@rounded_once
def addcmul(c: Builder, self: SSAValue, tensor1: SSAValue, tensor2: SSAValue, *, value: Any = 1) -> SSAValue:
    product = c.map("mul", tensor1, tensor2)
    return c.map("add", self, product if value == 1 else c.map("mul", value, product))


@lowers("aten.addcdiv.default")
@rounded_once
def addcdiv(c: Builder, self: SSAValue, tensor1: SSAValue, tensor2: SSAValue, *, value: Any = 1) -> SSAValue:
    quotient = c.map("div", tensor1, tensor2)
    return c.map("add", self, quotient if value == 1 else c.map("mul", value, quotient))


@lowers("aten.logaddexp.default")
@rounded_once
def logaddexp(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    # b + softplus(a - b), the larger first; equal infinities have no difference to take
    large, small = c.map("max", self, other), c.map("min", self, other)
    same = c.map("eq", large, small)
    grown = c.map("softplus", c.map("sub", small, large))
    doubled = c.map("add", large, math.log(2))
    return c.select(same, doubled, c.map("add", large, grown), c.result.dtype)


@lowers("aten.hypot.default")
@rounded_once
def hypot(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    return magnitude(c, self, other)


def magnitude(c: Builder, a: SSAValue, b: SSAValue) -> SSAValue:
    """The root of the sum of squares, of sides divided by the larger one: their squares may overflow."""
    dtype = c.result.dtype
    sizes = [c.map("abs", side) for side in (a, b)]
    large, small = c.map("max", *sizes), c.map("min", *sizes)
    share = c.map("div", small, c.select(c.map("eq", large, 0.0, dtype=dtype), 1.0, large, dtype))
    root = c.map("sqrt", c.map("add", c.map("mul", share, share), 1.0))
    # an infinite side decides, even beside NaN
    endless = c.map("or", *(c.map("isinf", size, dtype=dtype) for size in sizes), dtype=I1)
    return c.select(endless, math.inf, c.map("mul", large, root), dtype)


@lowers("aten.nan_to_num.default")
def nan_to_num(
    c: Builder, self: SSAValue, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> SSAValue:
    dtype = c.result.dtype
    if not dtype.is_float:
        return self
    largest = _largest(dtype.name)
    found = c.select(c.map("isnan", self), nan or 0.0, self, dtype)
    found = c.select(c.map("eq", self, math.inf), largest if posinf is None else posinf, found, dtype)
    return c.select(c.map("eq", self, -math.inf), -largest if neginf is None else neginf, found, dtype)


def _largest(name: str) -> float:
    import numpy as np

    if name == "bf16":
        return float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])
    return float(np.finfo({"f16": "float16", "f32": "float32", "f64": "float64"}[name]).max)


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(c: Builder, condition: SSAValue, self: Any, other: Any) -> SSAValue:
    return c.select(condition, self, other, c.result.dtype)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(c: Builder, self: SSAValue, mask: SSAValue, value: Any) -> SSAValue:
    return c.select(mask, value, self, c.result.dtype)
