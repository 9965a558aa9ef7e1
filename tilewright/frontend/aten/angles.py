"""Trigonometric and hyperbolic functions and their inverses, and the signs that these hand on."""

from __future__ import annotations

import math
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.rounding import rounded_once
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.dtypes import I1
from tilewright.ir.graph.base import tensor


@lowers("aten.tan.default")
@rounded_once
def tan(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("div", c.map("sin", self), c.map("cos", self))


@lowers("aten.atan2.default", "aten.arctan2.default")
def atan2(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    return c.map("atan2", *c.rounded(self, other))


@lowers("aten.atan.default", "aten.arctan.default")
def atan(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("atan2", self, 1.0)


@lowers("aten.asin.default", "aten.arcsin.default")
@rounded_once
def asin(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("atan2", self, _adjacent(c, self))


@lowers("aten.acos.default", "aten.arccos.default")
@rounded_once
def acos(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("atan2", _adjacent(c, self), self)


def _adjacent(c: Builder, x: SSAValue) -> SSAValue:
    """sqrt(1 - x^2) by the factors of 1 - x^2: squared first, an x near 1 would lose its digits. NaN beyond 1."""
    return c.map("sqrt", c.map("mul", c.map("sub", 1.0, x), c.map("add", 1.0, x)))


@lowers("aten.asinh.default", "aten.arcsinh.default")
@rounded_once
def asinh(c: Builder, self: SSAValue) -> SSAValue:
    # log(x + sqrt(x^2 + 1)) as log1p of what is added to 1, whose digits count where x is small
    size = c.map("abs", self)
    square = c.map("mul", size, size)
    beyond = c.map("div", square, c.map("add", c.map("sqrt", c.map("add", square, 1.0)), 1.0))
    return c.map("copysign", _log_of_doubled(c, size, c.map("log1p", c.map("add", size, beyond))), self)


@lowers("aten.acosh.default", "aten.arccosh.default")
@rounded_once
def acosh(c: Builder, self: SSAValue) -> SSAValue:
    over = c.map("sub", self, 1.0)
    # the roots of both factors: their product may overflow, and is positive again below -1
    root = c.map("mul", c.map("sqrt", over), c.map("sqrt", c.map("add", self, 1.0)))
    return _log_of_doubled(c, self, c.map("log1p", c.map("add", over, root)))


def _log_of_doubled(c: Builder, x: SSAValue, near: SSAValue) -> SSAValue:
    """log(2 x) where x is so large that its square overflows or hides the 1 beside it, else what is given."""
    far = c.map("add", c.map("log", x), math.log(2))
    return c.select(c.map("gt", x, 1e9, dtype=c.result.dtype), far, near, c.result.dtype)


@lowers("aten.atanh.default", "aten.arctanh.default")
@rounded_once
def atanh(c: Builder, self: SSAValue) -> SSAValue:
    # half of the logarithm of (1 + x) / (1 - x), which is 1 and twice x over 1 - x
    size = c.map("abs", self)
    grown = c.map("log1p", c.map("div", c.map("mul", size, 2.0), c.map("sub", 1.0, size)))
    return c.map("copysign", c.map("mul", 0.5, grown), self)


@lowers("aten.copysign.Tensor", "aten.copysign.Scalar")
def copysign(c: Builder, self: SSAValue, other: Any) -> SSAValue:
    return c.map("copysign", self, other)


@lowers("aten.signbit.default")
def signbit(c: Builder, self: SSAValue) -> SSAValue:
    dtype = tensor(self).dtype
    if dtype == I1:
        return c.full(False, c.result.dims, I1)
    return c.map("lt", c.map("copysign", 1.0, self, dtype=dtype) if dtype.is_float else self, 0, dtype=dtype)


@lowers("aten.sinh.default")
@rounded_once
def sinh(c: Builder, self: SSAValue) -> SSAValue:
    # expm1(x) / 2 * (1 + 1 / exp(x)) keeps the digits of small x that exp(x) - exp(-x) loses
    size, grown = c.map("abs", self), c.map("expm1", self)
    small = c.map("mul", 0.5, c.map("add", grown, c.map("div", grown, c.map("add", grown, 1.0))))
    half, inverse = _half_exponentials(c, size)
    large = c.map("mul", c.map("sign", self), c.map("sub", half, inverse))
    return c.select(c.map("lt", size, 1.0, dtype=c.result.dtype), small, large, c.result.dtype)


@lowers("aten.cosh.default")
@rounded_once
def cosh(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("add", *_half_exponentials(c, c.map("abs", self)))


def _half_exponentials(c: Builder, x: SSAValue) -> tuple[SSAValue, SSAValue]:
    """exp(x) / 2 and exp(-x) / 2 for x >= 0; the first is finite where exp(x) no longer is."""
    root = c.map("exp", c.map("mul", 0.5, x))
    return c.map("mul", c.map("mul", 0.5, root), root), c.map("div", 0.5, c.map("mul", root, root))
