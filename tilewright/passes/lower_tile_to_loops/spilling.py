"""Register tiles moved to scratch for a while, so that loops can read them at positions of run time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from xdsl.ir import Operation, SSAValue

from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE
from tilewright.passes.lower_tile_to_loops.materialise import copy
from tilewright.passes.lower_tile_to_loops.storage import RegisterTile


def registers_behind(cx: Lowering, value: SSAValue) -> dict[SSAValue, RegisterTile]:
    """The register tiles of more than one element that evaluating a value reads."""
    stored = cx.tiles.get(value)
    if stored is not None:
        several = isinstance(stored, RegisterTile) and any(n > 1 for n in stored.extents)
        return {value: stored} if several and isinstance(stored, RegisterTile) else {}
    op = value.owner
    if not isinstance(op, Operation) or type(op) not in INLINE:
        return {}
    found: dict[SSAValue, RegisterTile] = {}
    for operand in op.operands:
        if isinstance(operand.type, TileType):
            found |= registers_behind(cx, operand)
    return found


@contextmanager
def spilled(cx: Lowering, values: Sequence[SSAValue], *, vectors_only: bool = False) -> Iterator[None]:
    """For the time of a block, the register tiles behind the values lie in scratch. vectors_only: columns stay."""
    moved: dict[SSAValue, RegisterTile] = {}
    for value in values:
        moved |= registers_behind(cx, value)
    moved = {value: held for value, held in moved.items() if held.axis is not None or not vectors_only}
    for value, held in moved.items():
        scratch = cx.scratch(held.extents, held.dtype)
        copy(cx, held, scratch)
        cx.tiles[value] = scratch
    yield
    for value, held in moved.items():
        aside, cx.tiles[value] = cx.tiles[value], held
        cx.drop(aside)
