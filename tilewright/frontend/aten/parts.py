"""Writing into a slice of a tensor. Of a state, only the slice is written, or what was put into the slice before."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.combining import concat
from tilewright.frontend.aten.indexing import put_at
from tilewright.frontend.builder import Builder, axis_of
from tilewright.frontend.registry import lowers
from tilewright.frontend.slicing import bound
from tilewright.frontend.state_updates import state_of
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import ScatterOp
from tilewright.ir.graph.shape import ReshapeOp, SliceOp


@lowers("aten.slice_scatter.default")
def slice_scatter(
    c: Builder, self: SSAValue, src: SSAValue, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    size = tensor(self).dims[axis]
    first = bound(c.symbols, start, size, default=Expr.of(0), where=c.place)
    if first.constant == 0 and tensor(src).dims[axis] == size:
        return c.cast(src, tensor(self).dtype)
    if step == 1 and state_of(self) is not None:
        return _state_slice(c, self, src, axis, first, src)
    if step != 1:
        # as many places as there are updates, so that slices without an element need no case of their own
        places = c.iota([tensor(src).dims[axis]], 0, start=first, step=step)
        return c.emit(ScatterOp, self, places, c.cast(src, tensor(self).dtype), axis=axis, mode="set")
    return _replaced(c, self, src, axis, first, first + tensor(src).dims[axis])


@lowers("aten.select_scatter.default")
def select_scatter(c: Builder, self: SSAValue, src: SSAValue, dim: int, index: Any) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    size = tensor(self).dims[axis]
    at = Expr.of(index)
    if at.constant is not None and at.constant < 0:
        at = at + size
    row = c.reshape(src, [Expr.of(1) if i == axis else d for i, d in enumerate(tensor(self).dims)])
    if size.constant == 1:
        # the only one there is
        return c.cast(row, tensor(self).dtype)
    if state_of(self) is not None:
        return _state_slice(c, self, row, axis, at, src)
    return _replaced(c, self, row, axis, at, at + 1)


def _state_slice(c: Builder, x: SSAValue, part: SSAValue, axis: int, start: Expr, src: SSAValue) -> SSAValue:
    """A state with part of an axis replaced from `start` on. src: the part as given, with the axis or without it."""
    size, dropped = tensor(part).dims[axis], tensor(src).rank < tensor(x).rank
    puts: list[ScatterOp] = []
    base = src
    while isinstance(base.owner, ScatterOp):
        puts.insert(0, base.owner)
        base = base.owner.x
    whole = base.owner.x if isinstance(base.owner, ReshapeOp) and dropped else base
    if not puts or not _is_slice(whole, x, axis, start, size):
        places = c.iota([size], 0, start=start)
        return c.emit(ScatterOp, x, places, c.cast(part, tensor(x).dtype), axis=axis, mode="set")
    for op in puts:
        x = _put_within(c, x, op, axis, start, size, dropped=dropped)
    return x


def _is_slice(value: SSAValue, x: SSAValue, axis: int, start: Expr, size: Expr) -> bool:
    """Whether a value is x from `start` on along one axis, and whole along the others."""
    op = value.owner
    if not isinstance(op, SliceOp) or op.x is not x or any(step != 1 for step in op.steps.data):
        return False
    dims = tensor(x).dims
    starts = [start if i == axis else Expr.of(0) for i in range(len(dims))]
    stops = [start + size if i == axis else d for i, d in enumerate(dims)]
    return list(op.starts.data) == starts and list(op.stops.data) == stops


def _put_within(
    c: Builder, x: SSAValue, op: ScatterOp, axis: int, start: Expr, size: Expr, *, dropped: bool
) -> SSAValue:
    """x with what a scatter puts into its slice from `start` on (which has no such axis if `dropped`)."""
    at, updates = op.axis.data, op.updates
    picks = tensor(op.indices).rank
    indices = c.cast(op.indices, I64)
    own = at + 1 if dropped and at >= axis else at
    if own == axis:
        return put_at(c, x, {axis: c.map("add", indices, start, dtype=I64)}, updates, op.mode.data)
    # where the slice's axis stands among the axes of updates, in which the indices' are in place of their own
    place = axis if axis < own else axis - 1 + picks
    if dropped:
        dims = tensor(updates).dims
        updates = c.reshape(updates, [*dims[:place], Expr.of(1), *dims[place:]])
    indexed = list(range(own, own + picks))
    others = [i for i in range(tensor(updates).rank) if i != place and i not in indexed]
    lead = min(axis, own)
    updates = c.transpose(updates, [*others[:lead], place, *indexed, *others[lead:]])
    along = c.reshape(c.iota([size], 0, start=start), [size, *[1] * picks])
    return put_at(c, x, {axis: along, own: indices}, updates, op.mode.data)


def _replaced(c: Builder, x: SSAValue, part: SSAValue, axis: int, start: Expr, stop: Expr) -> SSAValue:
    """x with start..stop of an axis replaced."""
    part = c.cast(part, tensor(x).dtype)
    parts = [c.slice(x, axis, 0, start), part, c.slice(x, axis, stop, tensor(x).dims[axis])]
    return concat(c, parts, axis)
