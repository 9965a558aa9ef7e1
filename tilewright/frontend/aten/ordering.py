"""Operators that run along an axis and keep it: softmax, running sums, differences, sorting."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.combining import concat
from tilewright.frontend.builder import Builder, axis_of
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.dtypes import I1, I64, DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.reduction import CumulativeOp, SoftmaxOp, SortOp, TopkOp


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
    return _running(c, "sum", self, dim)


@lowers("aten.cumprod.default")
def cumprod(c: Builder, self: SSAValue, dim: int, *, dtype: Any = None) -> SSAValue:
    return _running(c, "prod", self, dim)


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
    x, dtype = tensor(self), tensor(self).dtype
    if not isinstance(k, int) or not x.rank:
        raise Unsupported("a number of elements that varies")
    source = self if largest else _reversed(c, self, dtype)
    made = c.add(TopkOp.make(source, k=k, axis=axis_of(dim, x.rank)))
    values, indices = made.results
    return (values if largest else _reversed(c, values, dtype)), indices


def _reversed(c: Builder, x: SSAValue, dtype: DType) -> SSAValue:
    """Numbers in the opposite order; only floats can be negated without overflow."""
    if not dtype.is_float:
        raise Unsupported(f"the smallest elements of {dtype}")
    return c.map("neg", x, dtype=dtype)
