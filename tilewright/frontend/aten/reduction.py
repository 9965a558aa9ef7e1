"""Operators that fold axes: sums, extremes, statistics, norms of vectors."""

from __future__ import annotations

import math
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder, axes_of
from tilewright.frontend.registry import lowers
from tilewright.ir.dims import product
from tilewright.ir.dtypes import BF16, F16, F32, I1, I64
from tilewright.ir.graph.base import tensor


def wide(c: Builder, x: SSAValue) -> SSAValue:
    """x in the dtype in which statistics are kept."""
    return c.cast(x, F32) if tensor(x).dtype in (BF16, F16) else x


@lowers("aten.sum.default", "aten.sum.dim_IntList")
def sum_(c: Builder, self: SSAValue, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> SSAValue:
    x = c.cast(self, c.result.dtype)
    return c.reduce("sum", x, axes_of(dim, tensor(x).rank), keepdims=keepdim)


@lowers("aten.mean.default", "aten.mean.dim")
def mean(c: Builder, self: SSAValue, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> SSAValue:
    x = c.cast(self, c.result.dtype)
    return c.reduce("mean", x, axes_of(dim, tensor(x).rank), keepdims=keepdim)


@lowers("aten.prod.default", "aten.prod.dim_int")
def prod(c: Builder, self: SSAValue, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> SSAValue:
    x = c.cast(self, c.result.dtype)
    return c.reduce("prod", x, axes_of(dim, tensor(x).rank), keepdims=keepdim)


def _extreme(c: Builder, fn: str, x: SSAValue, axes: tuple[int, ...], *, keepdims: bool) -> SSAValue:
    if tensor(x).dtype == I1:
        return c.reduce("any" if fn == "max" else "all", x, axes, keepdims=keepdims)
    return c.reduce(fn, x, axes, keepdims=keepdims)


@lowers("aten.amax.default", "aten.max.default")
def amax(c: Builder, self: SSAValue, dim: Any = None, keepdim: bool = False) -> SSAValue:
    return _extreme(c, "max", self, axes_of(dim, tensor(self).rank), keepdims=keepdim)


@lowers("aten.amin.default", "aten.min.default")
def amin(c: Builder, self: SSAValue, dim: Any = None, keepdim: bool = False) -> SSAValue:
    return _extreme(c, "min", self, axes_of(dim, tensor(self).rank), keepdims=keepdim)


@lowers("aten.max.dim")
def max_dim(c: Builder, self: SSAValue, dim: int, keepdim: bool = False) -> tuple[SSAValue, SSAValue]:
    return _with_index(c, "max", self, dim, keepdim)


@lowers("aten.min.dim")
def min_dim(c: Builder, self: SSAValue, dim: int, keepdim: bool = False) -> tuple[SSAValue, SSAValue]:
    return _with_index(c, "min", self, dim, keepdim)


def _with_index(c: Builder, fn: str, x: SSAValue, dim: int, keepdim: bool) -> tuple[SSAValue, SSAValue]:
    axes = axes_of(dim, tensor(x).rank)
    if not axes:
        return x, c.constant(0, I64)
    return _extreme(c, fn, x, axes, keepdims=keepdim), c.reduce(f"arg{fn}", _ordered(c, x), axes, keepdims=keepdim)


def _ordered(c: Builder, x: SSAValue) -> SSAValue:
    """i1 as integers: the arg reductions compare numbers."""
    return c.cast(x, I64) if tensor(x).dtype == I1 else x


@lowers("aten.argmax.default")
def argmax(c: Builder, self: SSAValue, dim: int | None = None, keepdim: bool = False) -> SSAValue:
    return _arg(c, "argmax", self, dim, keepdim)


@lowers("aten.argmin.default")
def argmin(c: Builder, self: SSAValue, dim: int | None = None, keepdim: bool = False) -> SSAValue:
    return _arg(c, "argmin", self, dim, keepdim)


def _arg(c: Builder, fn: str, x: SSAValue, dim: int | None, keepdim: bool) -> SSAValue:
    if dim is None or not tensor(x).rank:
        found = c.reduce(fn, _ordered(c, c.reshape(x, [tensor(x).elements])), [0])
        return c.reshape(found, c.result.dims)
    return c.reduce(fn, _ordered(c, x), axes_of(dim, tensor(x).rank), keepdims=keepdim)


@lowers("aten.any.default", "aten.any.dim", "aten.any.dims")
def any_(c: Builder, self: SSAValue, dim: Any = None, keepdim: bool = False) -> SSAValue:
    return c.reduce("any", c.cast(self, I1), axes_of(dim, tensor(self).rank), keepdims=keepdim)


@lowers("aten.all.default", "aten.all.dim", "aten.all.dims")
def all_(c: Builder, self: SSAValue, dim: Any = None, keepdim: bool = False) -> SSAValue:
    return c.reduce("all", c.cast(self, I1), axes_of(dim, tensor(self).rank), keepdims=keepdim)


@lowers("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def count_nonzero(c: Builder, self: SSAValue, dim: Any = None) -> SSAValue:
    return c.reduce("sum", c.cast(c.cast(self, I1), I64), axes_of(dim, tensor(self).rank))


def variance(c: Builder, x: SSAValue, axes: tuple[int, ...], correction: float) -> tuple[SSAValue, SSAValue]:
    """Variance and mean with the axes kept as 1, in the dtype of statistics."""
    x = wide(c, x)
    dtype = tensor(x).dtype
    center = c.reduce("mean", x, axes, keepdims=True)
    apart = c.map("sub", x, center, dtype=dtype)
    squares = c.reduce("sum", c.map("mul", apart, apart, dtype=dtype), axes, keepdims=True)
    count = product(tensor(x).dims[axis] for axis in axes)
    left = c.operand(count, dtype)
    if correction:
        left = c.map("max", c.map("sub", left, correction, dtype=dtype), 0, dtype=dtype)
    return c.map("div", squares, left, dtype=dtype), center


def _correction(unbiased: bool | None, correction: float | None) -> float:
    return float(unbiased) if unbiased is not None else 1.0 if correction is None else float(correction)


@lowers("aten.var.correction", "aten.std.correction")
def var(
    c: Builder, self: SSAValue, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> SSAValue:
    return _spread(c, self, dim, _correction(None, correction))[0]


@lowers("aten.var.dim", "aten.std.dim")
def var_dim(c: Builder, self: SSAValue, dim: Any, unbiased: bool = True, keepdim: bool = False) -> SSAValue:
    return _spread(c, self, dim, _correction(unbiased, None))[0]


@lowers("aten.var.default", "aten.std.default")
def var_default(c: Builder, self: SSAValue, unbiased: bool = True) -> SSAValue:
    return _spread(c, self, None, _correction(unbiased, None))[0]


@lowers("aten.var_mean.correction", "aten.std_mean.correction")
def var_mean(
    c: Builder, self: SSAValue, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[SSAValue, SSAValue]:
    return _spread(c, self, dim, _correction(None, correction))


def _spread(c: Builder, x: SSAValue, dim: Any, correction: float) -> tuple[SSAValue, SSAValue]:
    """Variance or standard deviation, and mean, in torch's dtype and dims."""
    found, center = variance(c, x, axes_of(dim, tensor(x).rank), correction)
    if ".std" in str(c.node.target):
        found = c.map("sqrt", found, dtype=tensor(found).dtype)
    dims = c.result.dims
    return c.reshape(c.cast(found, c.result.dtype), dims), c.reshape(c.cast(center, c.result.dtype), dims)


@lowers("aten.linalg_vector_norm.default")
def vector_norm(
    c: Builder, self: SSAValue, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> SSAValue:
    return _norm(c, self, ord, dim, keepdim)


@lowers("aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dim_dtype")
def norm_dim(
    c: Builder, self: SSAValue, p: float | None, dim: Any, keepdim: bool = False, *, dtype: Any = None
) -> SSAValue:
    return _norm(c, self, 2 if p is None else p, dim, keepdim)


@lowers("aten.norm.Scalar")
def norm(c: Builder, self: SSAValue, p: float = 2) -> SSAValue:
    return _norm(c, self, p, None, False)


def _norm(c: Builder, x: SSAValue, order: float, dim: Any, keepdim: bool) -> SSAValue:
    x = wide(c, c.cast(x, c.result.dtype))
    dtype, axes = tensor(x).dtype, axes_of(dim, tensor(x).rank)
    size = c.map("abs", x, dtype=dtype)
    if math.isinf(order):
        found = c.reduce("max" if order > 0 else "min", size, axes, keepdims=keepdim)
    elif order == 0:
        found = c.reduce("sum", c.cast(c.map("ne", x, 0, dtype=dtype), dtype), axes, keepdims=keepdim)
    elif order == 1:
        found = c.reduce("sum", size, axes, keepdims=keepdim)
    elif order == 2:
        found = c.reduce("sum", c.map("mul", x, x, dtype=dtype), axes, keepdims=keepdim)
        found = c.map("sqrt", found, dtype=dtype)
    else:
        found = c.reduce("sum", c.map("pow", size, order, dtype=dtype), axes, keepdims=keepdim)
        found = c.map("pow", found, 1 / order, dtype=dtype)
    return c.cast(found, c.result.dtype)


@lowers("aten.cdist.default", "aten._cdist_forward.default", "aten._euclidean_dist.default")
def cdist(c: Builder, x1: SSAValue, x2: SSAValue, p: float = 2.0, compute_mode: int | None = None) -> SSAValue:
    """x1 [..., M, K], x2 [..., N, K] -> [..., M, N]: the norm of every difference, nothing of which is stored."""
    rank = tensor(x1).rank
    rows = c.reshape(x1, [*tensor(x1).dims[:-1], 1, tensor(x1).dims[-1]])
    columns = c.reshape(x2, [*tensor(x2).dims[:-2], 1, *tensor(x2).dims[-2:]])
    return _norm(c, c.map("sub", rows, columns), p, [rank], False)


@lowers("aten.logsumexp.default")
def logsumexp(c: Builder, self: SSAValue, dim: Any, keepdim: bool = False) -> SSAValue:
    x = wide(c, c.cast(self, c.result.dtype))
    dtype, axes = tensor(x).dtype, axes_of(dim, tensor(x).rank)
    largest = c.reduce("max", x, axes, keepdims=True)
    # a row of one infinity must not subtract it from itself
    shift = c.select(c.map("isinf", largest, dtype=dtype), 0, largest, dtype)
    total = c.reduce("sum", c.map("exp", c.map("sub", x, shift, dtype=dtype), dtype=dtype), axes, keepdims=True)
    found = c.map("add", c.map("log", total, dtype=dtype), shift, dtype=dtype)
    return c.reshape(c.cast(found, c.result.dtype), c.result.dims)
