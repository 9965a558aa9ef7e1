"""The map skeleton: every element of the result is computed from elements of the operands at related places."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import DimSpace, Expr
from tilewright.ir.graph import attention, shape, structure
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.compute import LANES
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import Space, map_group, padded_axes, unsupported
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, all_strides, begin, by_size, padded
from tilewright.passes.lower_to_tile.layout import Walk, merge_axes

STATIC_COLUMNS = 1024  # a longer row is cut into tiles
DYNAMIC_COLUMNS = 256


def axes_apart(space: Space, group: GroupOp) -> frozenset[int]:
    """Axes whose coordinate is asked for by name, so that they cannot be merged away."""
    apart: set[int] = set()
    for op in group.block.ops:
        match op:
            case structure.IotaOp():
                apart.update(space.maps[op.results[0]][op.axis.data].axes)
            case structure.PositionsOp():
                apart.update(space.maps[op.results[0]][0].axes)
            case attention.RotaryOp():
                apart.update(space.maps[op.results[0]][-1].axes)
            case shape.PadOp():
                for i in padded_axes(op):
                    apart.update(space.maps[op.out][i].axes)
            case _:
                pass
    return frozenset(apart)


def column_tile(extent: Expr) -> int:
    """The columns of an elementwise tile."""
    size = extent.constant
    if size is None:
        return DYNAMIC_COLUMNS
    return min(padded(max(size, 1), LANES), STATIC_COLUMNS)


def whole_column(space: Space, group: GroupOp, walk: Walk) -> int | None:
    """The exact extent of the last axis where an op needs all of it in one tile (rotary)."""
    for op in group.block.ops:
        if isinstance(op, attention.RotaryOp):
            return tensor(op.x).dims[-1].constant
    return None


def lower_map(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """One program a row tile and column tile; the last axis of the result runs along the vector lanes."""
    return by_size(group, machine, dims, name, lambda name, streaming: _kernel(group, name, machine, streaming))


def _kernel(group: GroupOp, name: str, machine: Machine, streaming: bool) -> KernelOp:
    space = map_group(group)
    strides = all_strides(space, group)
    walk = merge_axes(space, space.order, strides, axes_apart(space, group))
    if not walk.extents:
        walk = Walk([Expr.of(1)], [()])
    b, buffers, outputs = begin(group, name)
    column = len(walk.extents) - 1
    row = column - 1 if column > 0 else None
    columns = whole_column(space, group, walk) or column_tile(walk.extents[column])
    tiles = [1] * len(walk.extents)
    tiles[column] = columns
    if row is not None:
        tiles[row] = machine.rules.rows
    at = b.grid(walk.extents, tiles)
    extents = dict(enumerate(tiles))
    emitter = Emitter(b, space, walk, buffers, strides, dict(enumerate(at)), row, column, extents, streaming=streaming)
    for value, output in zip(group.yielded, outputs, strict=True):
        check_complete(group, value, emitter)
        emitter.store(value, output, emitter.tile(value))
    return b.finish()


def check_complete(group: GroupOp, value: SSAValue, emitter: Emitter) -> None:
    """A result must vary along every axis, or two programs would write the same elements."""
    steps = emitter.walk.strides(emitter.strides[value])
    if any(step is None and emitter.walk.extents[i].constant != 1 for i, step in enumerate(steps)):
        raise unsupported(group, f"result {value.type} does not vary along every axis of the kernel")
