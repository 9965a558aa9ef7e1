"""Loads whose next elements a loop tells."""

from __future__ import annotations

from xdsl.ir import BlockArgument

from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import LoadOp
from tilewright.ir.tile.structure import ForOp


def stepping(load: LoadOp) -> int | None:
    """The axis along which a load takes its tile's extent further in every step of the loop around it."""
    for axis, (start, extent) in enumerate(zip(load.at, tile(load.out).extents, strict=True)):
        loop = start.owner.parent_op() if isinstance(start, BlockArgument) else None
        if extent > 1 and isinstance(loop, ForOp) and loop.coordinate is start and loop.step.data == extent:
            return axis
    return None
