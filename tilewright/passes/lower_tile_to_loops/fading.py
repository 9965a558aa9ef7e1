"""Sums that are multiplied by a factor a row before a product adds to them: rows whose factor is 1 are left alone.

That changes no bit, and an online softmax has such factors in most segments.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import MapOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import evaluate, lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import fill
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Site
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile
from tilewright.passes.lower_tile_to_loops.sweeps import Space, columns, outer


def fill_sums(cx: Lowering, home: ScratchTile, value: SSAValue) -> None:
    """Evaluates what a product adds to into the scratch that it adds in."""
    factor = _factor(cx, home, value)
    if factor is None:
        fill(cx, home, value)
        return
    b, space = cx.b, Space(home.extents, cx.lanes, home.axis, live=cx.live(value))
    cx.sweep += 1

    def each(site: Site, carried: Sequence[Value]) -> Sequence[Value]:
        home.write(b, site, lanes_at(cx, value, site))
        return carried

    def row(coords: tuple[Coord, ...]) -> None:
        fade = evaluate(cx, factor, Site((coords[0], ORIGIN)))
        with b.when(b.compare("ne", fade, 1.0)):
            columns(cx, space, coords, each)

    outer(cx, space, row)


def _factor(cx: Lowering, home: ScratchTile, value: SSAValue) -> SSAValue | None:
    """The factors [rows, 1], held in scratch, that the scratch's own elements are multiplied by; None where the value
    is something else."""
    op = value.owner
    if not isinstance(op, MapOp) or op.fn.data != "mul" or home.axis != 1:
        return None
    for own, factor in (op.args, reversed(op.args)):
        held, sizes = cx.tiles.get(factor), tile(factor).extents
        if cx.tiles.get(own) is home and isinstance(held, ScratchTile) and sizes == (home.extents[0], 1):
            return factor
    return None
