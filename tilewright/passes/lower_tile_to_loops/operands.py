"""Questions about tile values that need no code: what lies behind one, and whether it can be read in place."""

from __future__ import annotations

from xdsl.ir import Operation, SSAValue

from tilewright.ir.tile import compute
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import LoadOp, StageOp


def leaf(value: SSAValue) -> Operation | None:
    """The op behind reshapes that only add or drop axes of extent 1, slices, transposes and stages."""
    op = value.owner
    match op:
        case compute.ReshapeOp():
            return leaf(op.source) if unit_reshape(op) else None
        case compute.SliceOp() | compute.TransposeOp() | StageOp():
            return leaf(op.source)
        case Operation():
            return op
        case _:
            return None


def is_direct(value: SSAValue) -> bool:
    """Whether elements can be read one by one from where they lie, without arithmetic."""
    return isinstance(leaf(value), (LoadOp, compute.ConstantOp))


def joins_rows(value: SSAValue) -> bool:
    """Whether a tile is a direct one whose outer axes are joined, its last one kept: rows at places that need a
    division each, and nothing more.
    """
    op = value.owner
    if not isinstance(op, compute.ReshapeOp) or tile(op.source).extents[-1:] != tile(op.out).extents[-1:]:
        return False
    return is_direct(op.source)


def unit_reshape(op: compute.ReshapeOp) -> bool:
    """Whether a reshape only adds or drops axes of extent 1."""
    return [n for n in tile(op.source).extents if n != 1] == [n for n in tile(op.out).extents if n != 1]


def unit_axis(op: compute.ReshapeOp, axis: int, *, forward: bool = False) -> int | None:
    """The source's axis that is an axis of a unit reshape's result (forward: the other way); None for extents of 1."""
    known, wanted = (op.source, op.out) if forward else (op.out, op.source)
    if tile(known).extents[axis] == 1:
        return None
    ours = [a for a, n in enumerate(tile(known).extents) if n != 1]
    theirs = [a for a, n in enumerate(tile(wanted).extents) if n != 1]
    return theirs[ours.index(axis)]
