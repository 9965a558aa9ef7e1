"""channels-last: convolutions and pools run on [N, spatial..., C], and the transposes around them sink and meet.

Channels lie along the vector lanes then, and the window's taps along one image row are one dense run with the channels:
a convolution is a sum of a few dense products. Every convolution is written as pad, product, bias; what scales and
shifts its channels by weights joins the filters, for @prepare to compute; a window of one element is a matmul.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.ir import Operation

from tilewright.ir.graph.windows import WindowOp
from tilewright.passes.canonicalize.shapes import SHAPES
from tilewright.passes.channels_last.filters import FILTERS
from tilewright.passes.channels_last.products import PRODUCTS
from tilewright.passes.channels_last.sinking import SINKING
from tilewright.passes.channels_last.turning import TURNING
from tilewright.passes.rewriting import Rules, RulesPass


@dataclass(frozen=True)
class ChannelsLast(RulesPass):
    """Windows run over [N, spatial..., C]; batch norm joins the filters before them."""

    name: ClassVar[str] = "channels-last"
    needed: ClassVar[bool] = True
    tables: ClassVar[tuple[Rules, ...]] = (
        Rules(SHAPES, TURNING, SINKING), Rules(SHAPES, FILTERS), Rules(SHAPES, PRODUCTS)
    )  # fmt: skip
    looks_for: ClassVar[tuple[type[Operation], ...]] = (WindowOp,)
