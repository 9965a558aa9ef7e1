"""Loads, evaluated where their consumers are: a view's place for the site, a mask or clamp where no bound is proved."""

from __future__ import annotations

from math import prod

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import DType
from tilewright.ir.loops import Value
from tilewright.ir.tile.base import element, tile
from tilewright.ir.tile.memory import POISON, LoadOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.emission import Emission
from tilewright.passes.lower_tile_to_loops.sites import Site
from tilewright.passes.lower_tile_to_loops.views import Place, Span, all_of


def spans_of(cx: Lowering, at: list[SSAValue], extents: tuple[int, ...], site: Site) -> list[Span]:
    """The spans of a region's site: its origin and the site's coordinates inside it."""
    return [
        Span(cx.indices[origin], coord, count) for origin, coord, count in zip(at, site.coords, extents, strict=True)
    ]


def fill_of(op: LoadOp) -> int | float | None:
    """What lanes outside the view hold; None for poison."""
    if op.fill.data == POISON:
        return None
    dtype: DType = tile(op.out).dtype
    number = element(op.value.data, dtype)
    return float(number) if dtype.is_float else int(number)


def load(cx: Lowering, op: LoadOp, site: Site) -> Value:
    """The elements of a load at a site; lanes outside the view hold its fill, or anything where they are poison."""
    b, fill = cx.b, fill_of(op)
    spans = spans_of(cx, list(op.at), tile(op.out).extents, site)
    varies = any(c.varies for c in site.coords)
    # A scalar load under a condition is a branch, so scalars are clamped where possible, even if they are filled.
    place = cx.views[op.source].place(spans, site.lanes, clamp=fill is None or not varies, counts=site.mask)
    if cx.op is not None and cx.ahead.get(op) is cx.op:
        _ask_ahead(cx, op, place, site)
    lanes = site.lanes if varies else 1
    mask = None if op in cx.inside else all_of(b, place.conditions, lanes)
    if varies and site.mask is not None:
        mask = site.mask if mask is None else b.and_(mask, site.mask)
    loaded = read(b, place, lanes, mask, fill)
    outside = all_of(b, place.outside, lanes)
    if outside is not None and fill is not None:
        loaded = b.select(outside, loaded, b.const(fill, loaded.type.dtype))
    return loaded


def _ask_ahead(cx: Lowering, op: LoadOp, place: Place, site: Site) -> None:
    """The request for what lies so many bytes behind the site as the machine is to look ahead.

    What the programs that run now load has been read by then, so it lies behind that.
    """
    if site.lanes > 1 and place.spread is None and place.step == 1:
        elements = max(cx.machine.rules.ahead // place.memory.dtype.bytes, cx.together * prod(tile(op.out).extents))
        cx.b.prefetch(place.memory, cx.b.add(place.offset, elements), near=False)


def read(b: Emission, place: Place, lanes: int, mask: Value | None, fill: int | float | None) -> Value:
    """The elements of a place; a scalar where all lanes lie at one element and none is masked."""
    filled = fill if mask is not None else None
    if place.spread is not None:
        return b.gather(place.memory, place.offset, place.spread, mask=mask, fill=filled)
    if lanes == 1 or (place.step == 0 and (mask is None or mask.type.lanes == 1)):
        return b.load(place.memory, place.offset, mask=mask, fill=filled)
    return b.load(place.memory, place.offset, lanes, stride=place.step, mask=mask, fill=filled)
