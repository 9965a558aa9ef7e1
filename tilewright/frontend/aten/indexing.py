"""Reading and writing at places given by integer tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.combining import concat
from tilewright.frontend.builder import Builder, axis_of
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.dims import Expr, product
from tilewright.ir.dtypes import I1, I64, DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.indexing import GatherOp, PutAlongOp, ScatterOp, TakeAlongOp
from tilewright.ir.graph.reduction import CumulativeOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import ConstantOp, IotaOp, PositionsOp

_LABELS = "the mask picks a number of elements that depends on values"


@lowers("aten.embedding.default")
def embedding(c: Builder, weight: SSAValue, indices: SSAValue, *_: Any, **__: Any) -> SSAValue:
    return rows(c, weight, indices, 0)


@lowers("aten.index_select.default")
def index_select(c: Builder, self: SSAValue, dim: int, index: SSAValue) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    return rows(c, self, c.reshape(index, [tensor(index).elements]), axis)


def rows(c: Builder, x: SSAValue, indices: SSAValue, axis: int) -> SSAValue:
    """Slices of x along an axis; one index known for all of them is a slice that stretches."""
    number = c.splat(indices)
    dims, at = tensor(x).dims, tensor(indices).dims
    if number is None:
        return c.emit(GatherOp, x, indices, axis=axis)
    start = Expr.of(int(number)) if number >= 0 else dims[axis] + int(number)
    one = c.reshape(c.slice(x, axis, start, start + 1), [*dims[:axis], *[1] * len(at), *dims[axis + 1 :]])
    return c.broadcast(one, [*dims[:axis], *at, *dims[axis + 1 :]])


def wrapped(c: Builder, indices: SSAValue, size: Expr) -> SSAValue:
    """Indices counted from the front: those below zero count from the end."""
    if _counts_up(indices):
        return indices
    dtype = tensor(indices).dtype
    below = c.map("lt", indices, 0, dtype=dtype)
    return c.select(below, c.map("add", indices, size, dtype=dtype), indices, dtype)


def _counts_up(value: SSAValue) -> bool:
    """Whether a value is known to hold no negative number."""
    owner = value.owner
    if isinstance(owner, PositionsOp):
        return True
    if isinstance(owner, IotaOp):
        start = owner.start.data[0].constant
        return start is not None and start >= 0 and owner.step.data >= 0
    if isinstance(owner, ConstantOp):
        return all(n >= 0 for n in owner.values.data)
    passing = (CastOp, ReshapeOp, BroadcastOp, SliceOp, TransposeOp)
    return isinstance(owner, passing) and _counts_up(owner.x)


@lowers("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(c: Builder, self: SSAValue, indices: list[SSAValue | None]) -> SSAValue:
    """Advanced indexing as one gather over the indexed axes, flattened into one."""
    given = _checked(indices)
    axes = [axis for axis, _ in given]
    if len(given) == 1:
        axis, at = given[0]
        return rows(c, self, wrapped(c, at, tensor(self).dims[axis]), axis)
    x, _ = _flattened(c, self, axes)
    at = _linear(c, [at for _, at in given], [tensor(self).dims[axis] for axis in axes])
    found = rows(c, x, at, 0)
    return c.transpose(found, _places(axes, tensor(at).rank, tensor(found).rank))


def _checked(indices: list[SSAValue | None]) -> list[tuple[int, SSAValue]]:
    given = [(axis, at) for axis, at in enumerate(indices) if at is not None]
    if any(tensor(at).dtype == I1 for _, at in given):
        raise Unsupported(_LABELS)
    return given


def _flattened(c: Builder, x: SSAValue, axes: list[int]) -> tuple[SSAValue, list[Expr]]:
    """x with the given axes first, as one axis; and the other dims."""
    dims = tensor(x).dims
    rest = [axis for axis in range(len(dims)) if axis not in axes]
    others = [dims[axis] for axis in rest]
    return c.reshape(c.transpose(x, [*axes, *rest]), [product(dims[axis] for axis in axes), *others]), others


def _linear(c: Builder, indices: list[SSAValue], sizes: list[Expr]) -> SSAValue:
    """Several indices as one into their axes laid end to end."""
    total: SSAValue | None = None
    for at, size in zip(indices, sizes, strict=True):
        place = wrapped(c, c.cast(at, I64), size)
        total = place if total is None else c.map("add", c.map("mul", total, size, dtype=I64), place, dtype=I64)
    if total is None:
        raise Unsupported("no index")
    return total


def _places(axes: list[int], index_rank: int, rank: int) -> list[int]:
    """Where torch puts the index's axes: in place of adjacent indexed axes, else first."""
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    lead = axes[0] if adjacent else 0
    rest = list(range(index_rank, rank))
    return [*rest[:lead], *range(index_rank), *rest[lead:]]


@lowers("aten.gather.default", "aten.take_along_dim.default")
def gather(c: Builder, self: SSAValue, dim: Any, index: Any = None, **_: Any) -> SSAValue:
    if isinstance(dim, SSAValue):
        return take_along_dim(c, self, dim, index)
    if not tensor(self).rank:
        return self
    axis = axis_of(dim, tensor(self).rank)
    for other, size in enumerate(tensor(index).dims):
        if other != axis and size != tensor(self).dims[other]:
            self = c.slice(self, other, 0, size)
    number = c.splat(self)
    if number is not None:
        return c.full(number, tensor(index).dims, tensor(self).dtype)
    return c.emit(TakeAlongOp, self, index, axis=axis)


def take_along_dim(c: Builder, x: SSAValue, index: SSAValue, dim: int | None) -> SSAValue:
    """As gather, with axes of 1 stretched to the other's, and without an axis over all elements in a row."""
    if dim is None:
        flat = c.reshape(x, [tensor(x).elements])
        at = c.reshape(index, [tensor(index).elements])
        return c.emit(TakeAlongOp, flat, wrapped(c, at, tensor(x).elements), axis=0)
    axis = axis_of(dim, tensor(x).rank)
    common = [d if d.constant != 1 else e for d, e in zip(tensor(x).dims, tensor(index).dims, strict=True)]
    sides = []
    for value in (x, index):
        pairs = enumerate(zip(tensor(value).dims, common, strict=True))
        dims = [own if i == axis else shared for i, (own, shared) in pairs]
        sides.append(c.broadcast(value, dims))
    return c.emit(TakeAlongOp, sides[0], wrapped(c, sides[1], tensor(x).dims[axis]), axis=axis)


@lowers("aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default")
def scatter(c: Builder, self: SSAValue, dim: int, index: SSAValue, src: Any) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    at = tensor(index).dims
    dtype = tensor(self).dtype
    updates = c.broadcast(c.operand(src, dtype), at) if not isinstance(src, SSAValue) else c.cast(src, dtype)
    for other, size in enumerate(at):
        updates = c.slice(updates, other, 0, size)
    mode = "add" if "scatter_add" in str(c.node.target) else "set"
    return put(c, self, index, updates, axis, mode)


def put(c: Builder, x: SSAValue, index: SSAValue, updates: SSAValue, axis: int, mode: str) -> SSAValue:
    """Elements set or added along an axis; what an index shorter than x leaves out of other axes stays as it is."""
    for other, (size, whole) in enumerate(zip(tensor(index).dims, tensor(x).dims, strict=True)):
        if other != axis and size != whole:
            inside = put(c, c.slice(x, other, 0, size), index, updates, axis, mode)
            return concat(c, [inside, c.slice(x, other, size, whole)], other)
    return c.emit(PutAlongOp, x, index, updates, axis=axis, mode=mode)


_MODES = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}


@lowers("aten.scatter_reduce.two")
def scatter_reduce(
    c: Builder, self: SSAValue, dim: int, index: SSAValue, src: SSAValue, reduce: str, *, include_self: bool = True
) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    if not tensor(self).rank:
        one = [c.reshape(value, [1]) for value in (self, index, src)]
        return c.reshape(_combined(c, one[0], one[1], one[2], 0, reduce, include_self), [])
    for other, size in enumerate(tensor(index).dims):
        src = c.slice(src, other, 0, size)
    return _combined(c, self, index, src, axis, reduce, include_self)


@lowers("aten.index_reduce.default")
def index_reduce(
    c: Builder, self: SSAValue, dim: int, index: SSAValue, source: SSAValue, reduce: str, *, include_self: bool = True
) -> SSAValue:
    dims = tensor(source).dims
    axis = axis_of(dim, tensor(self).rank)
    places = c.reshape(index, [tensor(index).elements if i == axis else 1 for i in range(len(dims))])
    return _combined(c, self, c.broadcast(places, dims), source, axis, reduce, include_self)


def _combined(
    c: Builder, x: SSAValue, index: SSAValue, updates: SSAValue, axis: int, reduce: str, include_self: bool
) -> SSAValue:
    """Updates folded into the elements of x that they meet; without include_self those start anew."""
    dtype, at = tensor(x).dtype, tensor(index).dims
    if dtype == I1:
        raise Unsupported(f"booleans folded by {reduce}")
    updates = c.cast(updates, dtype)
    if not include_self:
        x = put(c, x, index, c.full(_identity(c, reduce, dtype), at, dtype), axis, "set")
    found = put(c, x, index, updates, axis, _MODES[reduce])
    if reduce != "mean":
        return found
    ones, start = c.full(1, at, dtype), c.full(1 if include_self else 0, tensor(x).dims, dtype)
    count = c.map("max", put(c, start, index, ones, axis, "add"), 1, dtype=dtype)
    return c.map("div" if dtype.is_float else "floordiv", found, count, dtype=dtype)


def _identity(c: Builder, reduce: str, dtype: DType) -> float | int:
    """What a fold starts from."""
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    largest = reduce == "amin"
    if dtype.is_float:
        return math.inf if largest else -math.inf
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "int" else 0
    return low + (1 << dtype.bits) - 1 if largest else low


@lowers("aten.masked_scatter.default")
def masked_scatter(c: Builder, self: SSAValue, mask: SSAValue, source: SSAValue) -> SSAValue:
    """The k-th place where the mask holds takes the k-th element: its number is a running sum of the mask."""
    dims, dtype = c.result.dims, tensor(self).dtype
    mask, x = c.broadcast(mask, dims), c.broadcast(self, dims)
    flat = c.reshape(c.cast(mask, I64), [tensor(mask).elements])
    number = c.map("sub", c.emit(CumulativeOp, flat, fn="sum", axis=0), flat, dtype=I64)
    last = tensor(source).elements - 1
    # places that the mask leaves out read some element
    number = c.map("max", c.map("min", number, last, dtype=I64), 0, dtype=I64)
    taken = c.emit(GatherOp, c.reshape(source, [tensor(source).elements]), number, axis=0)
    return c.select(mask, c.reshape(taken, dims), x, dtype)


@lowers("aten.take.default")
def take(c: Builder, self: SSAValue, index: SSAValue) -> SSAValue:
    flat = c.reshape(self, [tensor(self).elements])
    return rows(c, flat, wrapped(c, index, tensor(self).elements), 0)


@lowers("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(
    c: Builder, self: SSAValue, indices: list[SSAValue | None], values: SSAValue, accumulate: bool = False
) -> SSAValue:
    if len(indices) == 1 and indices[0] is not None and tensor(indices[0]).dtype == I1 and not accumulate:
        return _masked_put(c, self, indices[0], values)
    given = dict(_checked(indices))
    if not given:
        raise Unsupported("no index")
    updates = c.cast(values, tensor(self).dtype)
    picks, lead, rest = _picked(self, given)
    if len(given) < max(given) + 1 - min(given):
        # torch puts the axes of indices first where they are not side by side
        updates = c.broadcast(updates, [*picks, *lead, *rest])
        order, n = list(range(tensor(updates).rank)), len(picks)
        end = n + len(lead)
        updates = c.transpose(updates, [*order[n:end], *order[:n], *order[end:]])
    else:
        updates = c.broadcast(updates, [*lead, *picks, *rest])
    return put_at(c, self, given, updates, "add" if accumulate else "set")


def _picked(x: SSAValue, given: Mapping[int, SSAValue]) -> tuple[list[Expr], list[Expr], list[Expr]]:
    """The dims of indices that stretch to each other, and those of x before the first indexed axis and after it."""
    rank = max(tensor(at).rank for at in given.values())
    picks = [Expr.of(1)] * rank
    for at in given.values():
        dims = tensor(at).dims
        for i, size in enumerate(dims):
            if size.constant != 1:
                picks[rank - len(dims) + i] = size
    dims, first = tensor(x).dims, min(given)
    return picks, list(dims[:first]), [dims[a] for a in range(first, len(dims)) if a not in given]


def put_at(c: Builder, x: SSAValue, given: Mapping[int, SSAValue], updates: SSAValue, mode: str) -> SSAValue:
    """x with updates set or added at places along some axes.

    given: integers by axis, which stretch to each other. updates: the dims of x before the first of these axes, those
    of the indices, and then those of the other axes of x.
    """
    dims, first, end = tensor(x).dims, min(given), max(given) + 1
    # from the first to the last axis with an index every axis has one, so that x is addressed as it lies in memory
    between = [axis for axis in range(first, end) if axis not in given]
    placed = []
    for axis in range(first, end):
        if axis in given:
            placed.append(c.reshape(given[axis], [*tensor(given[axis]).dims, *[1] * len(between)]))
        else:
            units = [1] * (len(between) - 1 - between.index(axis))
            placed.append(c.reshape(c.iota([dims[axis]], 0), [dims[axis], *units]))
    at = _linear(c, placed, list(dims[first:end]))
    flat = c.reshape(x, [*dims[:first], product(dims[first:end]), *dims[end:]])
    return c.reshape(c.emit(ScatterOp, flat, at, updates, axis=first, mode=mode), dims)


def _masked_put(c: Builder, x: SSAValue, mask: SSAValue, values: SSAValue) -> SSAValue:
    """Writing one value wherever a mask holds needs no count of places."""
    if tensor(values).elements.constant != 1:
        raise Unsupported(_LABELS)
    trailing = [Expr.of(1)] * (tensor(x).rank - tensor(mask).rank)
    return c.select(c.reshape(mask, [*tensor(mask).dims, *trailing]), c.reshape(values, []), x, tensor(x).dtype)


@lowers("aten.index_fill.int_Scalar")
def index_fill(c: Builder, self: SSAValue, dim: int, index: SSAValue, value: Any) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    dims = tensor(self).dims
    at = wrapped(c, index, dims[axis])
    updates = c.full(value, [*dims[:axis], *tensor(index).dims, *dims[axis + 1 :]], tensor(self).dtype)
    return c.emit(ScatterOp, self, at, updates, axis=axis, mode="set")


@lowers("aten.one_hot.default")
def one_hot(c: Builder, self: SSAValue, num_classes: int = -1) -> SSAValue:
    if not isinstance(num_classes, int) or num_classes < 0:
        raise Unsupported("the number of classes depends on values: pass num_classes")
    classes = c.iota([Expr.of(num_classes)], 0)
    return c.cast(c.map("eq", c.reshape(self, [*tensor(self).dims, 1]), classes, dtype=I64), I64)


@lowers("aten.index_add.default", "aten.index_copy.default")
def index_add(c: Builder, self: SSAValue, dim: int, index: SSAValue, source: SSAValue, alpha: Any = 1) -> SSAValue:
    """Slices added or set at indices along an axis, in order."""
    if not tensor(self).rank:
        raise Unsupported("an index into a scalar")
    dtype, axis = tensor(self).dtype, axis_of(dim, tensor(self).rank)
    places = c.reshape(index, [tensor(index).elements])
    source = c.cast(source, dtype) if alpha == 1 else c.map("mul", source, alpha, dtype=dtype)
    mode = "add" if "index_add" in str(c.node.target) else "set"
    return c.emit(ScatterOp, self, places, source, axis=axis, mode=mode)


@lowers("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(c: Builder, self: SSAValue, offset: int = 0, dim1: int = 0, dim2: int = 1) -> SSAValue:
    rank = tensor(self).rank
    return _diagonal(c, self, offset, axis_of(dim1, rank), axis_of(dim2, rank), c.result.dims[-1])


def diagonal_of(c: Builder, x: SSAValue, first: int, second: int) -> SSAValue:
    """The elements where two axes of one size agree, as the last axis."""
    return _diagonal(c, x, 0, first, second, tensor(x).dims[first])


def _diagonal(c: Builder, x: SSAValue, offset: int, first: int, second: int, length: Expr) -> SSAValue:
    """Every (columns + 1)-th element of two axes laid end to end."""
    rest = [axis for axis in range(tensor(x).rank) if axis not in (first, second)]
    x = c.transpose(x, [*rest, first, second])
    dims = tensor(x).dims
    flat = c.reshape(x, [*dims[:-2], dims[-2] * dims[-1]])
    start = Expr.of(offset) if offset >= 0 else dims[-1] * -offset
    at = c.map("mul", c.iota([length], 0), dims[-1] + 1, dtype=I64)
    return c.emit(GatherOp, flat, c.map("add", at, start, dtype=I64), axis=len(rest))


@lowers("aten.diagonal_scatter.default")
def diagonal_scatter(
    c: Builder, self: SSAValue, src: SSAValue, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> SSAValue:
    """Written at every (columns + 1)-th element of two axes laid end to end."""
    rank = tensor(self).rank
    first, second = axis_of(dim1, rank), axis_of(dim2, rank)
    order = [*(axis for axis in range(rank) if axis not in (first, second)), first, second]
    x = c.transpose(self, order)
    dims = tensor(x).dims
    start = Expr.of(offset) if offset >= 0 else dims[-1] * -offset
    at = c.map("mul", c.iota([tensor(src).dims[-1]], 0), dims[-1] + 1, dtype=I64)
    at = c.map("add", at, start, dtype=I64)
    flat = c.reshape(x, [*dims[:-2], dims[-2] * dims[-1]])
    put = c.emit(ScatterOp, flat, at, c.cast(src, tensor(self).dtype), axis=rank - 2, mode="set")
    return c.transpose(c.reshape(put, dims), [order.index(axis) for axis in range(rank)])


@lowers("aten.isin.Tensor_Tensor")
def isin(
    c: Builder, elements: SSAValue, test_elements: SSAValue, *, assume_unique: bool = False, invert: bool = False
) -> SSAValue:
    dtype = tensor(elements).dtype
    if tensor(test_elements).dtype != dtype:
        raise Unsupported(f"elements of {dtype} among {tensor(test_elements).dtype}")
    wanted = c.reshape(test_elements, [tensor(test_elements).elements])
    equal = c.map("eq", c.reshape(elements, [*tensor(elements).dims, 1]), wanted, dtype=dtype)
    found = c.reduce("any", equal, [tensor(elements).rank])
    return c.map("not", found, dtype=I1) if invert else found
