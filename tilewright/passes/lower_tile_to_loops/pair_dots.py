"""Dots of bf16 pairs: the instruction multiplies and adds two k's at once, straight from a packed right-hand side.

The products of a pair are added odd k first (`Dot2`), so sums differ in the last bits from those in the order of k, and
are the same in every kernel of a machine class that has the instruction.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, F32, I32
from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import DotOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.destinations import destination
from tilewright.passes.lower_tile_to_loops.dots import UNROLLED_K, Block, Blocks
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.loads import spans_of
from tilewright.passes.lower_tile_to_loops.pairs import Paired, paired
from tilewright.passes.lower_tile_to_loops.sites import Coord, Site, known
from tilewright.passes.lower_tile_to_loops.storage import Storage


def lower_pair_dot(cx: Lowering, op: DotOp) -> bool:
    """Lowers a dot whose right-hand side comes in pairs; False where it does not, or may leave its view."""
    pair = paired(op, cx.machine.rules)
    if pair is None or not _is_whole(cx, pair):
        return False
    _PairBlocks(cx, op, destination(cx, op.out, op.acc), pair).run()
    return True


def _is_whole(cx: Lowering, pair: Paired) -> bool:
    """Whether the packed region is proved to lie inside its view, so that it can be read without masks."""
    view = cx.views[pair.load.source]
    starts = [cx.indices[at] for at in pair.load.at]
    return all(
        cx.facts.at_least(start.expr, 0) and cx.facts.at_least(extent.expr - start.expr, count)
        for start, extent, count in zip(starts, view.extents, tile(pair.load.out).extents, strict=True)
    )


class _PairBlocks(Blocks):
    """The blocks of a dot of pairs: the loop over k takes two at a time."""

    def __init__(self, cx: Lowering, op: DotOp, home: Storage, pair: Paired) -> None:
        super().__init__(cx, op, home, self.unread, self.unread, F32)
        self.pair = pair

    def unread(self, site: Site) -> Value:
        """Elements are read in pairs only."""
        raise self.cx.unsupported(self.op, "a single element of a pair was asked for")

    def products(
        self,
        block: Block,
        sites: list[Site],
        starts: list[Value],
        first: Value,
        end: Value,
        below: tuple[Expr, ...] = (),
    ) -> Sequence[Value]:
        b = self.cx.b
        with b.loop(0, b.floordiv(end, 2), 1, starts, unroll=UNROLLED_K, name="k") as loop:
            right = [self.right_pairs(loop.index, site) for site in sites[: block.vectors]]
            sums: list[Value] = []
            for row in range(block.rows):
                left = self.left_pair(loop.index, sites[row * block.vectors])
                for number, value in enumerate(right):
                    sums.append(b.dot2_bf16(loop.carries[row * block.vectors + number], left, value))
            loop.next(*sums)
        return loop.results

    def right_pairs(self, step: Value, site: Site) -> Value:
        """The pair of k's for a vector of columns: bf16, twice the lanes."""
        load = self.pair.load
        extents = tile(load.out).extents
        lead = [known(0)] * (len(extents) - 3)
        at = Site((*lead, Coord(step), Coord(site.coords[1].at), known(0)))
        place = self.cx.views[load.source].place(spans_of(self.cx, list(load.at), extents, at), 1, clamp=False)
        return self.cx.b.load(place.memory, place.offset, 2 * site.lanes)

    def left_pair(self, step: Value, site: Site) -> Value:
        """Two neighbours of a row of a, in every pair of lanes."""
        b = self.cx.b
        both = lanes_at(self.cx, self.op.a, Site((site.coords[0], Coord(b.mul(step, 2), 1, align=2)), 2))
        return b.bitcast(b.broadcast(b.bitcast(both, I32), site.lanes), BF16)
