"""Comparisons, and logic on their results and on bits."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.dtypes import I1
from tilewright.ir.graph.base import tensor

_SCALAR_AND_TENSOR = ("Tensor", "Scalar")


def _compare(c: Builder, fn: str, self: Any, other: Any) -> SSAValue:
    """Operands meet in the dtype torch compares in, numbers rounded to it; the order of i1 is that of 0 and 1."""
    dtype = c.common_dtype(*c.node.args[:2])
    return c.map(fn, c.operand(self, dtype), c.operand(other, dtype), dtype=dtype)


def _register() -> None:
    for fn in ("eq", "ne", "lt", "le", "gt", "ge"):
        for overload in _SCALAR_AND_TENSOR:
            lowers(f"aten.{fn}.{overload}")(lambda c, self, other, fn=fn: _compare(c, fn, self, other))
    for fn in ("and", "or", "xor"):
        lowers(f"aten.logical_{fn}.default")(lambda c, self, other, fn=fn: c.map(fn, self, other, dtype=I1))
        for overload in _SCALAR_AND_TENSOR:
            lowers(f"aten.bitwise_{fn}.{overload}", f"aten.__{fn}__.{overload}")(
                lambda c, self, other, fn=fn: c.map(fn, self, other)
            )
    for operator, fn in (("bitwise_left_shift", "shl"), ("bitwise_right_shift", "shr")):
        lowers(f"aten.{operator}.Tensor", f"aten.{operator}.Tensor_Scalar")(
            lambda c, self, other, fn=fn: c.map(fn, self, other)
        )
    for operator, fn in (("__lshift__", "shl"), ("__rshift__", "shr")):
        lowers(f"aten.{operator}.Tensor", f"aten.{operator}.Scalar")(
            lambda c, self, other, fn=fn: c.map(fn, self, other)
        )


_register()


@lowers("aten.logical_not.default")
def logical_not(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("not", self, dtype=I1)


@lowers("aten.bitwise_not.default")
def bitwise_not(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("not", self)


@lowers("aten.isnan.default")
def isnan(c: Builder, self: SSAValue) -> SSAValue:
    return _of_floats(c, "isnan", self, otherwise=False)


@lowers("aten.isinf.default")
def isinf(c: Builder, self: SSAValue) -> SSAValue:
    return _of_floats(c, "isinf", self, otherwise=False)


@lowers("aten.isfinite.default")
def isfinite(c: Builder, self: SSAValue) -> SSAValue:
    if not tensor(self).dtype.is_float:
        return c.full(True, c.result.dims, I1)
    dtype = tensor(self).dtype
    strange = c.map("or", c.map("isnan", self, dtype=dtype), c.map("isinf", self, dtype=dtype), dtype=I1)
    return c.map("not", strange, dtype=I1)


def _of_floats(c: Builder, fn: str, x: SSAValue, *, otherwise: bool) -> SSAValue:
    dtype = tensor(x).dtype
    return c.map(fn, x, dtype=dtype) if dtype.is_float else c.full(otherwise, c.result.dims, I1)
