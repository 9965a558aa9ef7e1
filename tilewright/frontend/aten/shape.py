"""Views and copies: reshapes, permutations, slices, and the operators that change nothing."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder, axes_of, axis_of
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.frontend.slicing import bound, from_the_front
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.structure import IotaOp


@lowers(
    "aten.alias.default", "aten.detach.default", "aten.clone.default", "aten.contiguous.default",
    "aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.lift.default", "aten.positive.default",
    "aten.alias_copy.default", "aten.resolve_conj.default", "aten.resolve_neg.default", "aten.pin_memory.default",
)  # fmt: skip
def same(c: Builder, self: SSAValue, *_: Any, **__: Any) -> SSAValue:
    return self


@lowers(
    "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten.to.other", "aten._to_copy.default",
    "aten.type_as.default", "aten.to.prim_Device", "aten.float.default", "aten.bool.default",
    "prims.convert_element_type.default",
)  # fmt: skip
def to(c: Builder, self: SSAValue, *_: Any, **__: Any) -> SSAValue:
    """A copy in another dtype; where it lives is not the graph's concern."""
    return c.cast(self, c.result.dtype)


@lowers(
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten._reshape_alias.default",
    "aten.view_as.default", "aten.reshape_as.default", "aten.unsqueeze.default", "aten.flatten.using_ints",
    "aten.unflatten.int", "aten.ravel.default", "aten.view_copy.default", "aten.unsqueeze_copy.default",
    "aten.reshape_copy.default", "aten.atleast_1d.default", "aten.atleast_2d.default",
)  # fmt: skip
def reshape(c: Builder, self: SSAValue, *_: Any, **__: Any) -> SSAValue:
    """Every view that keeps row-major order: torch has worked out the dims."""
    return c.reshape(self, c.result.dims)


@lowers(
    "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze_copy.default",
    "aten.squeeze_copy.dim", "aten.squeeze_copy.dims",
)  # fmt: skip
def squeeze(c: Builder, self: SSAValue, dim: Any = None) -> SSAValue:
    """A varying axis stays, as torch has worked out the dims, so its size must not be 1."""
    for axis in axes_of(dim, tensor(self).rank):
        size = tensor(self).dims[axis]
        if size.constant is None:
            c.symbols.require(size, "!=", Expr.of(1), c.place)
    return c.reshape(self, c.result.dims)


@lowers("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default", "aten.expand_copy.default")
def expand(c: Builder, self: SSAValue, *_: Any, **__: Any) -> SSAValue:
    return c.broadcast(self, c.result.dims)


@lowers("aten.permute.default", "aten.permute_copy.default")
def permute(c: Builder, self: SSAValue, dims: list[int]) -> SSAValue:
    return c.transpose(self, [axis_of(d, tensor(self).rank) for d in dims])


@lowers("aten.transpose.int", "aten.transpose_copy.int", "aten.swapaxes.default", "aten.swapdims.default")
def transpose(c: Builder, self: SSAValue, dim0: int, dim1: int) -> SSAValue:
    rank = tensor(self).rank
    return c.swap(self, axis_of(dim0, rank), axis_of(dim1, rank)) if rank else self


@lowers("aten.t.default", "aten.numpy_T.default", "aten.t_copy.default")
def reverse_axes(c: Builder, self: SSAValue) -> SSAValue:
    return c.transpose(self, tuple(reversed(range(tensor(self).rank))))


@lowers("aten.mT.default", "aten.adjoint.default", "aten.mH.default")
def matrix_transpose(c: Builder, self: SSAValue) -> SSAValue:
    rank = tensor(self).rank
    return c.swap(self, rank - 2, rank - 1)


@lowers("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int", "aten.moveaxis.intlist")
def movedim(c: Builder, self: SSAValue, source: Any, destination: Any) -> SSAValue:
    rank = tensor(self).rank
    origins, targets = axes_of(source, rank), axes_of(destination, rank)
    order = [axis for axis in range(rank) if axis not in origins]
    for target, origin in sorted(zip(targets, origins, strict=True)):
        order.insert(target, origin)
    return c.transpose(self, order)


@lowers("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slice_(c: Builder, self: SSAValue, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> SSAValue:
    rank = tensor(self).rank
    axis = axis_of(dim, rank)
    size = tensor(self).dims[axis]
    first = bound(c.symbols, start, size, default=Expr.of(0), where=c.place)
    length = c.result.dims[axis]
    counted = _sliced_count(c, self, axis, first, length, step)
    if counted is not None:
        return counted
    stop = first + length if step == 1 else bound(c.symbols, end, size, default=size, where=c.place)
    if isinstance(length.constant, int) and step != 1:
        stop = first + max(0, (length.constant - 1) * step + 1)
    return c.slice(self, axis, first, stop, step)


def _sliced_count(c: Builder, x: SSAValue, axis: int, first: Expr, length: Expr, step: int) -> SSAValue | None:
    """Part of a counting tensor counts too: a table 0..511 cut to the call's tokens is their positions."""
    iota, start = x.owner, first.constant
    if not isinstance(iota, IotaOp) or step != 1 or start is None or iota.axis.data != axis:
        return None
    if any(d.constant != 1 for i, d in enumerate(tensor(x).dims) if i != axis):
        return None
    base = iota.start.data[0].constant
    if base is None:
        return None
    counted = c.count(length, base + start * iota.step.data, iota.step.data, tensor(x).dtype)
    return c.reshape(counted, c.result.dims)


@lowers("aten.narrow.default", "aten.narrow_copy.default")
def narrow(c: Builder, self: SSAValue, dim: int, start: Any, length: Any) -> SSAValue:
    if isinstance(start, SSAValue):
        raise Unsupported("a start that is a tensor")
    axis = axis_of(dim, tensor(self).rank)
    first = from_the_front(c.symbols, start, tensor(self).dims[axis], c.place)
    return c.slice(self, axis, first, first + length)


@lowers("aten.select.int", "aten.select_copy.int")
def select(c: Builder, self: SSAValue, dim: int, index: Any) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    size = tensor(self).dims[axis]
    at = from_the_front(c.symbols, index, size, c.place)
    return c.reshape(c.slice(self, axis, at, at + 1), c.result.dims)


def pieces(c: Builder, x: SSAValue, axis: int, lengths: list[Expr]) -> tuple[SSAValue, ...]:
    """x cut along an axis into parts of the given lengths."""
    found: list[SSAValue] = []
    start = Expr.of(0)
    for length in lengths:
        found.append(c.slice(x, axis, start, start + length))
        start = start + length
    return tuple(found)


@lowers(
    "aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.chunk.default",
    "aten.tensor_split.sections", "aten.tensor_split.indices", "aten.split_copy.Tensor",
    "aten.split_with_sizes_copy.default", "aten.unsafe_split.Tensor", "aten.unsafe_chunk.default", "aten.hsplit.int",
)  # fmt: skip
def split(c: Builder, self: SSAValue, _sizes: Any, dim: int = 0) -> tuple[SSAValue, ...]:
    """The parts in the lengths torch has worked out."""
    axis = axis_of(dim, tensor(self).rank)
    return pieces(c, self, axis, [c.type_of(part).dims[axis] for part in c.node.meta["val"]])


@lowers("aten.unbind.int", "aten.unbind_copy.int")
def unbind(c: Builder, self: SSAValue, dim: int = 0) -> tuple[SSAValue, ...]:
    axis = axis_of(dim, tensor(self).rank)
    rest = [d for i, d in enumerate(tensor(self).dims) if i != axis]
    count = len(c.node.meta["val"])
    return tuple(c.reshape(part, rest) for part in pieces(c, self, axis, [Expr.of(1)] * count))


@lowers("aten.repeat.default", "aten.tile.default")
def repeat(c: Builder, self: SSAValue, repeats: list[Any]) -> SSAValue:
    dims = tensor(self).dims
    lead = len(repeats) - len(dims)
    dims = (*[Expr.of(1)] * lead, *dims)
    times = [Expr.of(1)] * -min(lead, 0) + [Expr.of(r) for r in repeats]
    dims = dims[-len(times) :] if times else dims
    # each axis as (copies, size), stretched and merged
    apart = c.reshape(self, [part for size in dims for part in (Expr.of(1), size)])
    wide = c.broadcast(apart, [part for n, size in zip(times, dims, strict=True) for part in (n, size)])
    return c.reshape(wide, c.result.dims)


@lowers("aten.repeat_interleave.self_int")
def repeat_interleave(
    c: Builder, self: SSAValue, repeats: Any, dim: int | None = None, *, output_size: Any = None
) -> SSAValue:
    if dim is None:
        self, dim = c.reshape(self, [tensor(self).elements]), 0
    axis = axis_of(dim, tensor(self).rank)
    dims = list(tensor(self).dims)
    apart = c.reshape(self, [*dims[: axis + 1], 1, *dims[axis + 1 :]])
    return c.reshape(c.broadcast(apart, [*dims[: axis + 1], repeats, *dims[axis + 1 :]]), c.result.dims)


@lowers("aten.flip.default")
def flip(c: Builder, self: SSAValue, dims: list[int]) -> SSAValue:
    for axis in axes_of(dims, tensor(self).rank) if dims else ():
        size = tensor(self).dims[axis]
        backwards = c.iota([size], 0, start=size - 1, step=-1)
        self = c.emit(GatherOp, self, backwards, axis=axis)
    return self


@lowers("aten.unfold.default")
def unfold(c: Builder, self: SSAValue, dimension: int, size: int, step: int) -> SSAValue:
    """Windows along an axis, gathered: window w holds elements w * step + 0 .. size - 1."""
    rank = tensor(self).rank
    axis = axis_of(dimension, rank)
    windows = c.result.dims[axis] if rank else Expr.of(1)
    inside = Expr.of(size)
    at = c.map("add", c.iota([windows, inside], 0, step=step), c.iota([windows, inside], 1), dtype=I64)
    found = c.emit(GatherOp, self, at, axis=axis)
    order = [i for i in range(rank + 1) if i != axis + 1]
    return c.transpose(found, [*order, axis + 1])
