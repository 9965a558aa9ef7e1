"""Rules that turn convolutions without a neighbourhood into matrix products."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.passes.rewriting import Rules, Site

PRODUCTS = Rules()


def mixes_channels_alone(op: ConvolutionOp) -> bool:
    """Every position is computed from the same position: windows of one element, a step of one, one group."""
    single = all(w.constant == 1 for w in op.windows) and all(s == 1 for s in op.strides.data)
    return single and op.groups.data == 1 and not any((*op.padding_low.data, *op.padding_high.data))


@PRODUCTS.on(ConvolutionOp)
def pointwise_convolution_is_a_product(op: ConvolutionOp, site: Site) -> SSAValue | None:
    """[N, spatial..., C] times [C, F]."""
    if not op.channels_last.data or not mixes_channels_alone(op):
        return None
    return site.make(MatmulOp, op.x, site.make(ReshapeOp, op.w, dims=tensor(op.w).dims[-2:]))
