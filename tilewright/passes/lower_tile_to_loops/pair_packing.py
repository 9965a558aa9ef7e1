"""Tiles written to scratch, or stored for another kernel, as pairs of k, [K/2, N, 2], for a matrix unit that reads them
so.

Rows of [K, N] are interleaved two by two. Rows of [N, K] have their pairs side by side already: they are turned as
words of two elements, square by square.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dtypes import BF16, F32, I16, I32
from tilewright.ir.loops import Memory, Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, CastOp, DotOp
from tilewright.ir.tile.memory import StoreOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import static_axes
from tilewright.passes.lower_tile_to_loops.pairs import Paired, paired, stored_panels
from tilewright.passes.lower_tile_to_loops.prefetching import element
from tilewright.passes.lower_tile_to_loops.sites import Coord, Position, Site, known, shifted
from tilewright.passes.lower_tile_to_loops.step_requests import FEW, StepRequests
from tilewright.passes.lower_tile_to_loops.storage import Pairs, ScratchTile
from tilewright.passes.lower_tile_to_loops.stores import available
from tilewright.passes.lower_tile_to_loops.sweeps import Starts
from tilewright.passes.lower_tile_to_loops.transposes import turn
from tilewright.passes.lower_tile_to_loops.views import AffineView
from tilewright.passes.lower_tile_to_loops.whole_rows import over_whole_rows


class _Panels:
    """Where pairs go: panels [K/2, width, 2], one after the other."""

    def __init__(self, cx: Lowering, memory: Memory, first: Value, depth: int, width: int) -> None:
        self.cx, self.memory, self.first = cx, memory, first
        self.row, self.panel, self.width = 2 * width, depth * width, width

    def write(self, pairs: Value, k: Position, column: Position) -> None:
        """LANES pairs of bf16 side by side: pair k of the columns from `column`, a multiple of LANES, on."""
        b = self.cx.b
        if isinstance(column, int):
            across: Value | int = column // self.width * self.panel + column % self.width * 2
        else:
            across = b.mul(b.floordiv(column, self.width), self.panel)
            if self.width > LANES:
                across = b.add(across, b.mul(b.mod(column, self.width), 2))
        place = b.add(self.first, b.add(b.mul(b.index(k), self.row), across))
        b.store(b.bitcast(pairs, BF16), self.memory, place)


def pack(cx: Lowering, op: DotOp, pair: Paired, width: int) -> ScratchTile:
    """The pairs of a dot's right-hand side in scratch, in panels of `width` columns, each [K/2, width, 2] and dense, so
    that a register's rows lie in lines side by side.

    Dots of one block whose pairs are of the same tile share them, until each has said that it will `forget` them.
    """
    held = cx.pairs.get((pair.source, pair.turned))
    if held is None:
        sharing = [o for o in _later(op) if _same(paired(o, cx.machine.rules), pair)]
        held = cx.pairs[pair.source, pair.turned] = Pairs(_packed(cx, op, pair, width), [op, *sharing])
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


def _packed(cx: Lowering, op: DotOp, pair: Paired, width: int) -> ScratchTile:
    depth, columns = tile(op.b).extents
    home = cx.scratch((columns // width * (depth // 2), 2 * width), BF16)
    panels = _Panels(cx, home.memory, cx.b.index(0), depth, width)
    requests = StepRequests.of(cx, pair.source, op.a, op.acc, halves=halves(op, pair))
    _write(cx, pair, panels, (depth, columns), requests)
    return home


def store_panels(cx: Lowering, op: StoreOp) -> bool:
    """Stores a tile in panels of pairs as they are packed; False where it is not one, or may leave its view."""
    pair, view = stored_panels(op, cx.machine.rules), cx.views[op.target]
    if pair is None or not isinstance(view, AffineView) or available(cx, op):
        return False
    count, half, width, _ = tile(op.source).extents[-4:]
    first = element(cx, view, op.at, [0] * tile(op.source).rank)
    panels = _Panels(cx, view.memory, first, 2 * half, width)
    _write(cx, pair, panels, (2 * half, count * width), StepRequests.of(cx, pair.source))
    return True


def _write(cx: Lowering, pair: Paired, panels: _Panels, extents: tuple[int, int], requests: StepRequests) -> None:
    """Brings a tile into pairs. extents: of k and of columns."""
    depth, columns = extents
    looped = 0 not in static_axes(cx, pair.source)
    rows = columns if pair.turned else depth
    cx.sweep += 1
    # rows of one page are addressed together
    step = LANES if pair.turned or (requests.loads and depth % LANES == 0) else 2
    for starts in row_starts(cx, rows, step, looped=looped):
        with starts as at:

            def packed(at: Position = at) -> None:
                if pair.turned:
                    turns = requests.turns(at, step, depth // 2)
                    for first in range(0, depth // 2, LANES):
                        _turn_square(cx, pair, panels, at, first, turns)
                else:
                    turns = requests.turns(at, step, step // 2 * -(-columns // LANES))
                    for more in range(0, step, 2):
                        _interleave(cx, pair, panels, _moved(cx, at, more), columns, turns)

            over_whole_rows(cx, pair.source, at, step, packed)


def halves(op: DotOp, pair: Paired) -> bool:
    """Whether a dot asks for half of the rows that its right-hand side is packed from in the next step of the loop."""
    return not pair.turned and tile(op.a).extents[0] <= FEW and tile(op.b).extents[0] % LANES == 0


def row_starts(cx: Lowering, count: int, step: int, *, looped: bool) -> list[Starts]:
    """Rows 0, step, .. below a count, in a loop or one by one."""
    if looped:
        return [Starts.over(cx, 0, count, step)]
    return [Starts(cx, at) for at in range(0, count, step)]


def _moved(cx: Lowering, start: Position, by: int) -> Position:
    return start + by if isinstance(start, int) else cx.b.add(start, by)


def row_at(cx: Lowering, start: Position, by: int) -> Coord:
    """The row so many behind a start."""
    return known(start + by) if isinstance(start, int) else Coord(cx.b.add(start, by))


def narrow(cx: Lowering, source: SSAValue, site: Site) -> Value:
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


def _interleave(cx: Lowering, pair: Paired, panels: _Panels, at: Position, columns: int, turns: Iterator[None]) -> None:
    """Rows at and at + 1 as one row of pairs."""
    b = cx.b
    k = at // 2 if isinstance(at, int) else b.floordiv(at, 2)
    for column in range(0, columns, LANES):
        next(turns)
        words = [
            b.bitcast(narrow(cx, pair.source, Site((row_at(cx, at, n), known(column, 1)), LANES)), I16) for n in (0, 1)
        ]
        even, odd = (b.and_(b.cast(w, I32), 0xFFFF) for w in words)
        panels.write(b.or_(even, b.shl(odd, 16)), k, column)


def _turn_square(cx: Lowering, pair: Paired, panels: _Panels, at: Position, first: int, turns: Iterator[None]) -> None:
    """A square of words: rows from `at` on, pairs from `first` on."""
    b = cx.b
    rows = []
    for n in range(LANES):
        next(turns)
        site = Site((row_at(cx, at, n), known(2 * first, 1)), 2 * LANES)
        rows.append(b.bitcast(narrow(cx, pair.source, site), I32))
    for number, words in enumerate(turn(b, rows)):
        panels.write(words, first + number, at)
