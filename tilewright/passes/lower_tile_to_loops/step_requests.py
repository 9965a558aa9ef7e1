"""Requests for what the next step of a loop over segments loads, made while this step computes.

Rows of pages lie apart, and no prefetcher of hardware follows a table; rows that lie side by side are turned square by
square, which prefetchers take for many short streams. What a loop over segments brings next is known one segment ahead:
the next step of the loads. Every sweep over rows asks for the same rows of the next segment, so that memory's time
passes under the arithmetic on this one, and leaves half of them to the product on a matrix unit that follows, which has
no memory to wait for; line by line and in the order of addresses, because what waits for memory is a
short queue, more stop the core, and lines in order wake the prefetchers, too. One query of 32 heads beside 32768 keys
of 8 heads, in huge pages: two cores read 268 MB of f32 in 14.3 ms where nothing was asked for, in 10.9 where every load
asked for its own place in the next segment, in 9.1 so; 134 MB of bf16 in 6.5, 5.2 and 4.9; a plain read took 8.6 and
4.3. In small pages, whose places the cores must look up, it takes as much longer as a plain read does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.loops import BufferArg, Value
from tilewright.ir.loops.folding import split
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, DotOp
from tilewright.ir.tile.memory import LoadOp
from tilewright.ir.tile.structure import ForOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.prefetching import LINE
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Position, known
from tilewright.passes.lower_tile_to_loops.view_kinds import PagesView
from tilewright.passes.lower_tile_to_loops.views import AffineView, Place, Span

Line: TypeAlias = tuple[BufferArg, Value]  # where one begins

# Rows that a segment meets at most where it is asked for although it lies dense: with more, its arithmetic takes longer
# than its way from memory, and the cores' own prefetchers are in time.
FEW: Final = 16


@dataclass(frozen=True, slots=True)
class StepRequests:
    """The loads whose next step is asked for; along one axis of each the loop around it counts rows."""

    cx: Lowering
    loads: tuple[LoadOp, ...]
    halves: bool = False

    @staticmethod
    def of(cx: Lowering, *values: SSAValue, halves: bool = False) -> StepRequests:
        """The loads behind tiles that are about to be read, up to dots and to tiles that are kept. halves: whether
        `turns` leaves half of the rows to `rest`."""
        found = dict.fromkeys(load for value in values for load in behind(cx, value))
        return StepRequests(cx, tuple([load for load in found if _worth(cx, load) and not _covered(cx, load)]), halves)

    def lines(self, load: LoadOp) -> int:
        """Lines of a row, whether rows begin with one or not."""
        return -(-tile(load.out).extents[-1] * tile(load.out).dtype.bytes // LINE)

    @property
    def each(self) -> int:
        """The most lines that any of the loads has in a row."""
        return max((self.lines(load) for load in self.loads), default=0)

    @property
    def total(self) -> int:
        """The most lines that any of the loads has in a segment."""
        return max((self.lines(load) * _rows(load) for load in self.loads), default=0)

    def ask(self, first: Value | int, count: int) -> None:
        """Asks for `count` lines of each load's next step, from its line `first` on, in the order of rows."""
        b = self.cx.b
        for load in self.loads:
            lines, line = self.lines(load), LINE // tile(load.out).dtype.bytes
            for number in range(count):
                at = b.add(b.index(first), number)
                row, column = b.floordiv(at, lines), b.mul(b.mod(at, lines), line)
                place = self._place(load, Coord(row), Coord(column, 1, align=line))
                if place.spread is None:
                    b.prefetch(place.memory, place.offset, near=False)

    def turns(self, at: Position, rows: int, turns: int) -> Iterator[None]:
        """Asks for the rows that follow those from `at` on by one step of the loop: in each of so many turns, when the
        next value is taken, for its share of their lines.
        """
        lines = self._lines(at, rows // 2 if self.halves else rows)
        for turn in range(turns):
            for memory, offset in lines[turn * len(lines) // turns : (turn + 1) * len(lines) // turns]:
                self.cx.b.prefetch(memory, offset, near=False)
            yield

    def rest(self, turn: Value, turns: int, rows: int) -> None:
        """In each of so many turns, numbered from 0, asks for its share of what `turns` leaves out of every `rows`."""
        b = self.cx.b
        for load in self.loads if self.halves else ():
            if _repeats(self.cx, load):
                continue
            lines, line, half = self.lines(load), LINE // tile(load.out).dtype.bytes, rows // 2
            share = -(-_rows(load) // 2 * lines // turns)
            for number in range(share):
                at = b.add(b.mul(turn, share), number)
                along, column = b.floordiv(at, lines), b.mul(b.mod(at, lines), line)
                row = b.add(b.mul(b.floordiv(along, half), rows), b.add(b.mod(along, half), half))
                place = self._place(load, Coord(row), Coord(column, 1, align=line))
                if place.spread is None:
                    b.prefetch(place.memory, place.offset, near=False)

    def _lines(self, at: Position, rows: int) -> list[Line]:
        b, found = self.cx.b, dict[tuple[BufferArg, int, int], Line]()
        for load in self.loads:
            width, line = tile(load.out).extents[-1], LINE // tile(load.out).dtype.bytes
            for row in range(rows):
                moved = known(at + row) if isinstance(at, int) else Coord(b.add(at, row))
                for column in range(0, width, line):
                    place = self._place(load, moved, known(column, 1))
                    if place.spread is None:
                        base, more = split(place.offset)
                        found.setdefault((place.memory, id(base), more // line), (place.memory, place.offset))
        return list(found.values())

    def _place(self, load: LoadOp, row: Coord, column: Coord) -> Place:
        """Where a load's next step has a vector; somewhere inside its view, because the walk through the tables of
        memory to a place that does not exist stops a core for longer than the way to one that does."""
        cx, extents, axis = self.cx, tile(load.out).extents, stepping(load)
        spans = [Span(cx.indices[at], ORIGIN, n) for at, n in zip(load.at, extents, strict=True)]
        first, count = spans[axis].origin, extents[axis]
        following = Index(cx.b.add(first.value, count), first.expr + count)
        spans[axis] = Span(following, row, count)
        beside = self._beside(load, axis)
        if beside is not None:
            # the last step asks for the next program's first one
            b, across, end = cx.b, spans[beside].origin, cx.views[load.source].extents[axis]
            last = b.compare("ge", following.value, end.value)
            steps = b.select(last, b.index(0), b.floordiv(following.value, count))
            spans[axis] = Span(Index(b.mul(steps, count), cx.facts.opaque() * count), row, count)
            moved = b.select(last, b.add(across.value, 1), across.value)
            spans[beside] = Span(Index(moved, cx.facts.opaque()), ORIGIN, 1)
        spans[-1] = Span(spans[-1].origin, column, extents[-1])
        return cx.views[load.source].place(spans, min(LANES, extents[-1]), clamp=True)

    def _beside(self, load: LoadOp, axis: int) -> int | None:
        """The axis along which the next program of a thread reads the same pages; None where it may read others, or
        does not begin with the first key."""
        cx, (innermost, _) = self.cx, self.cx.kernel.loops[-1]
        start = load.at[axis]
        if not isinstance(cx.views[load.source], PagesView) or not _from_zero(cx, start):
            return None
        coordinate = cx.kernel.coordinates[innermost]
        found = [at for at, place in enumerate(load.at) if place is coordinate]
        return found[0] if len(found) == 1 and cx.kernel.tiles.data[innermost] == 1 else None


@dataclass(frozen=True, slots=True)
class Asking:
    """What a dot of few rows asks for in each of its steps of k: so many lines of the loads behind its right-hand side.

    Where that is kept already, its steps have no memory to wait for: each asks for a line of what the next dot reads,
    which asks again for all of its own.
    """

    requests: StepRequests
    lines: int

    @staticmethod
    def of(cx: Lowering, op: DotOp, blocks: int) -> Asking | None:
        """blocks: of the result, each of which takes all steps of k."""
        rows, depth = tile(op.a).extents
        if rows > FEW:
            return None
        own = StepRequests.of(cx, op.b)
        if own.loads:
            return Asking(own, -(-own.total // (depth * blocks)))
        following = op.next_op
        while following is not None and not isinstance(following, DotOp):
            following = following.next_op
        requests = None if following is None else StepRequests.of(cx, following.b)
        return Asking(requests, 1) if requests is not None and requests.loads else None

    def ask(self, turn: Value) -> None:
        self.requests.ask(self.requests.cx.b.mul(turn, self.lines), self.lines)


def _from_zero(cx: Lowering, coordinate: SSAValue) -> bool:
    """Whether a loop's coordinate begins at 0, itself or with that of a loop around it."""
    loop = coordinate.owner.parent_op() if isinstance(coordinate, BlockArgument) else None
    if not isinstance(loop, ForOp) or loop.coordinate is not coordinate:
        return False
    return cx.indices[loop.lo].expr == Expr.of(0) or _from_zero(cx, loop.lo)


def stepping(load: LoadOp) -> int:
    """The axis along which a load takes its tile's extent further in every step of the loop around it; -1: none."""
    for axis, (start, extent) in enumerate(zip(load.at[:-1], tile(load.out).extents, strict=False)):
        loop = start.owner.parent_op() if isinstance(start, BlockArgument) else None
        if extent > 1 and isinstance(loop, ForOp) and loop.coordinate is start and loop.step.data == extent:
            return axis
    return -1


def _repeats(cx: Lowering, load: LoadOp) -> bool:
    """Whether all rows of a page are one."""
    view = cx.views[load.source]
    return isinstance(view, PagesView) and isinstance(view.source, AffineView) and view.source.strides[1] == Expr.of(0)


def _rows(load: LoadOp) -> int:
    return tile(load.out).extents[stepping(load)]


def behind(cx: Lowering, value: SSAValue) -> Iterator[LoadOp]:
    """Loads behind a tile whose rows the loop around them counts; up to dots and to tiles that are kept."""
    op = value.owner
    if value in cx.tiles or not isinstance(op, Operation):
        return
    if isinstance(op, LoadOp):
        if stepping(op) >= 0:
            yield op
    elif not isinstance(op, (DotOp, ForOp)):
        for operand in op.operands:
            if isinstance(operand.type, TileType):
                yield from behind(cx, operand)


def _worth(cx: Lowering, load: LoadOp) -> bool:
    """Whether the next step is worth asking for: pages always, what lies dense where few rows meet it. Nothing whose
    place is computed later."""
    if any(at not in cx.indices for at in load.at):
        return False
    match cx.views.get(load.source):
        case PagesView():
            return True
        case AffineView():
            block = load.parent_block()
            dots = [] if block is None else [op for op in block.ops if isinstance(op, DotOp)]
            return bool(dots) and all(tile(dot.a).extents[0] <= FEW for dot in dots)
        case _:
            return False


def _covered(cx: Lowering, load: LoadOp) -> bool:
    """Whether a load before it brings all of it: values that are their keys' first features."""

    def begins(op: LoadOp) -> list[Expr]:
        return [cx.indices[at].expr for at in op.at]

    before = load.prev_op
    while before is not None:
        if isinstance(before, LoadOp) and before.source is load.source and begins(before) == begins(load):
            extents = zip(tile(before.out).extents, tile(load.out).extents, strict=True)
            if all(n >= m for n, m in extents):
                return True
        before = before.prev_op
    return False
