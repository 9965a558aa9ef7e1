"""Tiles written to scratch as pairs of k, [K/2, N, 2], for a matrix unit that reads them so.

Rows of [K, N] are interleaved two by two. Rows of [N, K] have their pairs side by side already: they are turned as
words of two elements, square by square.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.ir import Operation

from tilewright.ir.dtypes import BF16, I32
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, DotOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import static_axes
from tilewright.passes.lower_tile_to_loops.pairs import Paired, paired
from tilewright.passes.lower_tile_to_loops.sites import Coord, Position, Site, known
from tilewright.passes.lower_tile_to_loops.storage import Pairs, ScratchTile
from tilewright.passes.lower_tile_to_loops.sweeps import Starts
from tilewright.passes.lower_tile_to_loops.transposes import turn


def pack(cx: Lowering, op: DotOp, pair: Paired, width: int) -> ScratchTile:
    """The pairs of a dot's right-hand side in scratch, in panels of `width` columns, each [K/2, width, 2] and dense, so
    that a register's rows lie in lines side by side.

    Dots of one block whose pairs are of the same tile share them, until each has said that it will `forget` them.
    """
    held = cx.pairs.get((pair.source, pair.turned))
    if held is None:
        sharing = [o for o in _later(op) if _same(paired(o, cx.machine.rules), pair)]
        depth, columns = tile(op.b).extents
        home = _packed(cx, pair, depth, columns, width)
        held = cx.pairs[pair.source, pair.turned] = Pairs(home, [op, *sharing])
    return held.home


def forget(cx: Lowering, op: DotOp) -> None:
    """The dot is done with the pairs of its right-hand side; their scratch is free after the last one."""
    for key, held in list(cx.pairs.items()):
        held.readers[:] = [reader for reader in held.readers if reader is not op]
        if not held.readers:
            cx.drop(held.home)
            del cx.pairs[key]


def _later(op: DotOp) -> Iterator[Operation]:
    following = op.next_op
    while following is not None:
        yield following
        following = following.next_op


def _same(one: Paired | None, other: Paired) -> bool:
    return one is not None and one.load is None and (one.source, one.turned) == (other.source, other.turned)


def _packed(cx: Lowering, pair: Paired, depth: int, columns: int, width: int) -> ScratchTile:
    home = cx.scratch((columns // width * (depth // 2), 2 * width), BF16)
    looped = 0 not in static_axes(cx, pair.source)
    cx.sweep += 1
    if pair.turned:
        for starts in _starts(cx, columns, LANES, looped=looped):
            with starts as at:
                for first in range(0, depth // 2, LANES):
                    _turn_square(cx, pair, home, at, first, depth)
    else:
        for starts in _starts(cx, depth, 2, looped=looped):
            with starts as at:
                _interleave(cx, pair, home, at, depth, columns)
    return home


def _starts(cx: Lowering, count: int, step: int, *, looped: bool) -> list[Starts]:
    if looped:
        return [Starts.over(cx, 0, count, step)]
    return [Starts(cx, at) for at in range(0, count, step)]


def _row(cx: Lowering, start: Position, by: int) -> Coord:
    return known(start + by) if isinstance(start, int) else Coord(cx.b.add(start, by))


def _interleave(cx: Lowering, pair: Paired, home: ScratchTile, at: Position, depth: int, columns: int) -> None:
    """Rows at and at + 1 as one row of pairs."""
    b = cx.b
    pattern = [n // 2 + (n % 2) * LANES for n in range(2 * LANES)]
    width = home.strides[0] // 2
    start = b.mul(b.index(at), width)
    for column in range(0, columns, LANES):
        even, odd = (lanes_at(cx, pair.source, Site((_row(cx, at, n), known(column, 1)), LANES)) for n in (0, 1))
        b.store(b.shuffle(even, pattern, odd), home.memory, b.add(start, _place(column, depth, width)))


def _turn_square(cx: Lowering, pair: Paired, home: ScratchTile, at: Position, first: int, depth: int) -> None:
    """A square of words: rows from `at` on, pairs from `first` on."""
    b = cx.b
    rows = [
        b.bitcast(lanes_at(cx, pair.source, Site((_row(cx, at, n), known(2 * first, 1)), 2 * LANES)), I32)
        for n in range(LANES)
    ]
    row = home.strides[0]
    across = b.mul(b.floordiv(b.index(at), row // 2), depth // 2 * row)
    if row > 2 * LANES:
        across = b.add(across, b.mul(b.mod(b.index(at), row // 2), 2))
    for number, words in enumerate(turn(b, rows)):
        b.store(b.bitcast(words, BF16), home.memory, b.add(across, (first + number) * row))


def _place(column: int, depth: int, width: int) -> int:
    """Where a column's pairs begin in panels of `width` columns, beside those of the first one."""
    return column // width * depth * width + column % width * 2
