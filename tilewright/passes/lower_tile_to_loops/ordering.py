"""Sorting and selecting inside a tile, on keys whose integer order is torch's: NaN above everything, -0.0 equal to 0.0.

A sort merges runs of doubling length between two halves of a scratch row; a selection asks k times for the best element
after the last one, which needs no copy of what is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import F32, F64, I1, I32, I64, DType
from tilewright.ir.loops import LoopBuilder, Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, SortOp, TopkOp
from tilewright.passes.lower_tile_to_loops.combines import across
from tilewright.passes.lower_tile_to_loops.combines import combine as join
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import evaluate, lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import storage_for
from tilewright.passes.lower_tile_to_loops.scalar_functions import NARROW
from tilewright.passes.lower_tile_to_loops.sites import Coord, Site
from tilewright.passes.lower_tile_to_loops.spilling import spilled
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile
from tilewright.passes.lower_tile_to_loops.sweeps import Space, columns, outer


def key_dtype(dtype: DType) -> DType:
    """The integer that orders elements of a dtype."""
    return I64 if dtype in (F64, I64) else I32


def order_key(b: LoopBuilder, value: Value) -> Value:
    """An integer with the element's order."""
    dtype = value.type.dtype
    if dtype is I1 or dtype.is_integer:
        return b.cast(value, key_dtype(dtype))
    x = b.cast(value, F32) if dtype in NARROW else value
    whole = I64 if x.type.dtype is F64 else I32
    bits = b.bitcast(b.add(x, 0.0), whole)  # -0.0 + 0.0 is 0.0
    least = 1 << (whole.bits - 1)
    # Negative floats grow in magnitude with their bits, so all bits but the sign are turned over.
    ordered = b.xor(bits, b.and_(b.shr(bits, whole.bits - 1), least - 1))
    return b.select(b.is_nan(x), b.const(least - 1, whole, value.type.lanes), ordered)


def _row_space(extents: tuple[int, ...], axis: int) -> Space:
    """Every position of the axes other than one."""
    return Space(tuple(1 if a == axis else n for a, n in enumerate(extents)), 1, None)


def _placed(coords: Sequence[Coord], axis: int, position: Coord) -> Site:
    return Site((*coords[:axis], position, *coords[axis + 1 :]))


def lower_sort(cx: Lowering, op: SortOp) -> None:
    """Keys and payload in stable order along an axis."""
    extents, axis = tile(op.keys).extents, op.axis.data
    count = extents[axis]
    results = [(op.sorted, op.keys), (op.carried, op.payload)]
    homes = [(storage_for(cx, r) if cx.plan.roots.get(r) else None, source) for r, source in results]
    ordering = key_dtype(tile(op.keys).dtype)
    with (
        cx.temporary((2, count), ordering) as keys,
        cx.temporary((2, count), I32) as places,
        spilled(cx, [op.keys, op.payload]),
    ):
        cx.sweep += 1

        def row(coords: tuple[Coord, ...]) -> None:
            half = _merge_sort(cx, op, coords, (keys, places))
            with cx.b.loop(0, count, name="n") as loop:
                from_ = Coord(cx.b.cast(places.read(cx.b, Site((Coord(half), Coord(loop.index)))), I64))
                for home, source in homes:
                    if home is not None:
                        value = evaluate(cx, source, _placed(coords, axis, from_))
                        home.write(cx.b, _placed(coords, axis, Coord(loop.index)), value)

        outer(cx, _row_space(extents, axis), row)
    for (result, _), (home, _) in zip(results, homes, strict=True):
        if home is not None:
            cx.tiles[result] = home


def _merge_sort(cx: Lowering, op: SortOp, coords: tuple[Coord, ...], rows: tuple[ScratchTile, ScratchTile]) -> int:
    """Sorts the positions of one row by key; gives the half of the scratch rows that holds the result."""
    b, axis, (keys, places) = cx.b, op.axis.data, rows
    count = tile(op.keys).extents[axis]
    with b.loop(0, count, name="n") as loop:
        key = order_key(b, evaluate(cx, op.keys, _placed(coords, axis, Coord(loop.index))))
        at = Site((Coord(0), Coord(loop.index)))
        # Turning the bits over turns the order over and keeps equals in place.
        keys.write(b, at, b.not_(key) if op.descending.data else key)
        places.write(b, at, b.cast(loop.index, I32))
    passes = max(count - 1, 0).bit_length()
    with b.loop(0, passes, name="p") as rounds:
        width = b.shl(b.index(1), rounds.index)
        source = b.and_(rounds.index, 1)
        target = b.sub(1, source)
        with b.loop(0, count, b.add(width, width), name="run") as run:
            middle = b.min(b.add(run.index, width), count)
            end = b.min(b.add(middle, width), count)
            with b.loop(run.index, end, 1, [run.index, middle], name="n") as loop:
                left, right = loop.carries
                # Where a run is used up its last element is read again, and not taken.
                first = keys.read(b, Site((Coord(source), Coord(b.min(left, b.sub(middle, 1))))))
                second = keys.read(b, Site((Coord(source), Coord(b.min(right, b.sub(end, 1))))))
                done, rest = b.compare("ge", left, middle), b.compare("ge", right, end)
                from_left = b.or_(rest, b.and_(b.not_(done), b.compare("le", first, second)))
                taken = b.select(from_left, left, right)
                here, there = Site((Coord(source), Coord(taken))), Site((Coord(target), Coord(loop.index)))
                keys.write(b, there, b.select(from_left, first, second))
                places.write(b, there, places.read(b, here))
                one = b.cast(from_left, I64)
                loop.next(b.add(left, one), b.add(right, b.sub(1, one)))
    return passes % 2


def lower_topk(cx: Lowering, op: TopkOp) -> None:
    """The k largest along an axis, in order, with their positions."""
    extents, axis = tile(op.source).extents, op.axis.data
    count = extents[axis]
    ordering = key_dtype(tile(op.source).dtype)
    values, positions = (storage_for(cx, r) if cx.plan.roots.get(r) else None for r in (op.values, op.positions))
    with cx.temporary((count,), ordering) as keys, spilled(cx, [op.source]):
        cx.sweep += 1

        def row(coords: tuple[Coord, ...]) -> None:
            b = cx.b
            _fill_keys(cx, op.source, axis, coords, keys)
            limit = (1 << (ordering.bits - 1)) - 1
            before = [b.const(limit, ordering), b.const(-1, I32)]
            with b.loop(0, op.k.data, 1, before, name="n") as loop:
                key, at = _next_best(cx, keys, count, loop.carries)
                here = _placed(coords, axis, Coord(loop.index))
                if values is not None:
                    found = evaluate(cx, op.source, _placed(coords, axis, Coord(b.cast(at, I64))))
                    values.write(b, here, found)
                if positions is not None:
                    positions.write(b, here, at)
                loop.next(key, at)

        outer(cx, _row_space(extents, axis), row)
    for result, home in ((op.values, values), (op.positions, positions)):
        if home is not None:
            cx.tiles[result] = home


def _fill_keys(cx: Lowering, source: SSAValue, axis: int, coords: tuple[Coord, ...], keys: ScratchTile) -> None:
    """The order keys of one row."""

    def visit(site: Site, carried: Sequence[Value]) -> Sequence[Value]:
        own = Site((*coords[:axis], site.coords[0], *coords[axis + 1 :]), site.lanes, site.mask)
        keys.write(cx.b, site, order_key(cx.b, lanes_at(cx, source, own)))
        return carried

    columns(cx, Space.of(keys.extents, LANES), (Coord(0),), visit)


def _next_best(cx: Lowering, keys: ScratchTile, count: int, last: Sequence[Value]) -> list[Value]:
    """The greatest key after the last one taken, the lowest position first among equals."""
    b = cx.b
    least = -(1 << (keys.dtype.bits - 1))
    nothing = [b.const(least, keys.dtype, LANES), b.const((1 << 31) - 1, I32, LANES)]
    taken, place = (b.broadcast(v, LANES) for v in last)

    def visit(site: Site, best: Sequence[Value]) -> Sequence[Value]:
        if site.lanes == 1:
            return [keys.read(b, site), b.const(0, I32)]
        found = keys.read(b, site)
        at = b.add(b.broadcast(b.cast(b.index(site.coords[0].at), I32), LANES), b.iota(LANES))
        after = b.or_(b.compare("lt", found, taken), b.and_(b.compare("eq", found, taken), b.compare("gt", at, place)))
        if site.mask is not None:
            after = b.and_(after, site.mask)
        offered = [b.select(after, found, nothing[0]), b.select(after, at, nothing[1])]
        return join(b, "argmax", best, offered)

    if count == 1:
        return list(visit(Site((Coord(0),)), []))
    return across(b, "argmax", columns(cx, Space.of((count,), LANES), (Coord(0),), visit, nothing))
