"""Ops that read or write elements at places given by integer tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Int, Str
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
        return [_slices_fit(self, self.x, self.indices, self.updates)]

    def reference(self, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        return _slices_put(self, x, indices, updates)

    def cost(self) -> Cost:
        worked = Expr.of(0) if self.mode.data == "set" else tensor(self.updates).elements
        return self.compulsory(vector=worked)


@irdl_op_definition
class StateUpdateOp(IndexingOp):
    """graph.scatter (or `along`: graph.put_along) in place: the state's next value, in the same memory.

    `state` is a value that graph.state_read gave, or another update of it. As a value it is what it was: whatever reads
    it runs before the update, and where that cannot be, lower-to-tile makes a copy, which is a kernel that counts. Only
    a value that is written back to its own state (graph.state_write of the last update) can change in place; any other
    is copied first.
    """

    name = "graph.state_update"
    state = operand_def(TensorType)
    indices = operand_def(TensorType)
    updates = operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int, default_value=Int(0))
    mode = prop_def(Str, default_value=Str("set"))
    along = prop_def(Bool, default_value=Bool(False))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        fit = _elements_fit if self.along.data else _slices_fit
        return [fit(self, self.state, self.indices, self.updates)]

    def reference(self, state: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        put = _elements_put if self.along.data else _slices_put
        return put(self, state, indices, updates)

    def cost(self) -> Cost:
        """The indices and what is written; what is added to is read, too."""
        given, indices = tensor(self.updates), tensor(self.indices).bytes
        if self.mode.data == "set":
            return Cost.of(read=given.bytes + indices, write=given.bytes)
        return Cost.of(vector=given.elements, read=given.bytes * 2 + indices, write=given.bytes)


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
        return [_elements_fit(self, self.x, self.indices, self.updates)]

    def reference(self, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        return _elements_put(self, x, indices, updates)

    def cost(self) -> Cost:
        worked = Expr.of(0) if self.mode.data == "set" else tensor(self.updates).elements
        return self.compulsory(vector=worked)


def _slices_fit(op: ScatterOp | StateUpdateOp, into: SSAValue, indices: SSAValue, updates: SSAValue) -> TensorType:
    """The type of what slices are put into, after a look at the slices."""
    x, at, given = tensor(into), op.check_indices(tensor(indices)), tensor(updates)
    axis = op.check_axis(op.axis.data, x.rank)
    op.check_choice("mode", op.mode.data, MODES)
    expected = TensorType.of((*x.dims[:axis], *at.dims, *x.dims[axis + 1 :]), x.dtype)
    if given != expected:
        raise op.malformed(f"updates of {x} at {at} must be {expected}, got {given}")
    return x


def _slices_put(
    op: ScatterOp | StateUpdateOp, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor
) -> torch.Tensor:
    """x with one slice after the other set or combined."""
    axis, out = op.axis.data, x.clone()
    flat = op.check_range(indices, x.shape[axis]).reshape(-1)
    slices = updates.reshape(*x.shape[:axis], flat.numel(), *x.shape[axis + 1 :])
    for i, place in enumerate(flat.tolist()):
        met, new = out.select(axis, place), slices.select(axis, i)
        met.copy_(new if op.mode.data == "set" else SCALARS[op.mode.data].torch(met, new))
    return out


def _elements_fit(op: PutAlongOp | StateUpdateOp, into: SSAValue, indices: SSAValue, updates: SSAValue) -> TensorType:
    """The type of what elements are put into, after a look at the elements."""
    x, at, given = tensor(into), op.check_indices(tensor(indices)), tensor(updates)
    op.check_choice("mode", op.mode.data, MODES)
    check_aligned(op, x, at, op.check_axis(op.axis.data, x.rank))
    if given != TensorType.of(at.dims, x.dtype):
        raise op.malformed(f"updates must be {x.dtype} with the dims of {at}, got {given}")
    return x


def _elements_put(
    op: PutAlongOp | StateUpdateOp, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor
) -> torch.Tensor:
    """x with one element an index set or combined."""
    axis, out = op.axis.data, x.clone()
    places = op.check_range(indices, x.shape[axis])
    for i in range(places.shape[axis]):
        # one index per lane at a time, so that what wins among equals is defined
        at, new = places.narrow(axis, i, 1), updates.narrow(axis, i, 1)
        if op.mode.data != "set":
            new = SCALARS[op.mode.data].torch(out.gather(axis, at), new)
        out = out.scatter(axis, at, new)
    return out


def check_aligned(op: IndexingOp, x: TensorType, indices: TensorType, axis: int) -> None:
    """Indices along an axis have x's rank and, off the axis, x's dims."""
    sides = [(a, b) for i, (a, b) in enumerate(zip(x.dims, indices.dims, strict=False)) if i != axis]
    if x.rank != indices.rank or any(a != b for a, b in sides):
        raise op.malformed(f"{indices} must have the dims of {x} except along axis {axis}")


INDEXING = [GatherOp, TakeAlongOp, ScatterOp, StateUpdateOp, PutAlongOp]
