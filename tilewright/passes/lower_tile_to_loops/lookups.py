"""Reads of memory at places that tiles of integers name, lane by lane.

Every place is compared with the axis it points into: a lookup elsewhere gives what it likes, and touches no memory
outside the view.
"""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import I64
from tilewright.ir.loops import Value
from tilewright.ir.tile.base import element, tile
from tilewright.ir.tile.memory import POISON
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.loads import read, spans_of
from tilewright.passes.lower_tile_to_loops.sites import Site
from tilewright.passes.lower_tile_to_loops.view_kinds import opaque_span
from tilewright.passes.lower_tile_to_loops.views import Place, all_of


def place_of(
    cx: Lowering, op: LookupOp | UpdateOp, memory: SSAValue, site: Site, found: Value, *, clamp: bool
) -> Place:
    """Where the lanes of a site lie whose coordinates along the op's axis are `found`, and what has to be checked."""
    extents = tile(op.out if isinstance(op, LookupOp) else op.source).extents
    spans = spans_of(cx, list(op.at), extents, site)
    spans.insert(op.axis.data, opaque_span(cx.b, cx.facts, cx.b.cast(found, I64)))
    return cx.views[memory].place(spans, site.lanes, clamp=clamp, counts=site.mask)


def lookup(cx: Lowering, op: LookupOp, site: Site, found: Value) -> Value:
    """The elements of a lookup at a site."""
    b, dtype = cx.b, tile(op.out).dtype
    number = None if op.fill.data == POISON else element(op.value.data, dtype)
    fill = None if number is None else float(number) if dtype.is_float else int(number)
    place = place_of(cx, op, op.source, site, found, clamp=fill is None)
    varies = place.spread is not None or place.step != 0 or any(c.varies for c in site.coords)
    lanes = site.lanes if varies else 1
    mask = all_of(b, place.conditions, lanes)
    if varies and site.mask is not None:
        mask = site.mask if mask is None else b.and_(mask, site.mask)
    return read(b, place, lanes, mask, fill)
