"""Convolutions, and transposed ones as convolutions whose filters give every position between two elements of x."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.shape import flip
from tilewright.frontend.aten.windows import per_axis
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import PadOp
from tilewright.ir.graph.windows import ConvolutionOp


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def conv(
    c: Builder,
    input: SSAValue,
    weight: SSAValue,
    bias: SSAValue | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> SSAValue:
    pad = per_axis(padding, tensor(weight).rank - 2)
    return _convolved(c, input, weight, bias, stride, pad, pad, dilation, groups)


@lowers("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def conv_padding(
    c: Builder,
    input: SSAValue,
    weight: SSAValue,
    bias: SSAValue | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> SSAValue:
    """Padding by name: "same" puts the odd element after, as torch does."""
    spread = per_axis(dilation, tensor(weight).rank - 2, 1)
    windows = [d.constant for d in tensor(weight).dims[2:]]
    total = [s * ((w or 1) - 1) if padding == "same" else 0 for s, w in zip(spread, windows, strict=True)]
    low = [n // 2 for n in total]
    high = [n - n // 2 for n in total]
    return _convolved(c, input, weight, bias, stride, low, high, spread, groups)


def _convolved(
    c: Builder,
    x: SSAValue,
    weight: SSAValue,
    bias: SSAValue | None,
    stride: Any,
    low: list[int],
    high: list[int],
    dilation: Any,
    groups: int,
) -> SSAValue:
    """A convolution of x [N, C, spatial...] or [C, spatial...], with zeros before and after each axis."""
    spatial = tensor(weight).rank - 2
    stated = {"strides": per_axis(stride, spatial, 1), "dilation": per_axis(dilation, spatial, 1), "groups": groups}
    batched = x if tensor(x).rank == spatial + 2 else c.reshape(x, [1, *tensor(x).dims])
    made = c.emit(ConvolutionOp, batched, weight, bias, padding_low=low, padding_high=high, **stated)
    return c.reshape(made, c.result.dims)


@lowers("aten.convolution.default")
def convolution(
    c: Builder,
    input: SSAValue,
    weight: SSAValue,
    bias: SSAValue | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> SSAValue:
    if transposed:
        return conv_transpose(c, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(c, input, weight, bias, stride, padding, dilation, groups)


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    c: Builder,
    input: SSAValue,
    weight: SSAValue,
    bias: SSAValue | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> SSAValue:
    """weight is [C, F / groups, window...]. Element q * stride + r of the result, counted from -padding, sums x[q - t]
    times tap r + t * stride: for each r a convolution by every stride-th tap, flipped. One convolution gives them all,
    with stride times as many filters an axis, and a reshape puts them side by side.
    """
    spatial = tensor(weight).rank - 2
    steps, spread = (per_axis(v, spatial, 1) for v in (stride, dilation))
    cut, more = (per_axis(v, spatial) for v in (padding, output_padding))
    x = input if tensor(input).rank == spatial + 2 else c.reshape(input, [1, *tensor(input).dims])
    filters, taps, reach = _phases(c, weight, steps, spread, groups)
    after = [(r - 1 + m - p) // s for r, m, p, s in zip(reach, more, cut, steps, strict=True)]
    y = c.emit(
        ConvolutionOp,
        x,
        filters,
        None,
        strides=[1] * spatial,
        padding_low=[t - 1 for t in taps],
        padding_high=[max(n, 0) for n in after],
        dilation=[1] * spatial,
        groups=groups,
    )
    batch, _, *places = tensor(y).dims
    wide = tensor(weight).dims[1]
    # [N, groups, phases..., F / groups, places...] -> [N, groups, F / groups, place, phase, ...]
    y = c.reshape(y, [batch, groups, *steps, wide, *places])
    pairs = [axis for i in range(spatial) for axis in (3 + spatial + i, 2 + i)]
    y = c.transpose(y, [0, 1, 2 + spatial, *pairs])
    y = c.reshape(y, [batch, wide * groups, *(n * s for n, s in zip(places, steps, strict=True))])
    sizes = c.result.dims[-spatial:]
    for axis, (first, size) in enumerate(zip(cut, sizes, strict=True), start=2):
        y = c.slice(y, axis, first, size + first)
    if bias is not None:
        y = c.map("add", y, c.reshape(bias, [tensor(bias).dims[0], *[1] * spatial]))
    return c.reshape(y, c.result.dims)


def _phases(
    c: Builder, weight: SSAValue, steps: list[int], spread: list[int], groups: int
) -> tuple[SSAValue, list[int], list[int]]:
    """Filters [groups * phases * F / groups, C / groups, taps...] of the convolution that a transposed one is; the taps
    of each, and how far the window reaches.
    """
    spatial = len(steps)
    channels, wide, *windows = tensor(weight).dims
    reach = [d * ((n.constant or 1) - 1) + 1 for n, d in zip(windows, spread, strict=True)]
    taps = [-(-r // s) for r, s in zip(reach, steps, strict=True)]
    w = weight
    for axis, (d, r) in enumerate(zip(spread, reach, strict=True), start=2):
        if d > 1:
            # zeros between the taps
            dims = list(tensor(w).dims)
            w = c.reshape(w, [*dims[: axis + 1], 1, *dims[axis + 1 :]])
            w = _padded(c, w, axis + 1, d - 1)
            w = c.slice(c.reshape(w, [*dims[:axis], dims[axis] * d, *dims[axis + 1 :]]), axis, 0, r)
    for axis, (r, t, s) in enumerate(zip(reach, taps, steps, strict=True), start=2):
        w = _padded(c, w, axis, t * s - r)
    deep = channels // groups
    w = c.reshape(w, [groups, deep, wide, *(n for pair in zip(taps, steps, strict=True) for n in pair)])
    phase, tap = [4 + 2 * i for i in range(spatial)], [3 + 2 * i for i in range(spatial)]
    w = c.transpose(w, [0, *phase, 2, 1, *tap])
    filters = wide * groups
    for s in steps:
        filters = filters * s
    w = c.reshape(w, [filters, deep, *taps])
    turned = [axis for axis, t in enumerate(taps) if t > 1]
    if turned:
        w = flip(c, c.transpose(w, [*range(2, spatial + 2), 0, 1]), turned)
        w = c.transpose(w, [spatial, spatial + 1, *range(spatial)])
    return w, taps, reach


def _padded(c: Builder, x: SSAValue, axis: int, count: int) -> SSAValue:
    """x with zeros after it along an axis."""
    if not count:
        return x
    rank = tensor(x).rank
    return c.emit(PadOp, x, low=[0] * rank, high=[count if i == axis else 0 for i in range(rank)])
