"""channels-last: convolutions and pools run on [N, spatial..., C], and the transposes around them sink and meet.

Channels lie along the vector lanes then, and the window's taps along one image row are one dense run with the channels:
a convolution is a sum of a few dense products. Every convolution is written as pad, product, bias; what scales and
shifts its channels by weights joins the filters, for @prepare to compute; a window of one element is a matmul.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from tilewright.ir.graph.windows import WindowOp
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.canonicalize.shapes import SHAPES
from tilewright.passes.channels_last.filters import FILTERS
from tilewright.passes.channels_last.products import PRODUCTS
from tilewright.passes.channels_last.sinking import SINKING
from tilewright.passes.channels_last.turning import TURNING
from tilewright.passes.rewriting import Rules, erase_dead, run_rules


@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Windows run over [N, spatial..., C]; batch norm joins the filters before them."""

    name: ClassVar[str] = "channels-last"
    needed: ClassVar[bool] = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in functions(module).values():
            if not any(isinstance(op, WindowOp) for op in function.block.ops):
                continue
            run_rules(function.block, Rules(SHAPES, TURNING, SINKING), ctx)
            run_rules(function.block, Rules(SHAPES, FILTERS), ctx)
            run_rules(function.block, Rules(SHAPES, PRODUCTS), ctx)
            erase_dead(function.block)
