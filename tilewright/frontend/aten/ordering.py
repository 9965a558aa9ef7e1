"""Operators that run along an axis and keep it: softmax, running sums, differences, sorting."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.combining import concat
from tilewright.frontend.aten.reduction import wide
from tilewright.frontend.builder import Builder, axis_of
from tilewright.frontend.proving import nonnegative
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I1, I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import TakeAlongOp
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp, SoftmaxOp, SortOp, TopkOp
from tilewright.ir.graph.structure import ConstantOp


@lowers("aten.softmax.int", "aten._softmax.default", "aten.special_softmax.int")
def softmax(c: Builder, self: SSAValue, dim: int, *_: Any, **__: Any) -> SSAValue:
    return _softmax(c, self, dim, log=False)


@lowers("aten.log_softmax.int", "aten._log_softmax.default", "aten.special_log_softmax.int")
def log_softmax(c: Builder, self: SSAValue, dim: int, *_: Any, **__: Any) -> SSAValue:
    return _softmax(c, self, dim, log=True)


def _softmax(c: Builder, x: SSAValue, dim: int, *, log: bool) -> SSAValue:
    x = c.cast(x, c.result.dtype)
    if not tensor(x).rank:
        return c.reshape(c.emit(SoftmaxOp, c.reshape(x, [1]), axis=0, log=log), [])
    return c.emit(SoftmaxOp, x, axis=axis_of(dim, tensor(x).rank), log=log)


@lowers("aten.cumsum.default")
def cumsum(c: Builder, self: SSAValue, dim: int, *, dtype: Any = None) -> SSAValue:
    return _counted(c, self, dim) or _running(c, "sum", self, dim)


@lowers("aten.cumprod.default")
def cumprod(c: Builder, self: SSAValue, dim: int, *, dtype: Any = None) -> SSAValue:
    return _running(c, "prod", self, dim)


def _counted(c: Builder, x: SSAValue, dim: int) -> SSAValue | None:
    """The running sum of ones over a call's tokens: their positions, from 1 on. Models count so where no mask is given.

    Exact up to 2^24 tokens in f32, like the sum itself.
    """
    made, dims = x.owner, tensor(x).dims
    if not dims or not isinstance(made, ConstantOp) or made.splat != 1:
        return None
    axis = axis_of(dim, len(dims))
    if dims[axis] not in c.token_dims:
        return None
    counted = c.cast(c.count(dims[axis], 1, 1, I64), c.result.dtype)
    return c.broadcast(c.reshape(counted, [dims[axis] if i == axis else 1 for i in range(len(dims))]), dims)


def _running(c: Builder, fn: str, x: SSAValue, dim: int) -> SSAValue:
    x = c.cast(x, c.result.dtype)
    rank = tensor(x).rank
    return c.emit(CumulativeOp, x, fn=fn, axis=axis_of(dim, rank)) if rank else x


@lowers("aten.diff.default")
def diff(
    c: Builder,
    self: SSAValue,
    n: int = 1,
    dim: int = -1,
    prepend: SSAValue | None = None,
    append: SSAValue | None = None,
) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    x = concat(c, [part for part in (prepend, self, append) if part is not None], axis)
    for _ in range(n):
        size = tensor(x).dims[axis]
        later, earlier = c.slice(x, axis, 1, size), c.slice(x, axis, 0, size - 1)
        x = c.map("xor" if tensor(x).dtype == I1 else "sub", later, earlier, dtype=tensor(x).dtype)
    return x


@lowers("aten.sort.default")
def sort(c: Builder, self: SSAValue, dim: int = -1, descending: bool = False) -> tuple[SSAValue, ...]:
    return _sorted(c, self, dim, descending)


@lowers("aten.sort.stable")
def sort_stable(
    c: Builder, self: SSAValue, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[SSAValue, ...]:
    return _sorted(c, self, dim, descending)


@lowers("aten.argsort.default", "aten.argsort.stable")
def argsort(c: Builder, self: SSAValue, dim: int = -1, descending: bool = False, **named: Any) -> SSAValue:
    return _sorted(c, self, named.get("dim", dim), named.get("descending", descending))[1]


def _sorted(c: Builder, x: SSAValue, dim: int, descending: bool) -> tuple[SSAValue, ...]:
    if not tensor(x).rank:
        return x, c.constant(0, I64)
    return tuple(c.add(SortOp.make(x, axis=axis_of(dim, tensor(x).rank), descending=descending)).results)


@lowers("aten.topk.default")
def topk(
    c: Builder, self: SSAValue, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[SSAValue, ...]:
    x = tensor(self)
    if not isinstance(k, int) or not x.rank:
        raise Unsupported("a number of elements that varies")
    axis = axis_of(dim, x.rank)
    if not largest and x.dtype.is_float:
        # NaN is above all numbers, and no negation puts it below them
        found = c.add(SortOp.make(self, axis=axis, descending=False)).results
        return tuple(c.slice(r, axis, 0, k) for r in found)
    source = self if largest else reversed_order(c, self)
    values, indices = c.add(TopkOp.make(source, k=k, axis=axis)).results
    return (values if largest else reversed_order(c, values)), indices


def reversed_order(c: Builder, x: SSAValue) -> SSAValue:
    """Numbers in the opposite order, and back: negated floats, integers with every bit turned over."""
    dtype = tensor(x).dtype
    return c.map("neg" if dtype.is_float else "not", x, dtype=dtype)


@lowers("aten.kthvalue.default")
def kthvalue(c: Builder, self: SSAValue, k: Any, dim: int = -1, keepdim: bool = False) -> tuple[SSAValue, ...]:
    """The k-th smallest element of a stable order."""
    rank = tensor(self).rank
    if not rank:
        return self, c.constant(0, I64)
    axis = axis_of(dim, rank)
    found = c.add(SortOp.make(self, axis=axis, descending=False)).results
    at = Expr.of(k) - 1
    return tuple(c.reshape(c.slice(r, axis, at, at + 1), c.result.dims) for r in found)


def _in_order(c: Builder, x: SSAValue, axis: int) -> tuple[SSAValue, SSAValue]:
    """The elements along an axis that has any, ascending and stable, with their places."""
    size = tensor(x).dims[axis]
    if not nonnegative(c.symbols.space, size - 1):
        # torch refuses to take one of nothing
        c.symbols.require(Expr.of(1), "<=", size, c.place)
    values, places = c.add(SortOp.make(x, axis=axis, descending=False)).results
    return values, places


@lowers("aten.median.dim", "aten.nanmedian.dim")
def median(c: Builder, self: SSAValue, dim: int, keepdim: bool = False) -> tuple[SSAValue, ...]:
    """The lower of the middle elements, with its place; NaN where there is one, and the first place of those.

    nanmedian: of the elements that are numbers, which a sort puts first.
    """
    x = tensor(self)
    if not x.rank:
        return self, c.constant(0, I64)
    axis = axis_of(dim, x.rank)
    size = x.dims[axis]
    values, places = _in_order(c, self, axis)
    numbers: SSAValue = c.full(size, [Expr.of(1) if i == axis else d for i, d in enumerate(x.dims)], I64)
    if x.dtype.is_float:
        isnan = c.map("isnan", self, dtype=x.dtype)
        missing = c.reduce("sum", c.cast(isnan, I64), [axis], keepdims=True)
        numbers = c.map("sub", numbers, missing, dtype=I64)
    middle = c.map("floordiv", c.map("max", c.map("sub", numbers, 1, dtype=I64), 0, dtype=I64), 2, dtype=I64)
    if x.dtype.is_float and "nanmedian" not in str(c.node.target):
        # a sort puts what is no number behind all that are
        some = c.map("lt", numbers, size, dtype=I64)
        middle = c.select(some, c.map("min", numbers, size - 1, dtype=I64), middle, I64)
    return tuple(c.reshape(c.emit(TakeAlongOp, r, middle, axis=axis), c.result.dims) for r in (values, places))


@lowers("aten.median.default", "aten.nanmedian.default")
def median_of_all(c: Builder, self: SSAValue) -> SSAValue:
    return median(c, c.reshape(self, [tensor(self).elements]), 0)[0]


@lowers("aten.mode.default")
def mode(c: Builder, self: SSAValue, dim: int = -1, keepdim: bool = False) -> tuple[SSAValue, ...]:
    """The element that occurs most often, the least of several, and the last place that has it.

    In a sorted line equal elements stand together: each counts how many of them came so far, and the first of the
    largest counts ends the run that is sought. NaN equals nothing: which of a line's elements torch gives then depends
    on how it happens to sort them, and so does the place that it gives of several in a long line.
    """
    x = tensor(self)
    if not x.rank:
        return self, c.constant(0, I64)
    axis = axis_of(dim, x.rank)
    size = x.dims[axis]
    values, places = _in_order(c, self, axis)
    later, earlier = c.slice(values, axis, 1, size), c.slice(values, axis, 0, size - 1)
    line = [size - 1 if i == axis else Expr.of(1) for i in range(x.rank)]
    begins = c.select(c.map("ne", later, earlier, dtype=x.dtype), c.iota(line, axis, start=1), 0, I64)
    first = c.full(0, [Expr.of(1) if i == axis else d for i, d in enumerate(x.dims)], I64)
    begun = c.emit(CumulativeOp, concat(c, [first, begins], axis), fn="max", axis=axis)
    counts = c.map("sub", c.iota([size if i == axis else Expr.of(1) for i in range(x.rank)], axis), begun, dtype=I64)
    most = c.reduce("argmax", counts, [axis], keepdims=True)
    return tuple(c.reshape(c.emit(TakeAlongOp, r, most, axis=axis), c.result.dims) for r in (values, places))


@lowers("aten.cummax.default")
def cummax(c: Builder, self: SSAValue, dim: int) -> tuple[SSAValue, ...]:
    return _running_extreme(c, self, dim, largest=True)


@lowers("aten.cummin.default")
def cummin(c: Builder, self: SSAValue, dim: int) -> tuple[SSAValue, ...]:
    return _running_extreme(c, self, dim, largest=False)


def _running_extreme(c: Builder, x: SSAValue, dim: int, *, largest: bool) -> tuple[SSAValue, ...]:
    """The extreme so far, and the last place that had it: where x is the extreme (or NaN), and nowhere later."""
    dtype, rank = tensor(x).dtype, tensor(x).rank
    if dtype == I1:
        raise Unsupported("the running extreme of booleans")
    if not rank:
        return x, c.constant(0, I64)
    axis = axis_of(dim, rank)
    source = x if largest else reversed_order(c, x)
    best = c.emit(CumulativeOp, source, fn="max", axis=axis)
    here = c.map("eq", source, best, dtype=dtype)
    if dtype.is_float:
        here = c.map("or", here, c.map("isnan", source, dtype=dtype), dtype=I1)
    places = c.select(here, c.iota(tensor(x).dims, axis), 0, I64)
    return best if largest else reversed_order(c, best), c.emit(CumulativeOp, places, fn="max", axis=axis)


@lowers("aten.logcumsumexp.default")
def logcumsumexp(c: Builder, self: SSAValue, dim: int) -> SSAValue:
    """log of S[t] = S[t-1] exp(m[t-1] - m[t]) + exp(x[t] - m[t]), plus m[t], the largest element so far."""
    x = wide(c, self)
    dtype, dims = tensor(x).dtype, tensor(x).dims
    if not dims:
        return self
    axis = axis_of(dim, len(dims))
    most = c.emit(CumulativeOp, x, fn="max", axis=axis)
    before = concat(c, [c.slice(most, axis, 0, 1), c.slice(most, axis, 0, dims[axis] - 1)], axis)

    def shrunk(value: SSAValue) -> SSAValue:
        # infinities that are equal have no difference
        apart = c.map("exp", c.map("sub", value, most, dtype=dtype), dtype=dtype)
        return c.select(c.map("eq", value, most, dtype=dtype), 1.0, apart, dtype)

    total = c.emit(ScanOp, shrunk(before), shrunk(x), axis=axis)
    return c.cast(c.map("add", c.map("log", total, dtype=dtype), most, dtype=dtype), c.result.dtype)


@lowers("aten.searchsorted.Tensor")
def searchsorted(
    c: Builder, sorted_sequence: SSAValue, self: SSAValue, *, right: bool = False, side: str | None = None, **named: Any
) -> SSAValue:
    """The number of elements below (or not above) each value: the same for every order of the sequence."""
    lines = tensor(sorted_sequence).dims
    if len(lines) > 1:
        sorted_sequence = c.reshape(sorted_sequence, [*lines[:-1], 1, lines[-1]])
    return _below(c, sorted_sequence, self, right or side == "right", named)


@lowers("aten.bucketize.Tensor")
def bucketize(c: Builder, self: SSAValue, boundaries: SSAValue, *, right: bool = False, **named: Any) -> SSAValue:
    return _below(c, boundaries, self, right, named)


def _below(c: Builder, sequence: SSAValue, values: SSAValue, right: bool, named: Any) -> SSAValue:
    if named.get("sorter") is not None:
        raise Unsupported("a sequence that another tensor sorts")
    dtype = tensor(sequence).dtype
    if tensor(values).dtype != dtype:
        raise Unsupported(f"values of {tensor(values).dtype} in a sequence of {dtype}")
    apart = c.reshape(values, [*tensor(values).dims, 1])
    # what is not above: a value that is NaN lies behind all of them
    above = c.map("gt" if right else "ge", sequence, apart, dtype=dtype)
    below = c.map("not", above, dtype=I1)
    return c.cast(c.reduce("sum", c.cast(below, I64), [tensor(below).rank - 1]), c.result.dtype)
