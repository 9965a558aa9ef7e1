"""Puts tiles where placement wants them: evaluates a value over its extents into registers or scratch."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from xdsl.ir import Operation, SSAValue

from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile import compute
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE, lanes_at
from tilewright.passes.lower_tile_to_loops.operands import unit_reshape
from tilewright.passes.lower_tile_to_loops.sites import Site, lane_axis
from tilewright.passes.lower_tile_to_loops.storage import RegisterTile, ScratchTile, Storage
from tilewright.passes.lower_tile_to_loops.sweeps import Space, sweep, whole_or_part

_OPS_A_FLOP = 3  # loop-IR ops that a function of the scalar table takes for each FLOP that it counts
_STATIC_ROWS = 8  # rows of a joined tile that are unrolled, so that the part each comes from is known


def register_tile(cx: Lowering, value: SSAValue) -> RegisterTile:
    """An empty register tile of a value's type: a few scalars for a short column, vectors otherwise."""
    extents = tile(value).extents
    axis = lane_axis(extents)
    column = axis is None or (extents[-1] == 1 and axis != len(extents) - 1)
    lanes = LANES if axis is not None and extents[axis] == LANES else cx.lanes
    return cx.registers(extents, tile(value).dtype, lanes, scalars=column)


def storage_for(cx: Lowering, value: SSAValue) -> Storage:
    """Empty storage where placement wants the value."""
    if cx.plan.homes[value] == "registers":
        return register_tile(cx, value)
    extents = tile(value).extents
    home = cx.scratch(extents, tile(value).dtype)
    keep_clean(cx, value, home)
    return home


def keep_clean(cx: Lowering, value: SSAValue, home: ScratchTile) -> None:
    """Has scratch begin as zeros where a value that comes to live in it is not looked at whole."""
    if any(n > 1 and cx.plan.observed.limit(value, axis) is not None for axis, n in enumerate(tile(value).extents)):
        # A dot's last block reads rows and columns that nobody looks at and nobody computes. They may hold anything,
        # but arithmetic on what lies in memory by chance, subnormal numbers say, can be a hundred times slower.
        home.memory.zeroed = True


def space_of(storage: Storage, lanes: int, static: frozenset[int] = frozenset()) -> Space:
    """The sweep that fills a storage: its own positions for registers, vectors of `lanes` for scratch."""
    if isinstance(storage, RegisterTile):
        return Space(storage.extents, storage.lanes, storage.axis, static=frozenset(range(len(storage.extents))))
    return Space(storage.extents, lanes, storage.axis, static=static)


def fill(cx: Lowering, storage: Storage, value: SSAValue) -> None:
    """Evaluates a value into a storage of its extents."""
    space = space_of(storage, cx.lanes, static_axes(cx, value))
    if isinstance(storage, ScratchTile):
        space = replace(space, live=cx.live(value))

    def visit(site: Site) -> None:
        storage.write(cx.b, site, lanes_at(cx, value, site))

    whole_or_part(cx, space, lambda part: sweep(cx, part, visit))


def copy(cx: Lowering, source: Storage, target: Storage) -> None:
    """Copies a tile from one storage to another."""
    if source is target:
        return
    static = frozenset(range(len(source.extents))) if isinstance(source, RegisterTile) else frozenset()
    sweep(cx, space_of(target, cx.lanes, static), lambda site: target.write(cx.b, site, source.read(cx.b, site)))


def static_axes(cx: Lowering, value: SSAValue) -> frozenset[int]:
    """The axes of a value along which sites must be static, because a register tile or a joint lies behind them."""
    stored = cx.tiles.get(value)
    if stored is not None:
        if isinstance(stored, ScratchTile):
            return frozenset()
        return frozenset(axis for axis, n in enumerate(stored.extents) if n > 1)
    op = value.owner
    if not isinstance(op, Operation) or type(op) not in INLINE:
        return frozenset()
    tiles = [o for o in op.operands if isinstance(o.type, TileType)]
    below = [static_axes(cx, o) for o in tiles]
    extents = tile(value).extents
    match op:
        case compute.TransposeOp():
            return frozenset(axis for axis, source in enumerate(op.permutation.data) if source in below[0])
        case compute.ReshapeOp():
            if not below[0]:
                return frozenset()
            if not unit_reshape(op):
                return frozenset(range(len(extents)))
            ours = [a for a, n in enumerate(tile(op.source).extents) if n != 1]
            theirs = [a for a, n in enumerate(extents) if n != 1]
            return frozenset(t for o, t in zip(ours, theirs, strict=True) if o in below[0])
        case compute.ConcatOp():
            axis = op.axis.data
            short = extents[axis] <= (_STATIC_ROWS * 2 * LANES if axis == lane_axis(extents) else _STATIC_ROWS)
            return frozenset().union(*below, {axis} if short else ())
        case _:
            return frozenset().union(*below)


def weight(cx: Lowering, value: SSAValue, kept: Container[SSAValue] | None = None) -> int:
    """Ops that one site of a value takes, roughly; what decides between unrolling and a loop.

    kept: values that are read and not computed; None: those that have a tile by now.
    """
    kept = cx.tiles if kept is None else kept
    seen: set[SSAValue] = set()

    def count(value: SSAValue) -> int:
        op = value.owner
        if value in kept or value in seen or not isinstance(op, Operation) or type(op) not in INLINE:
            return 0
        seen.add(value)
        own = max(1, _OPS_A_FLOP * SCALARS[op.fn.data].flops) if isinstance(op, compute.MapOp) else 1
        return own + sum(count(o) for o in op.operands if isinstance(o.type, TileType))

    return count(value)
