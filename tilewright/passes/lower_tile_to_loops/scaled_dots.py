"""Scaled dots: an exact dot per group of k, times both operands' scales of the group, added to an f32 accumulator.

A group's dot is exact in f32 for integers of 8 bits as long as its sum stays below 2**24, and is run in f32 there: the
same blocks and multiply-adds as plain dots. Longer groups and floats run in i32 and f64.
"""

from __future__ import annotations

from typing import Final

from tilewright.ir.dtypes import F32, F64, I32, DType
from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import DotScaledOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.dots import Block, Blocks, readers
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import storage_for
from tilewright.passes.lower_tile_to_loops.sites import Coord, Site
from tilewright.passes.lower_tile_to_loops.spilling import spilled

_EXACT: Final = 1 << 24  # integers up to here are f32
_LARGEST: Final = {"i8": 128, "u8": 255}


def lower_dot_scaled(cx: Lowering, op: DotScaledOp) -> None:
    """acc plus the scaled dots of the groups, in increasing order."""
    home = storage_for(cx, op.out)
    wide = _exact_dtype(op)
    # Scales are read at a group's number, which is known at run time only.
    with spilled(cx, [op.a_scale, op.b_scale]), readers(cx, op.a, op.b, op.out, wide) as (left, right):
        _ScaledBlocks(cx, op, home, left, right, wide).run()


def _exact_dtype(op: DotScaledOp) -> DType:
    a, b = tile(op.a).dtype, tile(op.b).dtype
    if a.is_float:
        return F64
    return F32 if op.group.data * _LARGEST[a.name] * _LARGEST[b.name] <= _EXACT else I32


class _ScaledBlocks(Blocks):
    """The blocks of a scaled dot: a loop over groups around the loop over k."""

    op: DotScaledOp

    def block(self, block: Block) -> None:
        cx, b, sites = self.cx, self.cx.b, self.sites(block)
        group, depth = self.op.group.data, tile(self.op.a).extents[1]
        starts = [lanes_at(cx, self.op.acc, site) for site in sites]
        zeros = [b.const(0, self.dtype, site.lanes) for site in sites]
        with b.loop(0, depth // group, 1, starts, name="g") as groups:
            first = b.mul(groups.index, group)
            exact = self.products(block, sites, zeros, first, b.add(first, group))
            at = Coord(groups.index)
            columns = [b.cast(lanes_at(cx, self.op.b_scale, _with(s, 0, at)), F32) for s in sites[: block.vectors]]
            sums: list[Value] = []
            for row in range(block.rows):
                site = sites[row * block.vectors]
                scale = b.cast(lanes_at(cx, self.op.a_scale, Site((site.coords[0], at))), F32)
                for number, column in enumerate(columns):
                    place = row * block.vectors + number
                    both = b.mul(b.broadcast(scale, site.lanes), column)
                    sums.append(b.fma(b.cast(exact[place], F32), both, groups.carries[place]))
            groups.next(*sums)
        for site, value in zip(sites, groups.results, strict=True):
            self.home.write(b, site, value)


def _with(site: Site, axis: int, coord: Coord) -> Site:
    return Site((*site.coords[:axis], coord, *site.coords[axis + 1 :]), site.lanes, site.mask)
