"""Requests for the pages that come next, made while a matrix unit's pairs are written from those that are there.

Rows of pages lie apart, and no prefetcher of hardware follows a table. What a loop over segments brings next is known
one segment ahead: the next step of the loads that the pairs are made of. Every block of rows asks for the same rows of
the next segment, so that memory's time passes under the arithmetic on this one; line by line, because what waits for
memory is a short queue, and more stop the core. With 32768 keys of 8 heads in bf16, 4 query heads each, two cores took
14 ms where nothing was asked for, 12 where a block's lines were asked for together, 10 so; into the first level, 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from xdsl.ir import BlockArgument, Operation, SSAValue

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
from tilewright.passes.lower_tile_to_loops.views import Span

Line: TypeAlias = tuple[BufferArg, Value]  # where one begins


@dataclass(frozen=True, slots=True)
class PageRequests:
    """The loads of paged rows that a tile is made of; the first axis of each counts rows."""

    cx: Lowering
    loads: tuple[LoadOp, ...]

    @staticmethod
    def of(cx: Lowering, op: DotOp, source: SSAValue, rows: int) -> PageRequests:
        """For a dot whose right-hand side is made of `source`, a tile of so many rows. What the other operands load
        of them is asked for, too.
        """
        operands = [operand for value in (source, op.a, op.acc) for operand in _stepped(cx, value, rows)]
        return PageRequests(cx, tuple(dict.fromkeys(operands)))

    def turns(self, at: Position, rows: int, turns: int) -> Iterator[None]:
        """Asks for the rows that follow those from `at` on by one step of the loop: in each of so many turns, when the
        next value is taken, for its share of their lines.
        """
        lines = self._lines(at, rows)
        for turn in range(turns):
            for memory, offset in lines[turn * len(lines) // turns : (turn + 1) * len(lines) // turns]:
                self.cx.b.prefetch(memory, offset, near=False)
            yield

    def _lines(self, at: Position, rows: int) -> list[Line]:
        b, found = self.cx.b, dict[tuple[BufferArg, int, int], Line]()
        for load in self.loads:
            first, extents = self.cx.indices[load.at[0]], tile(load.out).extents
            after = Index(b.add(first.value, extents[0]), first.expr + extents[0])
            inner = [
                Span(self.cx.indices[origin], ORIGIN, n) for origin, n in zip(load.at[1:-1], extents[1:-1], strict=True)
            ]
            view, last, width = self.cx.views[load.source], self.cx.indices[load.at[-1]], extents[-1]
            line, lanes = LINE // tile(load.out).dtype.bytes, min(LANES, width)
            for row in range(rows):
                moved = known(at + row) if isinstance(at, int) else Coord(b.add(at, row))
                for column in range(0, width, line):
                    spans = [Span(after, moved, extents[0]), *inner, Span(last, known(column, 1), width)]
                    place = view.place(spans, lanes, clamp=False)
                    if place.spread is None:
                        base, more = split(place.offset)
                        found.setdefault((place.memory, id(base), more // line), (place.memory, place.offset))
        return list(found.values())


def _stepped(cx: Lowering, value: SSAValue, rows: int) -> Iterator[LoadOp]:
    """Loads of pages behind a tile, up to other dots, whose next step is that of the loop around them."""
    op = value.owner
    if isinstance(op, LoadOp):
        start = op.at[0]
        loop = start.owner.parent_op() if isinstance(start, BlockArgument) else None
        stepped = isinstance(loop, ForOp) and loop.coordinate is start and loop.step.data == rows
        if stepped and tile(op.out).extents[0] == rows and isinstance(cx.views.get(op.source), PagesView):
            yield op
    elif isinstance(op, Operation) and not isinstance(op, (DotOp, ForOp)):
        for operand in op.operands:
            if isinstance(operand.type, TileType):
                yield from _stepped(cx, operand, rows)
