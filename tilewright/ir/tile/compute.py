"""Everything a kernel computes with: the door to the tile dialect's pure ops, one file a kind."""

from __future__ import annotations

from tilewright.ir.tile.contraction import CONTRACTION, DotOp, DotScaledOp
from tilewright.ir.tile.elementwise import (
    ELEMENTWISE,
    BroadcastOp,
    CastOp,
    ConstantOp,
    ElementsOp,
    IndexTileOp,
    MapOp,
    SplatOp,
)
from tilewright.ir.tile.formats import PACKING, PackOp, UnpackOp
from tilewright.ir.tile.ordering import ORDERING, SortOp, TopkOp
from tilewright.ir.tile.rearrangement import REARRANGEMENT, ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.tile.reduction import LANES, REDUCTION, AccumulateOp, ReduceOp, ScanOp

COMPUTE = [*ELEMENTWISE, *REDUCTION, *CONTRACTION, *PACKING, *ORDERING, *REARRANGEMENT]

__all__ = [
    "COMPUTE",
    "LANES",
    "AccumulateOp",
    "BroadcastOp",
    "CastOp",
    "ConcatOp",
    "ConstantOp",
    "DotOp",
    "DotScaledOp",
    "ElementsOp",
    "IndexTileOp",
    "MapOp",
    "PackOp",
    "ReduceOp",
    "ReshapeOp",
    "ScanOp",
    "SliceOp",
    "SortOp",
    "SplatOp",
    "TopkOp",
    "TransposeOp",
    "UnpackOp",
]
