"""Static rearrangement as arithmetic on sites: where an element of a reshape, transpose, slice or concat comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod

from xdsl.ir import SSAValue

from tilewright.ir.loops import LoopBuilder, Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Site, lane_positions, shifted


def transposed(op: TransposeOp, site: Site) -> Site:
    """The site in the source of a transpose."""
    coords = [ORIGIN] * len(site.coords)
    for axis, source in enumerate(op.permutation.data):
        coords[source] = site.coords[axis]
    return site.moved(tuple(coords))


def sliced(b: LoopBuilder, op: SliceOp, site: Site) -> Site:
    """The site in the source of a slice."""
    return site.moved(tuple(shifted(b, c, start) for c, start in zip(site.coords, op.starts.data, strict=True)))


def reshaped(b: LoopBuilder, op: ReshapeOp, site: Site) -> Site:
    """The site in the source of a reshape: runs of axes of equal size are joined and dealt out again."""
    source, target = tile(op.source).extents, tile(op.out).extents
    coords = [ORIGIN] * len(source)
    for ours, theirs in runs(source, target):
        if len(ours) == len(theirs) == 1:
            coords[ours[0]] = site.coords[theirs[0]]
            continue
        whole = _joined(b, [site.coords[a] for a in theirs], [target[a] for a in theirs], site.lanes)
        for axis, coord in zip(ours, _dealt(b, whole, [source[a] for a in ours], site.lanes), strict=True):
            coords[axis] = coord
    return site.moved(tuple(coords))


def runs(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of both sides whose sizes multiply to the same; axes of extent 1 belong to none."""
    ours = [a for a, n in enumerate(source) if n != 1]
    theirs = [a for a, n in enumerate(target) if n != 1]
    if 0 in source:
        return []
    found: list[tuple[list[int], list[int]]] = []
    while ours or theirs:
        left, right = [ours.pop(0)], [theirs.pop(0)]
        while prod(source[a] for a in left) != prod(target[a] for a in right):
            if prod(source[a] for a in left) < prod(target[a] for a in right):
                left.append(ours.pop(0))
            else:
                right.append(theirs.pop(0))
        found.append((left, right))
    return found


def _joined(b: LoopBuilder, coords: Sequence[Coord], extents: Sequence[int], lanes: int) -> Coord:
    """The row-major position of several coordinates."""
    if any(c.spread is not None for c in coords):
        total: Value = b.broadcast(b.index(0), lanes)
        for c, far in zip(coords, _far(extents), strict=True):
            total = b.add(total, b.mul(lane_positions(b, c, lanes), far))
        return Coord(0, spread=total)
    static, moving, step, align = 0, b.index(0), 0, 0
    for c, far in zip(coords, _far(extents), strict=True):
        if isinstance(c.at, int):
            static += c.at * far
        else:
            moving = b.add(moving, b.mul(c.at, far))
        step += c.step * far
        align = gcd(align, c.align * far)
    if all(isinstance(c.at, int) for c in coords):
        return Coord(static, step, align=static or 1 << 30)
    return Coord(b.add(moving, static), step, align=align)


def _dealt(b: LoopBuilder, whole: Coord, extents: Sequence[int], lanes: int) -> list[Coord]:
    """Coordinates along several axes from a row-major position."""
    found: list[Coord] = []
    for extent in reversed(extents[1:]):
        if whole.spread is None and not whole.step:
            inner, whole = _divided(b, whole, extent, 0, 0)
        elif whole.spread is None and whole.step * lanes <= extent and _inside(whole, extent, lanes):
            inner, whole = _divided(b, whole, extent, whole.step, 0)
        elif whole.spread is None and whole.step % extent == 0 and whole.align % extent == 0:
            inner, whole = _divided(b, whole, extent, 0, whole.step // extent)
        else:
            where = lane_positions(b, whole, lanes)
            inner, whole = Coord(0, spread=b.mod(where, extent)), Coord(0, spread=b.floordiv(where, extent))
        found.append(inner)
    return [whole, *reversed(found)]


def _inside(whole: Coord, extent: int, lanes: int) -> bool:
    """Whether all lanes fall into one run of `extent` elements."""
    reach = whole.step * lanes
    if isinstance(whole.at, int):
        return whole.at % extent + reach - whole.step < extent
    return extent % reach == 0 and whole.align % reach == 0


def _divided(b: LoopBuilder, whole: Coord, extent: int, inner: int, outer: int) -> tuple[Coord, Coord]:
    """Remainder and quotient of a position, with the steps of its lanes."""
    if isinstance(whole.at, int):
        low, high = whole.at % extent, whole.at // extent
        return Coord(low, inner, align=low or 1 << 30), Coord(high, outer, align=high or 1 << 30)
    rest = Coord(b.mod(whole.at, extent), inner, align=gcd(whole.align, extent))
    return rest, Coord(b.floordiv(whole.at, extent), outer, align=max(whole.align // extent, 1))


def _far(extents: Sequence[int]) -> list[int]:
    return [prod(extents[a + 1 :]) for a in range(len(extents))]


def concatenated(b: LoopBuilder, op: ConcatOp, site: Site, evaluate: Callable[[SSAValue, Site], Value]) -> Value:
    """The elements of joined tiles: from one part where that is known, else chosen lane by lane."""
    axis, coord = op.axis.data, site.coords[op.axis.data]
    starts = [0]
    for part in op.args:
        starts.append(starts[-1] + tile(part).extents[axis])
    pieces = [(part, lo, hi) for part, lo, hi in zip(op.args, starts[:-1], starts[1:], strict=True) if lo < hi]

    def at(c: Coord) -> Site:
        return site.moved((*site.coords[:axis], c, *site.coords[axis + 1 :]))

    if coord.static is not None:
        last = min(coord.static + coord.step * (site.lanes - 1), starts[-1] - 1)
        for part, lo, hi in pieces:
            if lo <= coord.static and last < hi:
                return evaluate(part, at(shifted(b, coord, -lo)))
    total: Value | None = None
    for part, lo, hi in pieces:
        where = lane_positions(b, coord, site.lanes) if coord.varies else b.index(coord.at)
        local = b.max(b.min(b.sub(where, lo), hi - lo - 1), 0)
        found = evaluate(part, at(Coord(0, spread=local) if coord.varies else Coord(local)))
        # Later parts win where they begin, so one comparison a part is enough.
        reached = b.compare("ge", where, lo)
        total = found if total is None else b.select(reached, found, total)
    assert total is not None
    return total
