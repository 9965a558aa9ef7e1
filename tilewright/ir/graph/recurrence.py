"""Linear recurrences over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Int
from tilewright.ir.cost import Cost
from tilewright.ir.graph.base import GraphOp, at_least_f32, broadcast_dims, tensor, without_axes
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class ScanOp(GraphOp):
    """The linear recurrence h[t] = a[t] * h[t-1] + b[t] along an axis; a broadcasts to b, h starts at h0 or 0.

    h0 has b's dims without the axis. All operands have one float dtype; h is carried in f32 or wider.
    """

    name = "graph.scan"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    h0 = opt_operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        a, b = tensor(self.a), tensor(self.b)
        axis = self.check_axis(self.axis.data, b.rank)
        if a.dtype != b.dtype or not b.dtype.is_float:
            raise self.malformed(f"a and b must be floats of one dtype, got {a} and {b}")
        if broadcast_dims(self, a.dims, b.dims) != b.dims:
            raise self.malformed(f"a {a} does not broadcast to b {b}")
        start = TensorType.of(without_axes(b.dims, [axis]), b.dtype)
        if self.h0 is not None and tensor(self.h0) != start:
            raise self.malformed(f"h0 must be {start}, got {tensor(self.h0)}")
        return [b]

    def reference(self, a: torch.Tensor, b: torch.Tensor, h0: torch.Tensor | None = None) -> torch.Tensor:
        axis = self.axis.data
        factors, terms = at_least_f32(a).expand(b.shape), at_least_f32(b)
        out = terms.clone()
        h = out.new_zeros([n for i, n in enumerate(b.shape) if i != axis]) if h0 is None else at_least_f32(h0)
        for t in range(b.shape[axis]):
            h = factors.select(axis, t) * h + terms.select(axis, t)
            out.select(axis, t).copy_(h)
        return out.to(b.dtype)

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.b).elements * 2)


RECURRENCE: list[type[GraphOp]] = [ScanOp]
