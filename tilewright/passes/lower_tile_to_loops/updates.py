"""Changes of what was stored before: elements set again, or combined, at places that tiles of integers name.

An update at a place outside its axis is left out.
"""

from __future__ import annotations

from tilewright.ir.tile.base import tile
from tilewright.ir.tile.places import UpdateOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import evaluate, lanes_at, operand_site
from tilewright.passes.lower_tile_to_loops.loads import read
from tilewright.passes.lower_tile_to_loops.lookups import place_of
from tilewright.passes.lower_tile_to_loops.scalar_functions import apply
from tilewright.passes.lower_tile_to_loops.sites import Site
from tilewright.passes.lower_tile_to_loops.spilling import spilled
from tilewright.passes.lower_tile_to_loops.sweeps import Space, sweep
from tilewright.passes.lower_tile_to_loops.views import all_of


def update(cx: Lowering, op: UpdateOp) -> None:
    """Sets or combines the lanes of a tile, one vector after the other."""
    with spilled(cx, [op.source, op.indices], vectors_only=True):
        sweep(cx, Space.of(tile(op.source).extents, cx.lanes), lambda site: _change(cx, op, site))


def _change(cx: Lowering, op: UpdateOp, site: Site) -> None:
    b = cx.b
    found = evaluate(cx, op.indices, operand_site(site, op.indices, tile(op.source).extents))
    place = place_of(cx, op, op.target, site, found, clamp=False)
    mask = all_of(b, place.conditions, site.lanes)
    if site.mask is not None:
        mask = site.mask if mask is None else b.and_(mask, site.mask)
    value = lanes_at(cx, op.source, site)
    if op.mode.data != "set":
        value = apply(b, op.mode.data, [read(b, place, site.lanes, mask, None), value])
    if place.spread is not None:
        b.scatter(value, place.memory, place.offset, place.spread, mask=mask)
    else:
        b.store(value, place.memory, place.offset, stride=place.step, mask=mask)
