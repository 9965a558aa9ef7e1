"""Scans: in order along an axis, vectors at a time where the axis is not the lane axis, scalars where it is."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import ScanOp
from tilewright.passes.lower_tile_to_loops.combines import combine
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import storage_for
from tilewright.passes.lower_tile_to_loops.sites import Coord, Site, known, lane_axis
from tilewright.passes.lower_tile_to_loops.spilling import spilled
from tilewright.passes.lower_tile_to_loops.sweeps import Space, sweep


def lower_scan(cx: Lowering, op: ScanOp) -> None:
    """Inclusive scan along an axis, each step rounded in the tile's dtype."""
    b, fn, axis = cx.b, op.fn.data, op.axis.data
    extents = tile(op.args[0]).extents
    homes = [storage_for(cx, r) if cx.plan.roots.get(r) else None for r in op.out]
    along = lane_axis(extents)
    across = tuple(1 if a == axis else n for a, n in enumerate(extents))
    space = Space(across, cx.lanes, None if along in (axis, None) else along)

    def visit(site: Site) -> None:
        def parts(position: Coord) -> tuple[Site, list[Value]]:
            coords = (*site.coords[:axis], position, *site.coords[axis + 1 :])
            own = Site(coords, site.lanes, site.mask)
            return own, [lanes_at(cx, a, own) for a in op.args]

        def write(own: Site, values: Sequence[Value]) -> None:
            for home, value in zip(homes, values, strict=True):
                if home is not None:
                    home.write(b, own, value)

        own, total = parts(known(0))
        write(own, total)
        with b.loop(1, extents[axis], 1, total, name="n") as loop:
            own, step = parts(Coord(loop.index))
            joined = _linear(cx, loop.carries, step) if fn == "linear" else combine(b, fn, loop.carries, step)
            write(own, joined)
            loop.next(*joined)

    if extents[axis]:
        with spilled(cx, op.args):
            sweep(cx, space, visit)
    for result, home in zip(op.out, homes, strict=True):
        if home is not None:
            cx.tiles[result] = home


def _linear(cx: Lowering, before: Sequence[Value], step: Sequence[Value]) -> list[Value]:
    """(decay so far, h) continued by (a, b): h becomes a * h + b, rounded once."""
    (decay, h), (a, added) = before, step
    return [cx.b.mul(decay, a), cx.b.fma(a, h, added)]
