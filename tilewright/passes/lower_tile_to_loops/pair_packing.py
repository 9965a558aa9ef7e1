"""Tiles written to scratch as pairs of k, [K/2, N, 2], for a matrix unit that reads them so.

Rows of [K, N] are interleaved two by two. Rows of [N, K] have their pairs side by side already: they are turned as
words of two elements, square by square.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import BF16, F32, I16, I32
from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, CastOp, DotOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import static_axes
from tilewright.passes.lower_tile_to_loops.page_requests import PageRequests
from tilewright.passes.lower_tile_to_loops.pairs import Paired
from tilewright.passes.lower_tile_to_loops.sites import Coord, Position, Site, known, shifted
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile
from tilewright.passes.lower_tile_to_loops.sweeps import Starts
from tilewright.passes.lower_tile_to_loops.transposes import turn


def pack(cx: Lowering, op: DotOp, pair: Paired) -> ScratchTile:
    """The pairs of a dot's right-hand side in scratch, rows of 2 N elements; whoever asks for it drops it."""
    depth, columns = tile(op.b).extents
    home = cx.scratch((depth // 2, 2 * columns), BF16)
    looped = 0 not in static_axes(cx, pair.source)
    rows = columns if pair.turned else depth
    requests = PageRequests.of(cx, op, pair.source, rows)
    cx.sweep += 1
    # rows of one page are addressed together
    step = LANES if pair.turned or (requests.loads and depth % LANES == 0) else 2
    for starts in _starts(cx, rows, step, looped=looped):
        with starts as at:
            if pair.turned:
                turns = requests.turns(at, step, depth // 2)
                for first in range(0, depth // 2, LANES):
                    _turn_square(cx, pair, home, at, first, turns)
            else:
                turns = requests.turns(at, step, step // 2 * -(-columns // LANES))
                for more in range(0, step, 2):
                    _interleave(cx, pair, home, _moved(cx, at, more), columns, turns)
    return home


def _starts(cx: Lowering, count: int, step: int, *, looped: bool) -> list[Starts]:
    if looped:
        return [Starts.over(cx, 0, count, step)]
    return [Starts(cx, at) for at in range(0, count, step)]


def _moved(cx: Lowering, start: Position, by: int) -> Position:
    return start + by if isinstance(start, int) else cx.b.add(start, by)


def _row(cx: Lowering, start: Position, by: int) -> Coord:
    return known(start + by) if isinstance(start, int) else Coord(cx.b.add(start, by))


def _narrow(cx: Lowering, source: SSAValue, site: Site) -> Value:
    """Elements for the unit, which takes subnormal numbers as zeros: f32 ones may be so rounded, too."""
    op = source.owner
    if not isinstance(op, CastOp) or source in cx.tiles or tile(op.source).dtype is not F32:
        return lanes_at(cx, source, site)
    if site.lanes == LANES:
        return cx.b.cast(lanes_at(cx, op.source, site), BF16, flush=True)
    # a vector of f32 at a time: bytes are widened as they are loaded
    row, column = site.coords
    halves = [lanes_at(cx, op.source, Site((row, shifted(cx.b, column, n)), LANES)) for n in (0, LANES)]
    return cx.b.cast(cx.b.shuffle(halves[0], range(2 * LANES), halves[1]), BF16, flush=True)


def _interleave(
    cx: Lowering, pair: Paired, home: ScratchTile, at: Position, columns: int, turns: Iterator[None]
) -> None:
    """Rows at and at + 1 as one row of pairs."""
    b = cx.b
    start = b.mul(b.floordiv(b.index(at), 2), home.strides[0])
    for column in range(0, columns, LANES):
        next(turns)
        words = [
            b.bitcast(_narrow(cx, pair.source, Site((_row(cx, at, n), known(column, 1)), LANES)), I16) for n in (0, 1)
        ]
        even, odd = (b.and_(b.cast(w, I32), 0xFFFF) for w in words)
        pairs = b.or_(even, b.shl(odd, 16))
        b.store(b.bitcast(pairs, BF16), home.memory, b.add(start, 2 * column))


def _turn_square(
    cx: Lowering, pair: Paired, home: ScratchTile, at: Position, first: int, turns: Iterator[None]
) -> None:
    """A square of words: rows from `at` on, pairs from `first` on."""
    b = cx.b
    rows = []
    for n in range(LANES):
        next(turns)
        site = Site((_row(cx, at, n), known(2 * first, 1)), 2 * LANES)
        rows.append(b.bitcast(_narrow(cx, pair.source, site), I32))
    across = b.mul(b.index(at), 2)
    for number, words in enumerate(turn(b, rows)):
        b.store(b.bitcast(words, BF16), home.memory, b.add(across, (first + number) * home.strides[0]))
