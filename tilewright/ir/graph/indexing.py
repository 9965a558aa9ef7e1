"""Ops that read or write elements at places given by integer tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Int, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.scalars import SCALARS
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

MODES = ("set", "add", "mul", "max", "min")
"""What happens to an element that an update meets: it is replaced, or becomes this function of both."""


class IndexingOp(GraphOp):
    """Shared by the ops with an index tensor into one axis; an index below 0 or past the end never wraps."""

    def check_indices(self, indices: TensorType) -> TensorType:
        """Index tensors hold signed or unsigned integers."""
        if not indices.dtype.is_integer:
            raise self.malformed(f"indices must be integers, got {indices}")
        return indices

    def check_range(self, indices: torch.Tensor, size: int) -> torch.Tensor:
        """The indices as i64, after looking at every one."""
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= size):
            raise self.malformed(f"indices from {int(indices.min())} to {int(indices.max())} into an axis of {size}")
        return indices.long()


@irdl_op_definition
class GatherOp(IndexingOp):
    """Slices of x at indices along an axis: x.dims[:axis] + indices.dims + x.dims[axis+1:]; in range by contract."""

    name = "graph.gather"
    x = operand_def(TensorType)
    indices = operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int, default_value=Int(0))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, indices = tensor(self.x), self.check_indices(tensor(self.indices))
        axis = self.check_axis(self.axis.data, x.rank)
        return [TensorType.of((*x.dims[:axis], *indices.dims, *x.dims[axis + 1 :]), x.dtype)]

    def reference(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        axis = self.axis.data
        flat = self.check_range(indices, x.shape[axis]).reshape(-1)
        return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])

    def cost(self) -> Cost:
        # only the gathered slices are read
        out = tensor(self.out).bytes
        return Cost.of(read=out + tensor(self.indices).bytes, write=out)


@irdl_op_definition
class TakeAlongOp(IndexingOp):
    """One element per index along an axis, out[i,j,k] = x[i,indices[i,j,k],k]; the other dims of both are equal."""

    name = "graph.take_along"
    x = operand_def(TensorType)
    indices = operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, indices = tensor(self.x), self.check_indices(tensor(self.indices))
        check_aligned(self, x, indices, self.check_axis(self.axis.data, x.rank))
        return [TensorType.of(indices.dims, x.dtype)]

    def reference(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return x.gather(self.axis.data, self.check_range(indices, x.shape[self.axis.data]))

    def cost(self) -> Cost:
        out = tensor(self.out).bytes
        return Cost.of(read=out + tensor(self.indices).bytes, write=out)


@irdl_op_definition
class ScatterOp(IndexingOp):
    """x with slices written at indices along an axis, or combined with what is there; updates come in order.

    Indices are as gather reads them; of equal ones the last that is set wins.
    """

    name = "graph.scatter"
    x = operand_def(TensorType)
    indices = operand_def(TensorType)
    updates = operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int, default_value=Int(0))
    mode = prop_def(Str, default_value=Str("set"))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, indices, updates = tensor(self.x), self.check_indices(tensor(self.indices)), tensor(self.updates)
        axis = self.check_axis(self.axis.data, x.rank)
        self.check_choice("mode", self.mode.data, MODES)
        expected = TensorType.of((*x.dims[:axis], *indices.dims, *x.dims[axis + 1 :]), x.dtype)
        if updates != expected:
            raise self.malformed(f"updates of {x} at {indices} must be {expected}, got {updates}")
        return [x]

    def reference(self, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        axis, out = self.axis.data, x.clone()
        flat = self.check_range(indices, x.shape[axis]).reshape(-1)
        slices = updates.reshape(*x.shape[:axis], flat.numel(), *x.shape[axis + 1 :])
        for i, place in enumerate(flat.tolist()):
            met, new = out.select(axis, place), slices.select(axis, i)
            met.copy_(new if self.mode.data == "set" else SCALARS[self.mode.data].torch(met, new))
        return out

    def cost(self) -> Cost:
        worked = Expr.of(0) if self.mode.data == "set" else tensor(self.updates).elements
        return self.compulsory(vector=worked)


@irdl_op_definition
class PutAlongOp(IndexingOp):
    """x with one element per index written along an axis, or combined with what is there; updates come in order.

    Indices are as take_along reads them; of equal ones the last that is set wins.
    """

    name = "graph.put_along"
    x = operand_def(TensorType)
    indices = operand_def(TensorType)
    updates = operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int)
    mode = prop_def(Str, default_value=Str("set"))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, indices, updates = tensor(self.x), self.check_indices(tensor(self.indices)), tensor(self.updates)
        self.check_choice("mode", self.mode.data, MODES)
        check_aligned(self, x, indices, self.check_axis(self.axis.data, x.rank))
        if updates != TensorType.of(indices.dims, x.dtype):
            raise self.malformed(f"updates must be {x.dtype} with the dims of {indices}, got {updates}")
        return [x]

    def reference(self, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        axis, out = self.axis.data, x.clone()
        places = self.check_range(indices, x.shape[axis])
        for i in range(places.shape[axis]):
            # one index per lane at a time, so that what wins among equals is defined
            at, new = places.narrow(axis, i, 1), updates.narrow(axis, i, 1)
            if self.mode.data != "set":
                new = SCALARS[self.mode.data].torch(out.gather(axis, at), new)
            out = out.scatter(axis, at, new)
        return out

    def cost(self) -> Cost:
        worked = Expr.of(0) if self.mode.data == "set" else tensor(self.updates).elements
        return self.compulsory(vector=worked)


def check_aligned(op: IndexingOp, x: TensorType, indices: TensorType, axis: int) -> None:
    """Indices along an axis have x's rank and, off the axis, x's dims."""
    sides = [(a, b) for i, (a, b) in enumerate(zip(x.dims, indices.dims, strict=False)) if i != axis]
    if x.rank != indices.rank or any(a != b for a, b in sides):
        raise op.malformed(f"{indices} must have the dims of {x} except along axis {axis}")


INDEXING = [GatherOp, TakeAlongOp, ScatterOp, PutAlongOp]
