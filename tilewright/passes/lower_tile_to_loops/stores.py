"""Stores: sweeps over the part of a tile that lies inside the view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from xdsl.ir import Operation, SSAValue

from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import StoreOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE, vector
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.loads import spans_of
from tilewright.passes.lower_tile_to_loops.materialise import copy, static_axes, weight
from tilewright.passes.lower_tile_to_loops.sites import Site
from tilewright.passes.lower_tile_to_loops.storage import RegisterTile
from tilewright.passes.lower_tile_to_loops.sweeps import Space, sweep
from tilewright.passes.lower_tile_to_loops.views import all_of

_UNROLLED_OPS = 400  # ops beyond which an epilogue on a register tile loops over a copy in scratch


def store(cx: Lowering, op: StoreOp) -> None:
    """Writes the lanes of a tile that lie inside the view."""
    b = cx.b
    space = Space.of(tile(op.source).extents, cx.lanes)
    limits = available(cx, op)
    held = _registers_behind(cx, op.source)
    vectors = sum(len(r.positions()) for r in held.values() if r.axis is not None)

    def run(space: Space) -> None:
        space = replace(space, static=static_axes(cx, op.source))
        sweep(cx, space, lambda site: _write(cx, op, site))

    if vectors and vectors * (2 + weight(cx, op.source)) > _UNROLLED_OPS:
        with _spilled(cx, held):
            run(replace(space, limits=limits))
        return
    if not limits or (not vectors and space.axis not in limits):
        run(replace(space, limits=limits))
        return
    # A whole tile is written without masks; the other side is a loop that clips, over a copy in scratch.
    clipped = replace(space, limits=limits)
    whole: Value | None = None
    for axis, limit in limits.items():
        reached = b.compare("ge", limit.value, space.extents[axis])
        whole = reached if whole is None else b.and_(whole, reached)
    with b.either(whole) as sides:
        with sides.then() as taken:
            if taken:
                run(clipped.full())
        with sides.otherwise() as taken:
            if taken:
                with _spilled(cx, held):
                    run(clipped)


def available(cx: Lowering, op: StoreOp) -> dict[int, Index]:
    """How many elements of the view there are from the region's start, along the axes where that may be too few."""
    b, view, found = cx.b, cx.views[op.target], {}
    for axis, (extent, at, count) in enumerate(zip(view.extents, op.at, tile(op.source).extents, strict=True)):
        start = cx.indices[at]
        rest = extent.expr - start.expr
        if not cx.facts.at_least(rest, count):
            found[axis] = Index(b.sub(extent.value, start.value), rest)
    return found


def _write(cx: Lowering, op: StoreOp, site: Site) -> None:
    b = cx.b
    place = cx.views[op.target].place(
        spans_of(cx, list(op.at), tile(op.source).extents, site), site.lanes, clamp=False
    )
    mask = all_of(b, place.conditions, site.lanes)
    if site.mask is not None:
        mask = site.mask if mask is None else b.and_(mask, site.mask)
    value = vector(cx, op.source, site) if site.lanes > 1 else _scalar(cx, op.source, site)
    if place.spread is not None:
        b.scatter(value, place.memory, place.offset, place.spread, mask=mask)
    else:
        b.store(value, place.memory, place.offset, stride=place.step, mask=mask)


def _scalar(cx: Lowering, value: SSAValue, site: Site) -> Value:
    from tilewright.passes.lower_tile_to_loops.elementwise import evaluate

    return evaluate(cx, value, site)


def _registers_behind(cx: Lowering, value: SSAValue) -> dict[SSAValue, RegisterTile]:
    """The register tiles that evaluating a value reads."""
    stored = cx.tiles.get(value)
    if isinstance(stored, RegisterTile):
        return {value: stored}
    op = value.owner
    if stored is not None or not isinstance(op, Operation) or type(op) not in INLINE:
        return {}
    found: dict[SSAValue, RegisterTile] = {}
    for operand in op.operands:
        if isinstance(operand.type, TileType):
            found |= _registers_behind(cx, operand)
    return found


@contextmanager
def _spilled(cx: Lowering, held: dict[SSAValue, RegisterTile]) -> Iterator[None]:
    """For the time of a block, vectors that are held in registers lie in scratch, where loops can read them."""
    moved = {value: r for value, r in held.items() if r.axis is not None}
    for value, registers in moved.items():
        scratch = cx.scratch(registers.extents, registers.dtype)
        copy(cx, registers, scratch)
        cx.tiles[value] = scratch
    yield
    for value, registers in moved.items():
        spilled = cx.tiles[value]
        cx.tiles[value] = registers
        cx.drop(spilled)
