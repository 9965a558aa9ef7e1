"""Pools: over windows of one shape as `graph.pool`, over windows whose bounds depend on the sizes by index."""

from __future__ import annotations

import math
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.windows import per_axis
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.dims import Expr, exact_div, floordiv, product
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.windows import PoolOp


def _pool(c: Builder, x: SSAValue, spatial: int, **stated: Any) -> SSAValue:
    """A pool of x [N, C, spatial...] or [C, spatial...]."""
    dims = tensor(x).dims
    batched = x if len(dims) == spatial + 2 else c.reshape(x, [1, *dims])
    out = c.emit(PoolOp, batched, **stated)
    return c.reshape(out, c.result.dims)


def _windowed(
    c: Builder, x: SSAValue, kernel_size: Any, stride: Any, padding: Any, dilation: Any, **stated: Any
) -> SSAValue:
    """A pool as torch states one: a number an axis or one for all; windows side by side where no stride is given."""
    spatial = _spatial(c)
    window, pad = per_axis(kernel_size, spatial), per_axis(padding, spatial, 0)
    strides, spread = per_axis(stride, spatial, window), per_axis(dilation, spatial, 1)
    places = {"window": window, "strides": strides, "padding_low": pad, "padding_high": pad, "dilation": spread}
    return _pool(c, x, spatial, **places, **stated)


@lowers("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(
    c: Builder,
    self: SSAValue,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> SSAValue:
    return _windowed(c, self, kernel_size, stride, padding, dilation, fn="max", ceil=ceil_mode)


@lowers("aten.max_pool1d_with_indices.default", "aten.max_pool2d_with_indices.default",
        "aten.max_pool3d_with_indices.default")  # fmt: skip
def max_pool_with_indices(
    c: Builder,
    self: SSAValue,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[SSAValue, SSAValue | None]:
    found = max_pool(c, self, kernel_size, stride, padding, dilation, ceil_mode)
    read = any(user.args[1:] != (0,) for user in c.node.users)
    return found, _places(c, self, kernel_size, stride, padding, dilation) if read else None


def _places(c: Builder, x: SSAValue, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> SSAValue:
    """Where each window of x [N, C, spatial...] or [C, spatial...] has its first maximum, in its spatial axes laid end
    to end.

    All taps of a window are gathered. One that lies in the padding stands for the nearest that does not, so that it is
    never the first.
    """
    spatial = _spatial(c)
    window, pad = per_axis(kernel_size, spatial), per_axis(padding, spatial, 0)
    strides, spread = per_axis(stride, spatial, window), per_axis(dilation, spatial, 1)
    dims, out = tensor(x).dims, c.result.dims
    lead, taps = len(dims) - spatial, math.prod(window)
    counts = out[lead:]
    tap = c.iota([*[Expr.of(1)] * spatial, Expr.of(taps)], spatial)

    def places(tap: SSAValue) -> SSAValue:
        """The places of taps, broadcast over the windows."""
        found: SSAValue | int = 0
        for i in range(spatial):
            size, below = dims[lead + i], math.prod(window[i + 1 :])
            ones = [Expr.of(1)] * spatial
            start = c.iota([*ones[:i], counts[i], *ones[i + 1 :], Expr.of(1)], i, start=-pad[i], step=strides[i])
            at = _int(c, "remainder", _int(c, "floordiv", tap, below), window[i])
            # the taps inside: from ceil(-start / spread) to floor((size - 1 - start) / spread)
            first = _int(c, "max", _int(c, "floordiv", _int(c, "sub", spread[i] - 1, start), spread[i]), 0)
            last = _int(c, "floordiv", _int(c, "sub", size - 1, start), spread[i])
            at = _int(c, "max", first, _int(c, "min", at, last))
            along = _int(c, "add", start, _int(c, "mul", at, spread[i]))
            found = along if i == 0 else _int(c, "add", _int(c, "mul", found, size), along)
        assert not isinstance(found, int)
        return found

    windows = [*counts, Expr.of(taps)]
    flat = c.reshape(x, [*dims[:lead], product(dims[lead:])])
    everywhere = c.reshape(c.broadcast(places(tap), windows), [product(windows)])
    taken = c.reshape(c.emit(GatherOp, flat, everywhere, axis=lead), [*dims[:lead], *windows])
    best = c.reduce("argmax", taken, [len(dims)])
    return c.reshape(places(c.reshape(best, [*out, 1])), out)


@lowers("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def avg_pool(
    c: Builder,
    self: SSAValue,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> SSAValue:
    counted = {"count_padding": count_include_pad, "divisor": divisor_override or 0}
    return _windowed(c, self, kernel_size, stride, padding, 1, fn="mean", ceil=ceil_mode, **counted)


@lowers("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default",
        "aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")  # fmt: skip
def adaptive_avg_pool(c: Builder, self: SSAValue, output_size: Any) -> SSAValue:
    return _adaptive(c, self, _sizes(c, output_size), "mean")


@lowers("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(c: Builder, self: SSAValue, output_size: Any) -> tuple[SSAValue, None]:
    return _adaptive(c, self, _sizes(c, output_size), "max"), None


def _spatial(c: Builder) -> int:
    """How many axes the operator pools: its name says so."""
    name = str(c.node.target)
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def _sizes(c: Builder, sizes: Any) -> list[Expr]:
    listed = sizes if isinstance(sizes, (list, tuple)) else [sizes]
    return [Expr.of(n) for n in listed]


def _adaptive(c: Builder, x: SSAValue, sizes: list[Expr], fn: str) -> SSAValue:
    """Window i of n over an axis of m is floor(i * m / n) to ceil((i + 1) * m / n).

    One window is a reduction, windows of one size are a pool, others are looked up axis by axis: the windows of a box
    are the products of the windows of its axes.
    """
    dims = tensor(x).dims
    lead = len(dims) - len(sizes)
    if all(n.constant == 1 for n in sizes):
        return c.reshape(c.reduce(fn, x, range(lead, len(dims)), keepdims=True), c.result.dims)
    windows = [exact_div(m, n) for m, n in zip(dims[lead:], sizes, strict=True)]
    fixed = [w.constant for w in windows if w is not None and w.constant is not None]
    if len(fixed) == len(sizes):
        none = [0] * len(sizes)
        stated = {"padding_low": none, "padding_high": none, "dilation": [1] * len(sizes)}
        return _pool(c, x, len(sizes), fn=fn, window=fixed, strides=fixed, **stated)
    out, dtype = x, tensor(x).dtype
    if fn == "mean" and dtype.bits < 32:
        out = c.cast(out, F32)
    # channels last, where a place along another axis is a run of channels
    spatial = range(lead, len(dims))
    out = c.transpose(out, [*range(lead - 1), *spatial, lead - 1])
    for axis, count in enumerate(sizes, start=lead - 1):
        out = _uneven(c, out, axis, count, fn)
    out = c.transpose(out, [*range(lead - 1), len(dims) - 1, *range(lead - 1, len(dims) - 1)])
    return c.reshape(c.cast(out, dtype), c.result.dims)


def _uneven(c: Builder, x: SSAValue, axis: int, count: Expr, fn: str) -> SSAValue:
    """Windows along one axis that may differ by one element: as many places as the longest has, the last one repeated
    for a maximum and left out of a mean.
    """
    size = tensor(x).dims[axis]
    if size == count:
        return x
    n, m = count.constant, size.constant
    if n is not None and m is not None:
        longest = Expr.of(max(-(-(i + 1) * m // n) - i * m // n for i in range(n)))
    else:
        longest = floordiv(size + count - 1, count) + 1
    window, tap = (c.iota([count, longest], axis) for axis in (0, 1))
    first = _int(c, "floordiv", _int(c, "mul", window, size), count)
    # a window ends where the next one starts, or one element later
    end = _int(c, "mul", _int(c, "add", window, 1), size)
    end = _int(c, "floordiv", _int(c, "add", end, count - 1), count)
    place = _int(c, "add", first, tap)
    dims = list(tensor(x).dims)
    taken = c.emit(GatherOp, x, c.reshape(_int(c, "min", place, _int(c, "sub", end, 1)), [count * longest]), axis=axis)
    taken = c.reshape(taken, [*dims[:axis], count, longest, *dims[axis + 1 :]])
    if fn == "max":
        return c.reduce("max", taken, [axis + 1])
    dtype = tensor(x).dtype
    share = c.map("reciprocal", c.cast(_int(c, "sub", end, first), dtype), dtype=dtype)
    share = c.select(c.map("lt", place, end, dtype=I64), share, 0, dtype)
    share = c.reshape(share, [count, longest, *[1] * (len(dims) - axis - 1)])
    return c.reduce("sum", c.map("mul", taken, share, dtype=dtype), [axis + 1])


def _int(c: Builder, fn: str, a: SSAValue | Expr | int, b: SSAValue | Expr | int) -> SSAValue:
    """Integer arithmetic on places and sizes."""
    return c.map(fn, a, b, dtype=I64)
