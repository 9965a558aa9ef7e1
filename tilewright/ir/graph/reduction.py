"""Ops along axes: reductions, softmax, norms, running sums, sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import (
    AttrSizedOperandSegments,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Float, Int, Ints, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I1, I64
from tilewright.ir.graph.base import GraphOp, at_least_f32, tensor, without_axes
from tilewright.ir.scalars import SCALARS
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

REDUCTIONS = ("sum", "max", "min", "mean", "prod", "any", "all", "argmax", "argmin")
# per element: take the largest, subtract it, exponentiate, add up, divide
SOFTMAX_FLOPS = 4 + SCALARS["exp"].flops


@irdl_op_definition
class ReduceOp(GraphOp):
    """Axes folded by a function; over nothing it is the function's identity, narrow floats accumulate in f32.

    sum, prod: the operand's dtype, integers wrap. max, min: NaN if any is. mean: floats. any, all: i1. argmax, argmin:
    one axis, i64, the lowest index among equals, NaN counts as the extreme.
    """

    name = "graph.reduce"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    fn = prop_def(Str)
    axes = prop_def(Ints)
    keepdims = prop_def(Bool, default_value=Bool(False))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, fn = tensor(self.x), self.check_choice("fn", self.fn.data, REDUCTIONS)
        axes = self.check_axes(self.axes.data, x.rank)
        logical = fn in ("any", "all")
        if logical != (x.dtype == I1) or (fn == "mean" and not x.dtype.is_float):
            raise self.malformed(f"{fn} does not take {x.dtype}: cast first")
        if fn.startswith("arg") and len(axes) != 1:
            raise self.malformed(f"{fn} takes one axis, got {list(axes)}")
        dtype = I64 if fn.startswith("arg") else x.dtype
        return [TensorType.of(without_axes(x.dims, axes, keepdims=self.keepdims.data), dtype)]

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        axes, keep = self.axes.data, self.keepdims.data
        if self.fn.data in ("argmax", "argmin"):
            # a stable sort, because torch leaves open which of several equals argmax finds
            order = x.sort(dim=axes[0], descending=self.fn.data == "argmax", stable=True)
            found = first_extreme(x, order.indices, axes[0], largest=self.fn.data == "argmax")
            return found if keep else found.squeeze(axes[0])
        for axis in sorted(axes, reverse=True):
            x = fold(self.fn.data, x, axis)
        return x if keep else x.reshape([n for i, n in enumerate(x.shape) if i not in axes])

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.x).elements)


def fold(fn: str, x: torch.Tensor, axis: int) -> torch.Tensor:
    """One axis reduced to size 1; empty axes give the identity of the function."""
    import torch

    wide = at_least_f32(x)
    if fn in ("max", "min"):
        identity = extreme(x, largest=fn == "min")
        padded = torch.cat([x, x.new_full([1 if i == axis else n for i, n in enumerate(x.shape)], identity)], axis)
        return torch.amax(padded, axis, keepdim=True) if fn == "max" else torch.amin(padded, axis, keepdim=True)
    if fn == "any":
        return x.any(axis, keepdim=True)
    if fn == "all":
        return x.all(axis, keepdim=True)
    if fn == "prod":
        return wide.prod(axis, keepdim=True, dtype=wide.dtype).to(x.dtype)
    if fn == "mean":
        return wide.mean(axis, keepdim=True).to(x.dtype)
    return wide.sum(axis, keepdim=True, dtype=wide.dtype).to(x.dtype)


def extreme(x: torch.Tensor, *, largest: bool) -> float | int:
    """The largest or smallest value of a tensor's dtype; infinities for floats."""
    import torch

    if x.is_floating_point():
        return float("inf") if largest else float("-inf")
    info = torch.iinfo(x.dtype)
    return info.max if largest else info.min


def first_extreme(x: torch.Tensor, order: torch.Tensor, axis: int, *, largest: bool) -> torch.Tensor:
    """The first index of a stable order, or of the first NaN where there is one."""
    first = order.narrow(axis, 0, 1)
    if largest or not x.is_floating_point():
        return first
    # an ascending order puts NaN last, and argmin must find it
    nan = x.isnan()
    return nan.long().argmax(axis, keepdim=True).where(nan.any(axis, keepdim=True), first)


@irdl_op_definition
class SoftmaxOp(GraphOp):
    """exp(x - max) / sum along an axis, or its logarithm; inside in f32 or wider. A row of all -inf gives NaN."""

    name = "graph.softmax"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int)
    log = prop_def(Bool, default_value=Bool(False))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        self.check_axis(self.axis.data, x.rank)
        if not x.dtype.is_float:
            raise self.malformed(f"takes floats, got {x}")
        return [x]

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        wide = at_least_f32(x)
        found = wide.log_softmax(self.axis.data) if self.log.data else wide.softmax(self.axis.data)
        return found.to(x.dtype)

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.x).elements * SOFTMAX_FLOPS)


@irdl_op_definition
class NormOp(GraphOp):
    """Layer norm (x - mean) / sqrt(var + eps) or RMS norm x / sqrt(mean(x^2) + eps) over the last axis.

    Statistics are kept in f32 or wider; weight and bias are [last dim] of x's dtype; the result is rounded to that
    dtype once, after scaling.
    """

    name = "graph.norm"
    x = operand_def(TensorType)
    weight = opt_operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    out = result_def(TensorType)
    kind = prop_def(Str)
    eps = prop_def(Float)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        self.check_choice("kind", self.kind.data, ("layer", "rms"))
        if x.rank < 1 or not x.dtype.is_float:
            raise self.malformed(f"takes floats with one axis or more, got {x}")
        for what, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None and tensor(value) != TensorType.of(x.dims[-1:], x.dtype):
                raise self.malformed(f"{what} must be {TensorType.of(x.dims[-1:], x.dtype)}, got {tensor(value)}")
        return [x]

    def reference(
        self, x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = at_least_f32(x)
        if self.kind.data == "layer":
            y = y - y.mean(-1, keepdim=True)
        y = y / (y.square().mean(-1, keepdim=True) + self.eps.data).sqrt()
        if weight is not None:
            y = y * weight
        if bias is not None:
            y = y + bias
        return y.to(x.dtype)

    def cost(self) -> Cost:
        x = tensor(self.x)
        # square, add, scale; layer norm adds a sum and a subtraction; then one root and division a row
        per_element = 3 + (2 if self.kind.data == "layer" else 0)
        per_element += (self.weight is not None) + (self.bias is not None)
        return self.compulsory(vector=x.elements * per_element + without_last(x) * 4)


def without_last(x: TensorType) -> Expr:
    """The number of rows: elements of every axis but the last."""
    return TensorType.of(x.dims[:-1], x.dtype).elements


@irdl_op_definition
class CumulativeOp(GraphOp):
    """Running sum, product or maximum along an axis, each element included; narrow floats accumulate in f32."""

    name = "graph.cumulative"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    fn = prop_def(Str)
    axis = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        self.check_choice("fn", self.fn.data, ("sum", "prod", "max"))
        self.check_axis(self.axis.data, x.rank)
        if x.dtype == I1:
            raise self.malformed("does not take i1: cast first")
        return [x]

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        axis, wide = self.axis.data, at_least_f32(x)
        match self.fn.data:
            case "sum":
                return wide.cumsum(axis, dtype=wide.dtype).to(x.dtype)
            case "prod":
                return wide.cumprod(axis, dtype=wide.dtype).to(x.dtype)
            case _:
                return x.cummax(axis).values

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.x).elements)


@irdl_op_definition
class SortOp(GraphOp):
    """Values in order along an axis, and the i64 indices they had; stable, NaN counts as the largest."""

    name = "graph.sort"
    x = operand_def(TensorType)
    values = result_def(TensorType)
    indices = result_def(TensorType)
    axis = prop_def(Int)
    descending = prop_def(Bool, default_value=Bool(False))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        self.check_axis(self.axis.data, x.rank)
        return [x, TensorType.of(x.dims, I64)]

    def reference(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = x.sort(dim=self.axis.data, descending=self.descending.data, stable=True)
        return found.values, found.indices

    def cost(self) -> Cost:
        return self.compulsory()


@irdl_op_definition
class TopkOp(GraphOp):
    """The k largest along an axis in falling order, and their i64 indices; lowest index wins ties, NaN is largest."""

    name = "graph.topk"
    x = operand_def(TensorType)
    values = result_def(TensorType)
    indices = result_def(TensorType)
    k = prop_def(Int)
    axis = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, k = tensor(self.x), self.k.data
        axis = self.check_axis(self.axis.data, x.rank)
        size = x.dims[axis].constant
        if k < 0 or (size is not None and k > size):
            raise self.malformed(f"k = {k} of {x.dims[axis]} elements")
        dims = [Expr.of(k) if i == axis else d for i, d in enumerate(x.dims)]
        return [TensorType.of(dims, x.dtype), TensorType.of(dims, I64)]

    def reference(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        axis, k = self.axis.data, self.k.data
        if k > x.shape[axis]:
            raise self.malformed(f"k = {k} of {x.shape[axis]} elements")
        found = x.sort(dim=axis, descending=True, stable=True)
        return found.values.narrow(axis, 0, k), found.indices.narrow(axis, 0, k)

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.x).elements)


REDUCTION = [ReduceOp, SoftmaxOp, NormOp, CumulativeOp, SortOp, TopkOp]
