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


def unit_reshape(op: compute.ReshapeOp) -> bool:
    """Whether a reshape only adds or drops axes of extent 1."""
    return [n for n in tile(op.source).extents if n != 1] == [n for n in tile(op.out).extents if n != 1]


def loaded_axis(value: SSAValue, axis: int) -> tuple[LoadOp, int] | None:
    """The load behind a value and its axis that is the value's; None where arithmetic or a slice lies between."""
    op = value.owner
    match op:
        case LoadOp():
            return op, axis
        case StageOp():
            return loaded_axis(op.source, axis)
        case compute.TransposeOp():
            return loaded_axis(op.source, op.permutation.data[axis])
        case compute.ReshapeOp() if unit_reshape(op) and tile(value).extents[axis] != 1:
            ours = [a for a, n in enumerate(tile(op.out).extents) if n != 1]
            theirs = [a for a, n in enumerate(tile(op.source).extents) if n != 1]
            return loaded_axis(op.source, theirs[ours.index(axis)])
        case _:
            return None
