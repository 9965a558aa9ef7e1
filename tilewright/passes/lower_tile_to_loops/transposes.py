"""Transposes whose vectors are not the source's: squares of lanes by lanes are turned in registers."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.loops import LoopBuilder, Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, TransposeOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.rearrangement import transposed
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Position, Site, known, lane_axis
from tilewright.passes.lower_tile_to_loops.step_requests import StepRequests
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile
from tilewright.passes.lower_tile_to_loops.sweeps import Space, Starts, outer


def turns_lanes(op: TransposeOp, lanes: int) -> bool:
    """Whether the vectors of the result are not vectors of the source, in a tile large enough for squares of lanes."""
    across, along = lane_axis(tile(op.out).extents), lane_axis(tile(op.source).extents)
    if across is None or along is None or op.permutation.data[across] == along:
        return False
    return tile(op.out).extents[across] * tile(op.source).extents[along] >= lanes * lanes // 4


def fill_transposed(cx: Lowering, home: ScratchTile, op: TransposeOp) -> None:
    """Evaluates a transpose into scratch, square by square."""
    extents, lanes = home.extents, cx.lanes
    across = lane_axis(extents)
    along = list(op.permutation.data).index(lane_axis(tile(op.source).extents) or 0)
    assert across is not None
    live = cx.live(op.out)
    requests = StepRequests.of(cx, op.source)
    # lines that a square asks for: its share of those of the rows that it has a part of
    share = -(-requests.each * lanes // -(-extents[along] // lanes))
    cx.sweep += 1
    # The two axes of the squares are walked here, the others by the sweep.
    space = Space(tuple(1 if a in (across, along) else n for a, n in enumerate(extents)), lanes, None)

    def square(coords: tuple[Coord, ...], top: Position, rows: int, left: Position, count: int) -> None:
        b = cx.b

        def site(row: Coord, column: Coord, mask: Value | None) -> Site:
            placed = list(coords)
            placed[along], placed[across] = row, column
            return Site(tuple(placed), lanes, mask)

        mask = b.tail_mask(rows, lanes) if rows < lanes else None
        vectors = []
        asked = b.add(b.mul(b.index(left), requests.each), b.mul(b.floordiv(b.index(top), lanes), share))
        for number in range(count):
            before = number * share // count
            requests.ask(b.add(asked, before), (number + 1) * share // count - before)
            column = _at(cx, left, number, 0)
            own = transposed(op, site(_at(cx, top, 0, 1), column, mask))
            vectors.append(lanes_at(cx, op.source, own))
        zero = b.const(0, home.dtype, lanes)
        turned = turn(b, [*vectors, *[zero] * (lanes - count)])
        for number in range(rows):
            home.write(b, site(_at(cx, top, number, 0), _at(cx, left, 0, 1), None), turned[number])

    def squares(coords: tuple[Coord, ...]) -> None:
        # the source's rows outside: they are read as they lie, and what finds one is computed once for all its squares
        for left, count in _blocks(cx, extents[across], lanes, live.get(across)):
            with left as start:
                for top, rows in _blocks(cx, extents[along], lanes, live.get(along)):
                    with top as at:
                        square(coords, at, rows, start, count)

    outer(cx, space, lambda coords: squares(tuple(ORIGIN if a in (across, along) else c for a, c in enumerate(coords))))


def turn(b: LoopBuilder, rows: Sequence[Value]) -> list[Value]:
    """The transpose of a square of vectors: for every power of two, off-diagonal blocks of that size change places."""
    square = list(rows)
    size = 1
    while size < len(square):
        lanes = range(len(square))
        for low in range(len(square)):
            if low & size:
                continue
            first, second = square[low], square[low + size]
            count = len(square)
            square[low] = b.shuffle(first, [count + n - size if n & size else n for n in lanes], second)
            square[low + size] = b.shuffle(first, [count + n if n & size else n + size for n in lanes], second)
        size *= 2
    return square


def _blocks(cx: Lowering, extent: int, size: int, live: Index | None) -> list[tuple[Starts, int]]:
    """Blocks that cover an axis as far as anyone looks, in whole canonical vectors, and how much each has of it."""
    whole = extent // size * size
    if live is not None and extent % LANES == 0:
        b = cx.b
        return [(Starts.over(cx, 0, b.mul(b.ceildiv(b.min(live.value, extent), LANES), LANES), size), size)]
    found = [(Starts.over(cx, 0, whole, size), size)] if whole else []
    return found + ([(Starts(cx, whole), extent - whole)] if extent > whole else [])


def _at(cx: Lowering, start: Position, by: int, step: int) -> Coord:
    if isinstance(start, int):
        return known(start + by, step)
    return Coord(cx.b.add(start, by), step, align=cx.lanes if by == 0 else 1)
