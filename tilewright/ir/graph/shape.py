"""Ops that rearrange or pick elements: no arithmetic, only where each element comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, traits_def, var_operand_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Dims, Float, Int, Ints
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr, ceildiv, product
from tilewright.ir.graph.base import GraphOp, Setting, may_equal, show, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class ReshapeOp(GraphOp):
    """The same elements in row-major order under other dims."""

    name = "graph.reshape"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    dims = prop_def(Dims)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        if not may_equal(x.elements, product(self.dims.data)):
            raise self.malformed(f"{x} has {x.elements} elements, {show(self.dims.data)} has {product(self.dims.data)}")
        return [TensorType.of(self.dims.data, x.dtype)]

    def evaluate(self, setting: Setting, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(setting.shape(self.dims.data))


@irdl_op_definition
class TransposeOp(GraphOp):
    """Axes in another order: axis i of the result is axis permutation[i] of x."""

    name = "graph.transpose"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    permutation = prop_def(Ints)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, order = tensor(self.x), self.permutation.data
        if sorted(order) != list(range(x.rank)):
            raise self.malformed(f"{list(order)} is not a permutation of the {x.rank} axes of {x}")
        return [TensorType.of([x.dims[axis] for axis in order], x.dtype)]

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.permutation.data)

    def cost(self) -> Cost:
        return self.compulsory()


@irdl_op_definition
class BroadcastOp(GraphOp):
    """x stretched to dims as in NumPy: axes of size 1 repeat, and new axes may lead."""

    name = "graph.broadcast"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    dims = prop_def(Dims)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, dims = tensor(self.x), self.dims.data
        aligned = dims[len(dims) - x.rank :]
        if len(dims) < x.rank or any(a != b and a.constant != 1 for a, b in zip(x.dims, aligned, strict=True)):
            raise self.malformed(f"{x} does not broadcast to {show(dims)}")
        return [TensorType.of(dims, x.dtype)]

    def evaluate(self, setting: Setting, x: torch.Tensor) -> torch.Tensor:
        return x.expand(setting.shape(self.dims.data))

    def cost(self) -> Cost:
        return self.compulsory()


@irdl_op_definition
class SliceOp(GraphOp):
    """Elements starts, starts + steps, ... below stops of every axis; 0 <= start <= stop <= size and steps >= 1."""

    name = "graph.slice"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    starts = prop_def(Dims)
    stops = prop_def(Dims)
    steps = prop_def(Ints, default_value=Ints(()))
    traits = traits_def(Pure())

    @property
    def strides(self) -> tuple[int, ...]:
        """One step per axis; none given means all 1."""
        return self.steps.data or (1,) * len(self.starts.data)

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        starts, stops, steps = self.starts.data, self.stops.data, self.strides
        if not len(starts) == len(stops) == len(steps) == x.rank:
            raise self.malformed(
                f"{x} needs {x.rank} starts, stops and steps, got {len(starts)}, {len(stops)} and {len(steps)}"
            )
        for axis, (start, stop, step, size) in enumerate(zip(starts, stops, steps, x.dims, strict=True)):
            below = ((start, Expr.of(0)), (stop, start), (size, stop))
            gaps = [(a - b).constant for a, b in below]
            if step < 1 or any(gap is not None and gap < 0 for gap in gaps):
                raise self.malformed(f"axis {axis} of {x}: {start}..{stop} by {step} is not a range inside it")
        dims = [ceildiv(stop - start, step) for start, stop, step in zip(starts, stops, steps, strict=True)]
        return [TensorType.of(dims, x.dtype)]

    def evaluate(self, setting: Setting, x: torch.Tensor) -> torch.Tensor:
        starts, stops = setting.shape(self.starts.data), setting.shape(self.stops.data)
        for axis, (start, stop, size) in enumerate(zip(starts, stops, x.shape, strict=True)):
            if not 0 <= start <= stop <= size:
                raise self.malformed(f"axis {axis}: {start}..{stop} is not a range inside its {size} elements")
        return x[tuple(slice(*bounds) for bounds in zip(starts, stops, self.strides, strict=True))]

    def cost(self) -> Cost:
        # only the elements that are taken move
        moved = tensor(self.out).bytes
        return Cost.of(read=moved, write=moved)


@irdl_op_definition
class ConcatOp(GraphOp):
    """Tensors one after another along an axis."""

    name = "graph.concat"
    xs = var_operand_def(TensorType)
    out = result_def(TensorType)
    axis = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        types = [tensor(x) for x in self.xs]
        if not types:
            raise self.malformed("needs one operand or more")
        first, axis = types[0], self.check_axis(self.axis.data, types[0].rank)
        for other in types[1:]:
            sides = [(a, b) for i, (a, b) in enumerate(zip(first.dims, other.dims, strict=False)) if i != axis]
            if other.rank != first.rank or other.dtype != first.dtype or any(a != b for a, b in sides):
                raise self.malformed(f"{other} does not continue {first} along axis {axis}")
        length = sum((t.dims[axis] for t in types), Expr.of(0))
        return [TensorType.of([length if i == axis else d for i, d in enumerate(first.dims)], first.dtype)]

    def reference(self, *xs: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.cat(xs, self.axis.data)

    def cost(self) -> Cost:
        moved = tensor(self.out).bytes
        return Cost.of(read=moved, write=moved)


@irdl_op_definition
class PadOp(GraphOp):
    """x with `low` elements of `value` before and `high` after it on every axis; none may be negative."""

    name = "graph.pad"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    low = prop_def(Dims)
    high = prop_def(Dims)
    value = prop_def(Float, default_value=Float(0.0))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, low, high = tensor(self.x), self.low.data, self.high.data
        if not len(low) == len(high) == x.rank:
            raise self.malformed(f"{x} needs {x.rank} amounts on each side, got {len(low)} and {len(high)}")
        for amount in (*low, *high):
            if amount.constant is not None and amount.constant < 0:
                raise self.malformed(f"cannot pad by {amount}: a slice removes elements")
        return [TensorType.of([a + d + b for a, d, b in zip(low, x.dims, high, strict=True)], x.dtype)]

    def evaluate(self, setting: Setting, x: torch.Tensor) -> torch.Tensor:
        low, high = setting.shape(self.low.data), setting.shape(self.high.data)
        if min((*low, *high), default=0) < 0:
            raise self.malformed(f"cannot pad by {list(low)} and {list(high)}: a slice removes elements")
        out = x.new_full([a + n + b for a, n, b in zip(low, x.shape, high, strict=True)], self.value.data)
        out[tuple(slice(a, a + n) for a, n in zip(low, x.shape, strict=True))] = x
        return out

    def cost(self) -> Cost:
        return self.compulsory()


SHAPE = [ReshapeOp, TransposeOp, BroadcastOp, SliceOp, ConcatOp, PadOp]
