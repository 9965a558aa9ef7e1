"""Dots on a machine's matrix unit: blocks of 2 by 2 registers of sums (1 by 4 where there are few rows), k innermost.

The right-hand side is read as it was packed, in pairs of k, or packed here (`pair_packing`). The left one is read where
it lies when its rows are bf16 in memory and none of them reaches past the end; otherwise it is copied to scratch first,
zeros beyond the end, a band of two registers' height at a time. Which of the two happens, and which block an element
falls into, changes nothing about its sum.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import gcd

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, F32, I1
from tilewright.ir.loops import MatrixRegister, Memory, Value
from tilewright.ir.machine import MatrixUnit
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, BroadcastOp, ConstantOp, DotOp, ReshapeOp
from tilewright.ir.tile.memory import LoadOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.destinations import destination
from tilewright.passes.lower_tile_to_loops.dots import limits_of_k
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.fading import fill_sums
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.materialise import static_axes
from tilewright.passes.lower_tile_to_loops.matrix_requests import following, touched
from tilewright.passes.lower_tile_to_loops.operands import unit_axis, unit_reshape
from tilewright.passes.lower_tile_to_loops.pair_packing import forget, halves, pack
from tilewright.passes.lower_tile_to_loops.pairs import Paired, paired
from tilewright.passes.lower_tile_to_loops.sites import Coord, Position, Site, known
from tilewright.passes.lower_tile_to_loops.step_requests import StepRequests
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile
from tilewright.passes.lower_tile_to_loops.sweeps import Space, Starts, sweep
from tilewright.passes.lower_tile_to_loops.turned_dots import (
    TURNED_LEFT,
    TURNED_SUMS,
    is_turned,
    lower_turned_dot,
)
from tilewright.passes.lower_tile_to_loops.views import AffineView, all_of

_SUMS = (0, 1, 2, 3)
_LEFT = (4, 5)
_RIGHT = (6, 7)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows in memory: element (r, c) at offset + r * stride + c.

    across: of right-hand sides, elements from what fills one register to what fills the one beside it.
    """

    memory: Memory
    offset: Value
    stride: Value
    across: Value | None = None


def lower_matrix_dot(cx: Lowering, op: DotOp) -> bool:
    """Lowers a dot whose right-hand side comes in pairs; False where it does not."""
    unit, pair = cx.machine.rules.matrix, paired(op, cx.machine.rules)
    if unit is None or pair is None:
        return False
    _declare(cx, unit)
    if is_turned(op, cx.machine.rules):
        lower_turned_dot(cx, op, unit, pair)
    else:
        _MatrixDot(cx, op, unit, pair).run()
    return True


def _declare(cx: Lowering, unit: MatrixUnit) -> None:
    """Shapes the registers for every dot of the kernel: as many rows as divide those of all their results."""
    if cx.b.matrix:
        return
    rules = cx.machine.rules
    dots = [o for o in cx.kernel.walk() if isinstance(o, DotOp) and paired(o, rules) is not None]
    shared = gcd(*(tile(o.out).extents[0] for o in dots if not is_turned(o, rules)))
    rows = next(r for r in range(unit.rows, 0, -1) if shared % r == 0)
    sums, left = MatrixRegister(F32, rows, unit.columns), MatrixRegister(BF16, rows, unit.depth)
    right = MatrixRegister(BF16, unit.depth // 2, 2 * unit.columns)
    registers = [*[sums] * len(_SUMS), *[left] * len(_LEFT), *[right] * len(_RIGHT)]
    if any(is_turned(o, rules) for o in dots):
        for number in TURNED_SUMS:
            registers[number] = MatrixRegister(F32, unit.rows, unit.columns)
        registers[TURNED_LEFT] = MatrixRegister(BF16, unit.rows, unit.depth)
    cx.b.matrix = tuple(registers)


class _MatrixDot:
    """One dot: where its operands lie, and the blocks of its result."""

    def __init__(self, cx: Lowering, op: DotOp, unit: MatrixUnit, pair: Paired) -> None:
        self.cx, self.op, self.unit = cx, op, unit
        self.copied: ScratchTile | None = None
        if pair.load is not None:
            self.right = _packed(cx, op, pair.load)
        else:
            self.copied = pack(cx, op, pair, unit.columns)
            self.right = replace(
                _scratch_rows(cx, self.copied), across=cx.b.index(tile(op.b).extents[0] * unit.columns)
            )
        self.rows, self.columns = tile(op.out).extents
        self.depth = tile(op.a).extents[1]
        self.height = cx.b.matrix[_SUMS[0]].rows
        # beside turned dots all rows lie in one register
        self.narrow = cx.b.matrix[TURNED_SUMS[0]] != cx.b.matrix[_SUMS[0]]
        even = self.rows % (2 * self.height) == 0
        self.band = self.height if self.narrow else 2 * self.height if even else self.rows
        home = destination(cx, op.out, op.acc)
        if not isinstance(home, ScratchTile):
            raise cx.unsupported(op, "the matrix unit's sums were placed in vector registers")
        self.home = home
        tall = pair.load is not None and self.rows > self.height
        self.touched = touched(cx, op) if tall else []
        self.following = following(cx, op, unit, self.band) if tall else None
        across = -(-self.columns // unit.columns)
        self.steps_asked = -(-across // min(across, 2 if self.narrow else 4)) * -(-self.depth // unit.depth)
        shared = pair.load is None and halves(op, pair)
        self.requests = StepRequests.of(cx, pair.source, op.a, op.acc, halves=True) if shared else None
        start = op.acc.owner
        self.from_zero = isinstance(start, ConstantOp) and start.value.data == 0.0
        if not self.from_zero and cx.tiles.get(op.acc) is not home:
            fill_sums(cx, home, op.acc)

    def run(self) -> None:
        """Emits the whole result: rows that lie well in memory from there, the rest band by band from a copy."""
        cx, b = self.cx, self.cx.b
        cx.sweep += 1
        held = cx.tiles.get(self.op.a)
        found = _in_memory(cx, self.op.a) if held is None else None
        end: Value | int = self.rows
        live = cx.live(self.op.out).get(0)
        if live is not None:
            end = b.max(b.min(live.value, self.rows), 0)
        if isinstance(held, ScratchTile) and held.dtype is BF16:
            rows = _scratch_rows(cx, held)
            self.cover(rows, end, self.steps(rows, self.rows))
        elif found is None:
            self.copies(0, end)
        else:
            rows, inside, above = found
            near: Value | int = self.rows
            if above is not None:
                near = b.max(b.min(above, self.rows), 0)
                near = b.mul(b.floordiv(near, self.band), self.band)
            if inside is not None:
                near = b.select(inside, b.index(near), b.index(0))
            self.cover(rows, near, b.index(-(-self.depth // self.unit.depth)))
            if not isinstance(near, int):
                self.copies(near, end)
        cx.tiles[self.op.out] = self.home
        if self.copied is not None:
            forget(cx, self.op)

    def steps(self, left: _Rows, rows: int) -> Value:
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
            with b.loop(first, b.mul(steps, depth), LANES) as column, b.loop(0, rows) as row:
                b.store(zero, left.memory, b.add(left.offset, b.add(b.mul(row.index, left.stride), column.index)))
        return steps

    def copies(self, start: Position, end: Position) -> None:
        """Rows from `start` on, a multiple of the band, from a copy of one band after the other."""
        cx, a = self.cx, self.op.a
        static = static_axes(cx, a)
        bands = [Starts.over(cx, start, end, self.band)]
        if 0 in static:
            bands = [Starts(cx, top) for top in range(0, self.rows, self.band)]
        for band in bands:
            with band as top, cx.temporary((self.band, self.depth), BF16) as copy:
                space = Space.of(copy.extents, cx.lanes, static)
                sweep(cx, space, lambda site: copy.write(cx.b, site, lanes_at(cx, a, self.below(site, top))))
                left = _scratch_rows(cx, copy)
                steps = self.steps(left, self.band)
                for column, width in self.strips():
                    with column as at:
                        self.cover_band(left, 0, top, at, width, cx.b.index(0), steps)

    def below(self, site: Site, top: Position) -> Site:
        """The site moved down by `top` rows."""
        row, column = site.coords
        if isinstance(top, int) and isinstance(row.at, int):
            return replace(site, coords=(known(row.at + top, row.step), column))
        return replace(site, coords=(Coord(self.cx.b.add(self.cx.b.index(row.at), top), row.step), column))

    def cover(self, left: _Rows, end: Position, steps: Value) -> None:
        """Covers the rows below `end` with blocks, as far as anyone looks.

        Where several bands read the same pairs and the first-level cache does not hold all of them, k comes in blocks
        whose pairs take half of it. Sums wait in scratch from one block of k to the next, which changes none of their
        bits.
        """
        b = self.cx.b
        several = self.rows > self.band and not limits_of_k(self.cx, self.op)
        turn = self.cx.machine.resident_depth(self.unit) // self.unit.depth
        whole = -(-self.depth // self.unit.depth)
        with ExitStack() as around:
            first, last = b.index(0), steps
            if several and 2 * turn < whole:
                first = around.enter_context(b.loop(0, steps, turn, name="kb")).index
                last = b.min(b.add(first, turn), steps)
            for column, width in self.strips():
                with column as at, Starts.over(self.cx, 0, end, self.band) as top:
                    self.cover_band(left, top, top, at, width, first, last)

    def strips(self) -> list[tuple[Starts, int]]:
        """Blocks of columns: where they start, and their registers."""
        live = self.cx.live(self.op.out).get(1)
        across = self.columns // self.unit.columns
        several = self.band > self.height or (live is not None and across % 2 == 0)
        wide = 2 if several or self.narrow else 4
        return self.parts(across, wide, self.unit.columns, live)

    def cover_band(
        self, left: _Rows, row: Position, top: Position, at: Position, width: int, first: Value, last: Value
    ) -> None:
        """The blocks of one band and strip: rows from `row` on of the left side, from `top` on of the result."""
        down = self.band // self.height
        for part, height in self.parts(down, 2 if down > 1 else 1, self.height):
            with part as by:
                self.block(left, _plus(self.cx, row, by), _plus(self.cx, top, by), height, at, width, first, last)

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

    def block(
        self,
        left: _Rows,
        row: Position,
        top: Position,
        height: int,
        at: Position,
        width: int,
        first: Value,
        last: Value,
    ) -> None:
        """One block of sums: cleared or loaded, added to over steps of k, stored."""
        b, unit, right = self.cx.b, self.unit, self.right
        assert right.across is not None  # set for right-hand sides
        stride = b.index(self.home.strides[0])
        places: list[tuple[int, Value]] = []
        for i in range(height):
            down = b.mul(b.add(b.index(top), i * self.height), stride)
            for j in range(width):
                places.append((_SUMS[i * width + j], b.add(down, b.add(b.index(at), j * unit.columns))))
        with b.either(b.compare("eq", first, 0) if self.from_zero else b.const(0, I1)) as sides:
            with sides.then() as taken:
                for number, _ in places if taken else ():
                    b.matrix_zero(number)
            with sides.otherwise() as taken:
                for number, place in places if taken else ():
                    b.matrix_load(number, self.home.memory, place, stride)
        start = b.add(left.offset, b.mul(b.index(row), left.stride))
        panel = b.add(right.offset, b.mul(b.floordiv(b.index(at), unit.columns), right.across))
        with b.loop(first, last, name="k") as k:
            along = b.add(start, b.mul(k.index, unit.depth))
            for i in range(height):
                b.matrix_load(_LEFT[i], left.memory, b.add(along, b.mul(left.stride, i * self.height)), left.stride)
            below = b.add(panel, b.mul(k.index, b.mul(right.stride, unit.depth // 2)))
            beside = [b.add(below, b.mul(right.across, j)) for j in range(width)]
            if self.following is not None:
                self.following.ask(self.cx, unit, beside, b.floordiv(b.index(top), self.band))
            if self.requests is not None:
                strip = b.floordiv(b.index(at), width * unit.columns)
                step = b.add(b.mul(strip, -(-self.depth // unit.depth)), k.index)
                self.requests.rest(step, self.steps_asked, LANES)
            self.ask_for_epilogue(k.index, top, height * self.height, at, width * unit.columns)
            for j in range(width):
                number = _RIGHT[j % len(_RIGHT)]
                b.matrix_load(number, right.memory, beside[j], right.stride)
                for i in range(height):
                    b.matrix_dot(_SUMS[i * width + j], _LEFT[i], number)
        for number, place in places:
            b.matrix_store(number, self.home.memory, place, stride)

    def ask_for_epilogue(self, k: Value, top: Position, rows: int, at: Position, columns: int) -> None:
        """Requests for a step's share of the rows of a block that meet its finished sums."""
        b, steps = self.cx.b, -(-self.depth // self.unit.depth)
        each = -(-rows // steps)
        for number in range(each if self.touched else 0):
            row = b.add(b.mul(k, each), number)
            if each * steps > rows:
                row = b.min(row, rows - 1)
            for rest in self.touched:
                rest.ask(self.cx, b.add(b.index(top), row), at, columns)


def _plus(cx: Lowering, start: Position, by: Position) -> Position:
    if isinstance(start, int) and isinstance(by, int):
        return start + by
    return cx.b.add(cx.b.index(start), by)


def _packed(cx: Lowering, op: DotOp, load: LoadOp) -> _Rows:
    """The rows of pairs; they are read without masks, so the region must be proved to lie inside its view."""
    rows, inside, above = _region(cx, load, tile(load.out).extents, row=-3, column=-1)
    if inside is not None or above is not None:
        raise cx.unsupported(op, "the packed right-hand side is not proved to cover the region that is read of it")
    view = cx.views[load.source]
    assert isinstance(view, AffineView)  # as `_region` says
    return replace(rows, across=cx.b.expr(view.strides[-4]))


def _scratch_rows(cx: Lowering, held: ScratchTile) -> _Rows:
    return _Rows(held.memory, cx.b.index(0), cx.b.index(held.strides[0]))


def _in_memory(cx: Lowering, value: SSAValue) -> tuple[_Rows, Value | None, Value | None] | None:
    """Where a tile's rows lie in memory as bf16 with their elements side by side; see `_region`."""
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
) -> tuple[_Rows, Value | None, Value | None]:
    """A loaded region as rows, the condition that each row that starts inside its view lies in it, and how many do.

    None: proved for the one, all of them for the other.
    """
    b, view, conditions = cx.b, cx.views[op.source], []
    assert isinstance(view, AffineView)  # asked by the callers; packed operands are plain views of a buffer
    offset, above = b.expr(view.offset), None
    rows = None if row is None else row % len(extents)
    for axis, (at, extent, step, count) in enumerate(zip(op.at, view.extents, view.strides, extents, strict=True)):
        start = cx.indices[at]
        offset = b.add(offset, b.mul(start.value, b.expr(step)))
        if not cx.facts.at_least(start.expr, 0):
            conditions.append(b.compare("ge", start.value, 0))
        if cx.facts.at_least(extent.expr - start.expr, count):
            continue
        left = b.sub(extent.value, start.value)
        if axis == rows:
            above = left
        else:
            conditions.append(b.compare("ge", left, count))
    stride = b.index(0) if row is None else b.expr(view.strides[row])
    return _Rows(view.memory, offset, stride), all_of(b, conditions, 1), above
