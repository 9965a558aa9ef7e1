"""What a dot on a matrix unit asks for while it multiplies: lines that its epilogue touches, and the next panels.

A unit multiplies faster than far memory brings what surrounds its products, so both are spread over the steps of k. A
block of sums asks for the lines of what it will be added to and of where it will be stored. Of the panels behind those
it reads, each band of a block of rows asks for its share, so that they are in the second-level cache when the block's
rows come to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.loops import BufferArg, Value
from tilewright.ir.machine import MatrixUnit
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import DotOp, MapOp
from tilewright.ir.tile.memory import StoreOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.pairs import paired
from tilewright.passes.lower_tile_to_loops.prefetching import LINE, element, meeting, reachable
from tilewright.passes.lower_tile_to_loops.sites import Position
from tilewright.passes.lower_tile_to_loops.views import AffineView

_MOST = 4  # requests of a step for the panels that follow
_KEPT = 4  # weights of this part of the second-level cache stay in it


@dataclass(frozen=True, slots=True)
class Touched:
    """Rows that meet the sums one to one: element (r, c) at first + r * row + c, `size` bytes each."""

    memory: BufferArg
    first: Value
    row: Value
    size: int

    def ask(self, cx: Lowering, row: Value, column: Position, columns: int) -> None:
        """Requests for the lines of one row, from a column on."""
        b = cx.b
        start = b.add(self.first, b.add(b.mul(row, self.row), b.index(column)))
        for byte in range(0, columns * self.size, LINE):
            b.prefetch(self.memory, b.add(start, byte // self.size))


def touched(cx: Lowering, op: DotOp) -> list[Touched]:
    """What the epilogue of a kernel's last dot loads and stores, where it lies as the sums do, in dense rows."""
    dots = [o for o in cx.kernel.walk() if isinstance(o, DotOp) and paired(o, cx.machine.rules) is not None]
    sizes, found = tile(op.out).extents, []
    if op is not dots[-1] or 1 in sizes or isinstance(op.acc.owner, MapOp):
        return []  # sums that are changed between steps of a loop meet their epilogue later
    for end in dict.fromkeys(meeting(op.out)):
        view_of, value = (end.target, end.source) if isinstance(end, StoreOp) else (end.source, end.out)
        axes = [axis for axis, n in enumerate(tile(value).extents) if n != 1]
        if [tile(value).extents[axis] for axis in axes] != list(sizes):
            continue
        if isinstance(end, StoreOp) and end.streaming.data:
            continue
        with reachable(cx, [view_of, *end.at]) as known:
            view = cx.views.get(view_of)
            if known and isinstance(view, AffineView) and view.strides[axes[1]].constant == 1:
                first = element(cx, view, end.at, [0] * tile(value).rank)
                found.append(Touched(view.root, first, cx.b.expr(view.strides[axes[0]]), view.dtype.bytes))
    return found


@dataclass(frozen=True, slots=True)
class Following:
    """The panels behind those that a program reads, which the bands of a block of rows ask for together.

    further: elements from a panel to the one in its place. band: the number of the program's first band in its block,
    of `bands`.
    """

    memory: BufferArg
    further: Value
    band: Value
    bands: int

    def ask(self, cx: Lowering, unit: MatrixUnit, places: list[Value], band: Value) -> None:
        """A band's share of the registers behind those at `places`, which it is about to multiply by."""
        b, lines = cx.b, unit.depth * unit.columns * 2 // LINE
        each = min(_MOST // len(places), -(-lines // self.bands))
        first = b.mul(b.mod(b.add(self.band, band), lines // each), each * LINE // 2)
        for place in places:
            for number in range(each):
                b.prefetch(self.memory, b.add(b.add(place, self.further), b.add(first, number * LINE // 2)), near=False)


def following(cx: Lowering, op: DotOp, unit: MatrixUnit, height: int) -> Following | None:
    """The panels that follow, where blocks of rows pass over one program's panels after the other's.

    None for weights that stay in the second-level cache, and for kernels in another order. height: rows of a band.
    """
    pair, loops = paired(op, cx.machine.rules), cx.kernel.loops
    if pair is None or pair.load is None or len(loops) < 3:
        return None
    (row, step), (column, _), (inner, _) = loops[-3:]
    rows = cx.kernel.tiles.data[row]
    if row != inner or column == row or rows % height:
        return None
    view = cx.views.get(pair.load.source)
    if not isinstance(view, AffineView):
        return None
    bytes_ = view.dtype.bytes
    for extent in view.extents:
        bytes_ *= extent.expr.constant or 1
    if bytes_ <= cx.machine.block_bytes() // _KEPT:
        return None
    b, bands = cx.b, step * rows // height
    at = cx.indices[cx.kernel.coordinates[row]].value
    count = tile(op.b).extents[1] // unit.columns
    further = b.mul(b.expr(view.strides[-4]), count)
    return Following(view.root, further, b.mod(b.floordiv(at, height), bands), bands)
