"""Materialises values where they are defined: in place of a dead operand, with the reductions that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xdsl.ir import Operation, SSAValue

from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, ReduceOp, TransposeOp
from tilewright.ir.types import IndexType, TileType, ViewType
from tilewright.passes.lower_tile_to_loops.aliasing import in_place, scratch_behind
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE, lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import fill, static_axes, storage_for
from tilewright.passes.lower_tile_to_loops.reductions import RowFold, fold_all
from tilewright.passes.lower_tile_to_loops.sites import Site, lane_axis
from tilewright.passes.lower_tile_to_loops.staying_awake import staying_awake
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile, Storage
from tilewright.passes.lower_tile_to_loops.sweeps import Space
from tilewright.passes.lower_tile_to_loops.transposes import fill_transposed, turns_lanes


def materialise(cx: Lowering, op: Operation) -> None:
    """Computes an inline op's value once, into the home that placement gave it."""
    value = op.results[0]
    home = _in_place_of(cx, op) or storage_for(cx, value)
    if isinstance(home, ScratchTile) and isinstance(op, TransposeOp) and turns_lanes(op, cx.lanes):
        fill_transposed(cx, home, op)
    else:
        folds = [RowFold(cx, r) for r in _readers(cx, op)] if isinstance(home, ScratchTile) else []
        if folds and isinstance(home, ScratchTile):
            _fill_and_fold(cx, home, value, folds)
        else:
            fill(cx, home, value)
    cx.tiles[value] = home


def _in_place_of(cx: Lowering, op: Operation) -> Storage | None:
    """The scratch of an operand that dies here, where each element of the result needs the same element of it alone."""
    value = op.results[0]
    if cx.plan.homes[value] != "scratch":
        return None
    for dead in cx.plan.dies.get(op, ()):
        held = cx.tiles.get(dead)
        if not isinstance(held, ScratchTile) or not cx.sole(held):
            continue
        fits = held.extents == tile(value).extents and held.dtype == tile(value).dtype
        if fits and held.memory in scratch_behind(cx, value) and in_place(cx, value, held.memory):
            return cx.hold(held)
    return None


def _fill_and_fold(cx: Lowering, home: ScratchTile, value: SSAValue, folds: Sequence[RowFold]) -> None:
    """Fills scratch and folds its rows in one sweep: the elements are reduced while they are in registers."""
    static = static_axes(cx, value).union(*(f.static for f in folds))
    space = staying_awake(cx, value, replace(Space.of(home.extents, LANES, static), live=cx.live(value)))

    def write(site: Site) -> None:
        home.write(cx.b, site, lanes_at(cx, value, site))

    fold_all(cx, folds, space, write)
    for fold in folds:
        fold.publish()


def _readers(cx: Lowering, op: Operation) -> list[ReduceOp]:
    """The reductions along a value's rows that follow in its block and need nothing that is not computed yet."""
    value, found = op.results[0], []
    extents = tile(value).extents
    axis, later = lane_axis(extents), op.next_op
    while later is not None:
        if isinstance(later, ReduceOp) and later.axis.data == axis and later.fn.data != "attention":
            same = all(tile(a).extents == extents for a in later.args)
            reads = any(_reads(a, value) or _passes(cx, a, value) for a in later.args)
            wanted = any(cx.plan.roots.get(r) for r in later.results)
            if same and reads and wanted and all(_ready(cx, a, value) for a in later.args):
                found.append(later)
        later = later.next_op
    return found


def _reads(value: SSAValue, source: SSAValue) -> bool:
    """Whether evaluating a value evaluates the source."""
    if value is source:
        return True
    op = value.owner
    return isinstance(op, Operation) and type(op) in INLINE and any(_reads(o, source) for o in op.operands)


def _passes(cx: Lowering, value: SSAValue, target: SSAValue) -> bool:
    """Whether evaluating the target comes by a value that is not kept, wherever anyone looks at that value."""
    if value in cx.plan.homes or not _reads(target, value):
        return False
    here, there = ({axis: at.expr for axis, at in cx.live(v).items()} for v in (value, target))
    return here == there


def _ready(cx: Lowering, value: SSAValue, source: SSAValue) -> bool:
    """Whether a value can be evaluated now, given the source."""
    if value is source or value in cx.tiles:
        return True
    op = value.owner
    if not isinstance(op, Operation) or type(op) not in INLINE or value in cx.plan.homes:
        return False
    for operand in op.operands:
        match operand.type:
            case TileType():
                known = _ready(cx, operand, source)
            case IndexType():
                known = operand in cx.indices
            case ViewType():
                known = operand in cx.views
            case _:
                known = False
        if not known:
            return False
    return True
