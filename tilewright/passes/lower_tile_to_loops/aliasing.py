"""Which scratch a value that is not computed yet will read, and whether its elements may replace those it reads."""

from __future__ import annotations

from xdsl.ir import Operation, SSAValue

from tilewright.ir.loops import Scratch
from tilewright.ir.tile import compute
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import StageOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile


def scratch_behind(cx: Lowering, value: SSAValue) -> set[Scratch]:
    """The scratch that evaluating a value reads."""
    held = cx.tiles.get(value)
    if held is not None:
        return {held.memory} if isinstance(held, ScratchTile) else set()
    op = value.owner
    if not isinstance(op, Operation) or type(op) not in INLINE:
        return set()
    return set().union(*(scratch_behind(cx, o) for o in op.operands if isinstance(o.type, TileType)))


def in_place(cx: Lowering, value: SSAValue, memory: Scratch) -> bool:
    """Whether each element of a value depends on the same element of the memory alone, if on any."""
    held = cx.tiles.get(value)
    if held is not None:
        return True
    op = value.owner
    if not isinstance(op, Operation):
        return True
    for operand in op.operands:
        if not isinstance(operand.type, TileType) or memory not in scratch_behind(cx, operand):
            continue
        aligned = isinstance(op, (compute.MapOp, compute.CastOp, StageOp))
        if not aligned or tile(operand).extents != tile(value).extents or not in_place(cx, operand, memory):
            return False
    return True
