"""Rules that write convolutions and pools for channels-last operands, between two transposes."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.shape import PadOp, TransposeOp
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp
from tilewright.passes.rewriting import Rules, Site

TURNING = Rules()


def channels_to_last(rank: int) -> tuple[int, ...]:
    """The permutation from [N, C, spatial...] to [N, spatial..., C]."""
    return (0, *range(2, rank), 1)


def channels_to_second(rank: int) -> tuple[int, ...]:
    """The permutation from [N, spatial..., C] to [N, C, spatial...]."""
    return (0, rank - 1, *range(1, rank - 1))


@TURNING.on(ConvolutionOp)
def convolution_channels_last(op: ConvolutionOp, site: Site) -> SSAValue | None:
    """The image is padded in memory, so that every tap of every window lies in it; the bias is added afterwards."""
    rank = tensor(op.x).rank
    if op.channels_last.data:
        return None
    x = site.make(TransposeOp, op.x, permutation=channels_to_last(rank))
    if any(op.padding_low.data) or any(op.padding_high.data):
        x = site.make(PadOp, x, low=[0, *op.padding_low.data, 0], high=[0, *op.padding_high.data, 0])
    none = [0] * (rank - 2)
    out = site.make(
        ConvolutionOp,
        x,
        site.make(TransposeOp, op.w, permutation=(*range(2, rank), 1, 0)),
        None,
        strides=op.strides,
        padding_low=none,
        padding_high=none,
        dilation=op.dilation,
        groups=op.groups,
        channels_last=True,
    )
    if op.bias is not None:
        out = site.make(MapOp, [out, op.bias], fn="add")
    return site.make(TransposeOp, out, permutation=channels_to_second(rank))


@TURNING.on(PoolOp)
def pool_channels_last(op: PoolOp, site: Site) -> SSAValue | None:
    """Every channel is pooled alike, so channels lie along the lanes."""
    rank = tensor(op.x).rank
    if op.channels_last.data:
        return None
    out = site.make(
        PoolOp,
        site.make(TransposeOp, op.x, permutation=channels_to_last(rank)),
        fn=op.fn,
        window=op.window,
        strides=op.strides,
        padding_low=op.padding_low,
        padding_high=op.padding_high,
        dilation=op.dilation,
        ceil=op.ceil,
        count_padding=op.count_padding,
        divisor=op.divisor,
        channels_last=True,
    )
    return site.make(TransposeOp, out, permutation=channels_to_second(rank))
