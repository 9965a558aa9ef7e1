"""Dots of few rows with a tile [N, K] on a matrix unit: the tile's rows are its left side, the few rows its right one.

A right-hand side must come in pairs of k, and to turn [N, K] into pairs takes longer than the products with few rows.
As a left-hand side its rows are taken as they lie: the few rows are brought into pairs instead, once for a whole loop
that they do not change in, and the result is turned, which is as small. Sums are the same: an element's products come
in the same order, and which of the two factors is called left changes nothing.
"""

from __future__ import annotations

from xdsl.ir import IRNode, Operation

from tilewright.ir.dtypes import BF16, F32, I32
from tilewright.ir.loops import Value
from tilewright.ir.machine import MatrixUnit, TileRules
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, ConstantOp, DotOp
from tilewright.ir.tile.structure import ForOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.destinations import destination
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.materialise import static_axes
from tilewright.passes.lower_tile_to_loops.pair_packing import narrow, row_at, row_starts
from tilewright.passes.lower_tile_to_loops.pairs import Paired, paired
from tilewright.passes.lower_tile_to_loops.sites import Position, Site, known
from tilewright.passes.lower_tile_to_loops.step_requests import StepRequests
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile
from tilewright.passes.lower_tile_to_loops.transposes import turn
from tilewright.passes.lower_tile_to_loops.whole_rows import over_whole_rows

# What the kernel's registers hold for such dots; the others take what is left, see `matrix_dots`.
TURNED_SUMS = (2, 3)
TURNED_LEFT = 5
_RIGHT = 6


def is_turned(op: Operation, rules: TileRules) -> bool:
    """Whether a dot's result is computed turned."""
    return isinstance(op, DotOp) and _turned(op, paired(op, rules), rules.matrix)


def _turned(op: DotOp, pair: Paired | None, unit: MatrixUnit | None) -> bool:
    if pair is None or unit is None or pair.load is not None or not pair.turned:
        return False
    start, (rows, columns) = op.acc.owner, tile(op.out).extents
    zero = isinstance(start, ConstantOp) and start.value.data == 0.0
    return zero and rows <= unit.columns == LANES and columns % (len(TURNED_SUMS) * unit.rows) == 0


def before_loop(cx: Lowering, loop: ForOp) -> None:
    """Brings into pairs what dots inside a loop multiply by and the loop does not change."""
    for op in loop.walk():
        if is_turned(op, cx.machine.rules) and isinstance(op, DotOp) and op.a not in cx.few and _outside(op, loop):
            cx.few[op.a] = _pairs_of_few(cx, op)


def _outside(op: DotOp, loop: ForOp) -> bool:
    """Whether a dot's few rows are there before a loop."""
    around: IRNode | None = op.a.owner
    while around is not None:
        if around is loop:
            return False
        around = around.parent
    return True


def _pairs_of_few(cx: Lowering, op: DotOp) -> ScratchTile:
    """The few rows [M, K] as pairs [K/2, LANES, 2], zeros beyond M."""
    b, (rows, depth) = cx.b, tile(op.a).extents
    home = cx.scratch((depth // 2, 2 * LANES), BF16)
    cx.sweep += 1
    for first in range(0, depth // 2, LANES):
        words = [
            b.bitcast(lanes_at(cx, op.a, Site((known(row), known(2 * first, 1)), 2 * LANES)), I32)
            for row in range(rows)
        ]
        zero = b.const(0, I32, LANES)
        for number, pairs in enumerate(turn(b, [*words, *[zero] * (LANES - rows)])):
            b.store(b.bitcast(pairs, BF16), home.memory, (first + number) * 2 * LANES)
    return home


def lower_turned_dot(cx: Lowering, op: DotOp, unit: MatrixUnit, pair: Paired) -> None:
    """The dot, whose registers the kernel has declared."""
    few = cx.few.get(op.a)
    right = _pairs_of_few(cx, op) if few is None else few
    requests = StepRequests.of(cx, pair.source, op.a, op.acc, halves=True)
    left = _rows(cx, pair, requests)
    home = destination(cx, op.out, op.acc)
    if not isinstance(home, ScratchTile):
        raise cx.unsupported(op, "the matrix unit's sums were placed in vector registers")
    columns = tile(op.out).extents[1]
    sums = cx.scratch((columns, LANES), F32)
    _products(cx, unit, (left, right, sums), requests)
    _turn_back(cx, home, sums)
    for held in (left, sums, *([right] if few is None else [])):
        cx.drop(held)
    cx.tiles[op.out] = home


def _rows(cx: Lowering, pair: Paired, requests: StepRequests) -> ScratchTile:
    """The tile [N, K] row by row; what it is computed from is asked for one step of the loop ahead."""
    b, (columns, depth) = cx.b, tile(pair.source).extents
    home = cx.scratch((columns, depth), BF16)
    cx.sweep += 1
    for starts in row_starts(cx, columns, LANES, looped=0 not in static_axes(cx, pair.source)):
        with starts as at:

            def copied(at: Position = at) -> None:
                turns = requests.turns(at, LANES, depth // 2)
                for first in range(0, depth, 2 * LANES):
                    # all of a page's rows before the first is written: what they share is loaded once
                    found = []
                    for row in range(LANES):
                        next(turns)
                        site = Site((row_at(cx, at, row), known(first, 1)), 2 * LANES)
                        found.append(narrow(cx, pair.source, site))
                    for row, elements in enumerate(found):
                        b.store(elements, home.memory, _place(cx, at, row, depth, first))

            over_whole_rows(cx, pair.source, at, LANES, copied)
    return home


def _place(cx: Lowering, at: Position, row: int, stride: int, column: int) -> Value | int:
    if isinstance(at, int):
        return (at + row) * stride + column
    return cx.b.add(cx.b.mul(at, stride), row * stride + column)


def _products(
    cx: Lowering, unit: MatrixUnit, held: tuple[ScratchTile, ScratchTile, ScratchTile], requests: StepRequests
) -> None:
    """The sums [N, LANES] of left rows [N, K] and right pairs [K/2, LANES, 2]: two registers of them at a time."""
    b, (left, right, sums) = cx.b, held
    columns, depth = left.extents
    steps, several = depth // unit.depth, len(TURNED_SUMS)
    blocks = columns // (several * unit.rows)
    with b.loop(0, blocks, name="j") as block:
        first = b.mul(block.index, several * unit.rows)
        for number in TURNED_SUMS:
            b.matrix_zero(number)
        with b.loop(0, steps, name="k") as k:
            requests.rest(b.add(b.mul(block.index, steps), k.index), blocks * steps, LANES)
            b.matrix_load(_RIGHT, right.memory, b.mul(k.index, unit.depth * LANES), 2 * LANES)
            for place, number in enumerate(TURNED_SUMS):
                row = b.mul(b.add(first, place * unit.rows), depth)
                b.matrix_load(TURNED_LEFT, left.memory, b.add(row, b.mul(k.index, unit.depth)), depth)
                b.matrix_dot(number, TURNED_LEFT, _RIGHT)
        for place, number in enumerate(TURNED_SUMS):
            b.matrix_store(number, sums.memory, b.mul(b.add(first, place * unit.rows), LANES), LANES)


def _turn_back(cx: Lowering, home: ScratchTile, sums: ScratchTile) -> None:
    """Sums [N, LANES] as the first rows [M, N] of what they are turned."""
    b, (rows, columns) = cx.b, home.extents
    with b.loop(0, columns, LANES, name="j") as square:
        first = b.mul(square.index, LANES)
        vectors = [b.load(sums.memory, b.add(first, row * LANES), LANES) for row in range(LANES)]
        for row, found in enumerate(turn(b, vectors)[:rows]):
            b.store(found, home.memory, b.add(square.index, row * home.strides[0]))
