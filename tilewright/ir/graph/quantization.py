"""Quantization: floats to scaled integers and back, with one scale per group of elements along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Int, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import ceildiv
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.graph.base import GraphOp, Setting, at_least_f32, may_equal, tensor
from tilewright.ir.graph.structure import integer_range
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


class ScaledOp(GraphOp):
    """Shared by quantize and dequantize: which scale belongs to which element.

    Scale and zero point have the rank of the tensor. Along `axis` they have one entry per `group` elements (the last
    group may be shorter), or one entry in all when group is 0; along any other axis they have the tensor's size or 1.
    """

    def check_scales(self, x: TensorType, scale: TensorType, zero_point: TensorType | None, integers: DType) -> None:
        """Raises where scale or zero point do not fit x under this op's axis and group."""
        axis, group = self.check_axis(self._axis(), x.rank), self._group()
        if group < 0:
            raise self.malformed(f"group {group} is negative")
        if not scale.dtype.is_float or scale.rank != x.rank:
            raise self.malformed(f"scale must be floats of rank {x.rank}, got {scale}")
        for i, (size, given) in enumerate(zip(x.dims, scale.dims, strict=True)):
            wanted = (ceildiv(size, group) if group else 1) if i == axis else size
            if given != wanted and (i == axis or given.constant != 1) and not may_equal(given, wanted):
                raise self.malformed(f"scale {scale} has {given} entries along axis {i} of {x}, {wanted} are needed")
        if zero_point is not None and zero_point != TensorType.of(scale.dims, integers):
            raise self.malformed(f"zero_point must be {TensorType.of(scale.dims, integers)}, got {zero_point}")

    def spread(self, per_group: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """One entry per element, from one entry per group."""
        axis, group = self._axis(), self._group()
        if group:
            per_group = per_group.repeat_interleave(group, axis).narrow(axis, 0, shape[axis])
        return per_group.expand(*shape)

    def _axis(self) -> int:
        axis: Int = self.properties["axis"]  # type: ignore[assignment]
        return axis.data

    def _group(self) -> int:
        group: Int = self.properties["group"]  # type: ignore[assignment]
        return group.data


@irdl_op_definition
class QuantizeOp(ScaledOp):
    """clamp(round(x / scale) + zero_point) in an integer dtype; halves go to even, a scale per group along an axis."""

    name = "graph.quantize"
    x = operand_def(TensorType)
    scale = operand_def(TensorType)
    zero_point = opt_operand_def(TensorType)
    out = result_def(TensorType)
    dtype = prop_def(Str, default_value=Str("i8"))
    axis = prop_def(Int)
    group = prop_def(Int, default_value=Int(0))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, dtype = tensor(self.x), DTYPES.get(self.dtype.data)
        if dtype is None or not dtype.is_integer or not x.dtype.is_float:
            raise self.malformed(f"takes floats to an integer dtype, got {x} and {self.dtype.data!r}")
        zero_point = None if self.zero_point is None else tensor(self.zero_point)
        self.check_scales(x, tensor(self.scale), zero_point, dtype)
        return [TensorType.of(x.dims, dtype)]

    def reference(self, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None) -> torch.Tensor:
        dtype = DTYPES[self.dtype.data]
        scaled = (at_least_f32(x) / self.spread(at_least_f32(scale), x.shape)).round()
        if zero_point is not None:
            scaled = scaled + self.spread(zero_point, x.shape)
        return scaled.clamp(*integer_range(dtype)).to(Setting().torch(dtype))

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.x).elements * 4)


@irdl_op_definition
class DequantizeOp(ScaledOp):
    """(q - zero_point) * scale as floats, one scale per group of elements along an axis."""

    name = "graph.dequantize"
    q = operand_def(TensorType)
    scale = operand_def(TensorType)
    zero_point = opt_operand_def(TensorType)
    out = result_def(TensorType)
    dtype = prop_def(Str, default_value=Str("f32"))
    axis = prop_def(Int)
    group = prop_def(Int, default_value=Int(0))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        q, dtype = tensor(self.q), DTYPES.get(self.dtype.data)
        if dtype is None or not dtype.is_float or not q.dtype.is_integer:
            raise self.malformed(f"takes integers to a float dtype, got {q} and {self.dtype.data!r}")
        zero_point = None if self.zero_point is None else tensor(self.zero_point)
        self.check_scales(q, tensor(self.scale), zero_point, q.dtype)
        return [TensorType.of(q.dims, dtype)]

    def evaluate(
        self, setting: Setting, q: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None
    ) -> torch.Tensor:
        wide = at_least_f32(scale)
        # integers first: the difference is exact
        steps = q if zero_point is None else q.long() - self.spread(zero_point, q.shape).long()
        return (steps.to(wide.dtype) * self.spread(wide, q.shape)).to(setting.torch(DTYPES[self.dtype.data]))

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.q).elements * 2)


QUANTIZATION = [QuantizeOp, DequantizeOp]
