"""Dots on a machine's matrix unit: blocks of 2 by 2 registers of sums (1 by 4 where there are few rows), k innermost.

The right-hand side is read as it was packed, in pairs of k, or packed here (`pair_packing`). The left one is read where
it lies when its rows are bf16 in memory and none of them reaches past the end; otherwise it is copied to scratch first,
zeros beyond the end. Which of the two happens, and which block an element falls into, changes nothing about its sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.loops import MatrixRegister, Memory, Value
from tilewright.ir.machine import MatrixUnit
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, BroadcastOp, ConstantOp, DotOp, ReshapeOp
from tilewright.ir.tile.memory import LoadOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.destinations import destination
from tilewright.passes.lower_tile_to_loops.dots import limits_of_k
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.materialise import fill, static_axes
from tilewright.passes.lower_tile_to_loops.operands import unit_axis, unit_reshape
from tilewright.passes.lower_tile_to_loops.pair_packing import pack
from tilewright.passes.lower_tile_to_loops.pairs import Paired, paired
from tilewright.passes.lower_tile_to_loops.sites import Position
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile
from tilewright.passes.lower_tile_to_loops.sweeps import Space, Starts, sweep
from tilewright.passes.lower_tile_to_loops.views import AffineView, all_of

_SUMS = (0, 1, 2, 3)
_LEFT = (4, 5)
_RIGHT = (6, 7)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows in memory: element (r, c) at offset + r * stride + c."""

    memory: Memory
    offset: Value
    stride: Value


def lower_matrix_dot(cx: Lowering, op: DotOp) -> bool:
    """Lowers a dot whose right-hand side comes in pairs; False where it does not."""
    unit, pair = cx.machine.rules.matrix, paired(op, cx.machine.rules)
    if unit is None or pair is None:
        return False
    _declare(cx, unit)
    _MatrixDot(cx, op, unit, pair).run()
    return True


def _declare(cx: Lowering, unit: MatrixUnit) -> None:
    """Shapes the registers for every dot of the kernel: as many rows as divide those of all their results."""
    if cx.b.matrix:
        return
    dots = [o for o in cx.kernel.walk() if isinstance(o, DotOp) and paired(o, cx.machine.rules) is not None]
    shared = gcd(*(tile(o.out).extents[0] for o in dots))
    rows = next(r for r in range(unit.rows, 0, -1) if shared % r == 0)
    sums, left = MatrixRegister(F32, rows, unit.columns), MatrixRegister(BF16, rows, unit.depth)
    right = MatrixRegister(BF16, unit.depth // 2, 2 * unit.columns)
    cx.b.matrix = (*[sums] * len(_SUMS), *[left] * len(_LEFT), *[right] * len(_RIGHT))


class _MatrixDot:
    """One dot: where its operands lie, and the blocks of its result."""

    def __init__(self, cx: Lowering, op: DotOp, unit: MatrixUnit, pair: Paired) -> None:
        self.cx, self.op, self.unit = cx, op, unit
        self.copied: ScratchTile | None = None
        if pair.load is not None:
            self.right = _packed(cx, op, pair.load)
        else:
            self.copied = pack(cx, pair, *tile(op.b).extents)
            self.right = _scratch_rows(cx, self.copied)
        self.rows, self.columns = tile(op.out).extents
        self.depth = tile(op.a).extents[1]
        self.height = cx.b.matrix[_SUMS[0]].rows
        home = destination(cx, op.out, op.acc)
        if not isinstance(home, ScratchTile):
            raise cx.unsupported(op, "the matrix unit's sums were placed in vector registers")
        self.home = home
        start = op.acc.owner
        self.from_zero = isinstance(start, ConstantOp) and start.value.data == 0.0
        if not self.from_zero and cx.tiles.get(op.acc) is not home:
            fill(cx, home, op.acc)

    def run(self) -> None:
        """Emits the whole result, from rows in memory where they lie well."""
        cx = self.cx
        cx.sweep += 1
        held = cx.tiles.get(self.op.a)
        found = _in_memory(cx, self.op.a) if held is None else None
        if isinstance(held, ScratchTile) and held.dtype is BF16:
            self.cover(_scratch_rows(cx, held))
        elif found is None:
            self.cover_copy()
        else:
            rows, inside = found
            with cx.b.either(inside) as sides:
                with sides.then() as taken:
                    if taken:
                        self.cover(rows)
                with sides.otherwise() as taken:
                    if taken:
                        self.cover_copy()
        cx.tiles[self.op.out] = self.home
        if self.copied is not None:
            cx.drop(self.copied)

    def steps(self, left: _Rows) -> Value:
        """Steps of k, as far as the left side is not known to be 0; its rows are cleared up to the last step's end."""
        b, depth = self.cx.b, self.unit.depth
        end = b.index(self.depth)
        limits = limits_of_k(self.cx, self.op)
        for limit in limits:
            end = b.max(b.min(limit.value, end), 0)
        steps = b.ceildiv(end, depth)
        if limits:
            # whoever filled the rows wrote whole vectors up to the limit, and no more
            first = b.mul(b.ceildiv(end, LANES), LANES)
            zero = b.const(0, BF16, LANES)
            with b.loop(first, b.mul(steps, depth), LANES) as column, b.loop(0, self.rows) as row:
                b.store(zero, left.memory, b.add(left.offset, b.add(b.mul(row.index, left.stride), column.index)))
        return steps

    def cover_copy(self) -> None:
        """The result from a copy of the rows."""
        cx, a = self.cx, self.op.a
        with cx.temporary(tile(a).extents, BF16) as copy:
            space = Space.of(copy.extents, cx.lanes, static_axes(cx, a))
            sweep(cx, space, lambda site: copy.write(cx.b, site, lanes_at(cx, a, site)))
            self.cover(_scratch_rows(cx, copy))

    def cover(self, left: _Rows) -> None:
        """Covers the result with blocks, as far as anyone looks."""
        steps = self.steps(left)
        live = self.cx.live(self.op.out).get(1)
        down, across = self.rows // self.height, self.columns // self.unit.columns
        tall, wide = (2, 2) if down > 1 else (1, 4)
        if live is not None and across % 2 == 0:
            wide = 2
        for column, width in self.parts(across, wide, self.unit.columns, live):
            with column as at:
                for row, height in self.parts(down, tall, self.height):
                    with row as top:
                        self.block(left, top, height, at, width, steps)

    def parts(self, count: int, size: int, scale: int, live: Index | None = None) -> list[tuple[Starts, int]]:
        """Blocks of `size` of `count` registers of `scale` elements, then one block of what is left.

        live: elements beyond which no block need start.
        """
        whole, rest = divmod(count, size)
        end: Value | int = whole * size * scale
        if live is not None:
            end = self.cx.b.min(live.value, end)
        found = [(Starts.over(self.cx, 0, end, size * scale), size)] if whole else []
        return found + ([(Starts(self.cx, whole * size * scale), rest)] if rest else [])

    def block(self, left: _Rows, top: Position, height: int, at: Position, width: int, steps: Value) -> None:
        """One block of sums: cleared or loaded, added to over k, stored."""
        b, unit, right = self.cx.b, self.unit, self.right
        stride = b.index(self.home.strides[0])
        places: list[tuple[int, Value]] = []
        for i in range(height):
            row = b.mul(b.add(b.index(top), i * self.height), stride)
            for j in range(width):
                places.append((_SUMS[i * width + j], b.add(row, b.add(b.index(at), j * unit.columns))))
        for number, place in places:
            if self.from_zero:
                b.matrix_zero(number)
            else:
                b.matrix_load(number, self.home.memory, place, stride)
        first = b.add(left.offset, b.mul(b.index(top), left.stride))
        panel = b.add(right.offset, b.mul(b.index(at), 2))
        with b.loop(0, steps, name="k") as k:
            along = b.add(first, b.mul(k.index, unit.depth))
            for i in range(height):
                b.matrix_load(_LEFT[i], left.memory, b.add(along, b.mul(left.stride, i * self.height)), left.stride)
            below = b.add(panel, b.mul(k.index, b.mul(right.stride, unit.depth // 2)))
            for j in range(width):
                number = _RIGHT[j % len(_RIGHT)]
                b.matrix_load(number, right.memory, b.add(below, 2 * unit.columns * j), right.stride)
                for i in range(height):
                    b.matrix_dot(_SUMS[i * width + j], _LEFT[i], number)
        for number, place in places:
            b.matrix_store(number, self.home.memory, place, stride)


def _packed(cx: Lowering, op: DotOp, load: LoadOp) -> _Rows:
    """The rows of pairs; they are read without masks, so the region must be proved to lie inside its view."""
    rows, inside = _region(cx, load, tile(load.out).extents, row=-3, column=-1)
    if inside is not None:
        raise cx.unsupported(op, "the packed right-hand side is not proved to cover the region that is read of it")
    return rows


def _scratch_rows(cx: Lowering, held: ScratchTile) -> _Rows:
    return _Rows(held.memory, cx.b.index(0), cx.b.index(held.strides[0]))


def _in_memory(cx: Lowering, value: SSAValue) -> tuple[_Rows, Value | None] | None:
    """Where a tile's rows lie in memory as bf16 with their elements side by side, and the condition that all do."""
    source, axes = value, [0, 1]
    while True:
        op = source.owner
        match op:
            case BroadcastOp() if tile(op.source).extents == tile(source).extents:
                source = op.source
            case ReshapeOp() if unit_reshape(op):
                moved = [unit_axis(op, axis) if axis is not None else None for axis in axes]
                axes = moved  # type: ignore[assignment]  # None: an axis of extent 1
                source = op.source
            case LoadOp():
                break
            case _:
                return None
    view = cx.views[op.source]
    row, column = axes
    if not isinstance(view, AffineView) or view.memory.dtype is not BF16 or column is None:
        return None
    if view.strides[column] != Expr.of(1):
        return None
    return _region(cx, op, tile(op.out).extents, row, column)


def _region(
    cx: Lowering, op: LoadOp, extents: tuple[int, ...], row: int | None, column: int
) -> tuple[_Rows, Value | None]:
    """A loaded region as rows, and the condition that it lies inside its view; None where that is proved."""
    b, view, conditions = cx.b, cx.views[op.source], []
    assert isinstance(view, AffineView)  # asked by the callers; packed operands are plain views of a buffer
    offset = b.expr(view.offset)
    for at, extent, step, count in zip(op.at, view.extents, view.strides, extents, strict=True):
        start = cx.indices[at]
        offset = b.add(offset, b.mul(start.value, b.expr(step)))
        if not cx.facts.at_least(start.expr, 0):
            conditions.append(b.compare("ge", start.value, 0))
        if not cx.facts.at_least(extent.expr - start.expr, count):
            conditions.append(b.compare("ge", b.sub(extent.value, start.value), count))
    stride = b.index(0) if row is None else b.expr(view.strides[row])
    return _Rows(view.memory, offset, stride), all_of(b, conditions, 1)
