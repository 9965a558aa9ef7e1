"""Stores: sweeps over the part of a tile that lies inside the view."""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import StoreOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.loads import spans_of
from tilewright.passes.lower_tile_to_loops.materialise import static_axes, weight
from tilewright.passes.lower_tile_to_loops.sites import Site
from tilewright.passes.lower_tile_to_loops.spilling import registers_behind, spilled
from tilewright.passes.lower_tile_to_loops.sweeps import Space, sweep
from tilewright.passes.lower_tile_to_loops.views import all_of

_UNROLLED_OPS = 400  # ops beyond which an epilogue on a register tile loops over a copy in scratch


def store(cx: Lowering, op: StoreOp) -> None:
    """Writes the lanes of a tile that lie inside the view."""
    b = cx.b
    space = Space.of(tile(op.source).extents, cx.lanes)
    limits = available(cx, op)
    held = registers_behind(cx, op.source)
    vectors = sum(len(r.positions()) for r in held.values() if r.axis is not None)

    def run(space: Space) -> None:
        space = replace(space, static=static_axes(cx, op.source))
        sweep(cx, space, lambda site: _write(cx, op, site))

    if vectors and vectors * (2 + weight(cx, op.source)) > _UNROLLED_OPS:
        with spilled(cx, [op.source], vectors_only=True):
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
                with spilled(cx, [op.source], vectors_only=True):
                    run(clipped)


def available(cx: Lowering, op: StoreOp) -> dict[int, Index]:
    """How many elements of the view there are from the region's start, along the axes where that may be too few."""
    b, view, found = cx.b, cx.views[op.target], {}
    for axis, (extent, origin, count) in enumerate(zip(view.extents, op.at, tile(op.source).extents, strict=True)):
        start = cx.indices[origin]
        rest = extent.expr - start.expr
        if not cx.facts.at_least(rest, count):
            found[axis] = Index(b.sub(extent.value, start.value), rest)
    return found


def _write(cx: Lowering, op: StoreOp, site: Site) -> None:
    b = cx.b
    place = cx.views[op.target].place(
        spans_of(cx, list(op.at), tile(op.source).extents, site), site.lanes, clamp=False, counts=site.mask
    )
    mask = all_of(b, place.conditions, site.lanes)
    if site.mask is not None:
        mask = site.mask if mask is None else b.and_(mask, site.mask)
    value = lanes_at(cx, op.source, site)
    if place.spread is not None:
        b.scatter(value, place.memory, place.offset, place.spread, mask=mask)
    else:
        streaming = op.streaming.data and place.aligned % site.lanes == 0 and place.step == 1
        b.store(value, place.memory, place.offset, stride=place.step, mask=mask, streaming=streaming)
