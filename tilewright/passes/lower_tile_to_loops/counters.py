"""Instrumented execution: what each op moved and computed, counted while the loops run.

The last buffer of an instrumented kernel is i64[threads, len(quantities(kernel))], zeroed by the caller. Every thread
adds to a row of its own, so nothing is atomic; the sum over rows is what the tile interpreter counts, in elements and
FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from xdsl.ir import Operation, SSAValue

from tilewright.ir.loops import BufferArg, Value
from tilewright.ir.tile.base import TileOp, tile
from tilewright.ir.tile.counting import MEMORY, Kind, Quantity, buffer_numbers, op_numbers
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp
from tilewright.ir.tile.memory import (
    LoadOp,
    StageOp,
    StoreOp,
    ViewOp,
    ViewPagesOp,
    ViewRowsOp,
    ViewSegmentOp,
    ViewWindowOp,
    root,
    staged_load,
)
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.structure import CompareOp, ExprOp, ForOp, IfOp, KernelOp, ScalarOp, YieldOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.views import Run

_SILENT = (ViewOp, ViewWindowOp, ViewRowsOp, ViewPagesOp, YieldOp, ForOp, IfOp, ExprOp, CompareOp, KernelOp)


def quantities(kernel: KernelOp) -> tuple[Quantity, ...]:
    """What the columns of the counters count, in the kernel's walk order."""
    numbers, buffers = op_numbers(kernel), buffer_numbers(kernel)
    found: dict[Quantity, None] = {}
    for op in kernel.walk():
        if isinstance(op, _SILENT) or not isinstance(op, TileOp):
            continue
        if isinstance(op, StageOp):
            found[Quantity(numbers[op], "stage", None, op.level.data)] = None
        elif isinstance(op, (LoadOp, StoreOp, ScalarOp, ViewSegmentOp)):
            view = op.target if isinstance(op, StoreOp) else op.offsets if isinstance(op, ViewSegmentOp) else op.source
            kind: Kind = "write" if isinstance(op, StoreOp) else "read"
            found[Quantity(numbers[op], kind, buffers[root(view)], MEMORY)] = None
            for read in _index_views(view):
                found[Quantity(numbers[op], "read", buffers[root(read)], MEMORY)] = None
        elif isinstance(op, LookupOp):
            found[Quantity(numbers[op], "read", buffers[root(op.source)], MEMORY)] = None
        elif isinstance(op, (SortLineOp, TopkLineOp)):
            found[Quantity(numbers[op], "read", buffers[root(op.source)], MEMORY)] = None
            for line in (op.values, op.places):
                found[Quantity(numbers[op], "write", buffers[root(line)], MEMORY)] = None
        else:
            if isinstance(op, UpdateOp):
                for moved in _updates(op):
                    found[Quantity(numbers[op], moved, buffers[root(op.target)], MEMORY)] = None
            for work, flops in _work(op):
                if flops:
                    found[Quantity(numbers[op], work)] = None
    return tuple(found)


def _updates(op: UpdateOp) -> list[Kind]:
    return ["write"] if op.mode.data == "set" else ["write", "read"]


def _work(op: TileOp) -> list[tuple[Kind, int]]:
    cost = op.cost()
    return [("matrix", cost.matrix.constant or 0), ("vector", cost.vector.constant or 0)]


def _index_views(view: SSAValue) -> list[SSAValue]:
    """The views of integers that addressing a view reads, innermost last."""
    op = view.owner
    match op:
        case ViewRowsOp():
            return [op.indices, *_index_views(op.indices), *_index_views(op.source)]
        case ViewPagesOp():
            return [op.table, *_index_views(op.table), *_index_views(op.source)]
        case ViewWindowOp() | ViewSegmentOp():
            return _index_views(op.source)
        case _:
            return []


class CounterRow:
    """This thread's row of the counters."""

    def __init__(self, cx: Lowering, memory: BufferArg) -> None:
        self.cx, self.memory = cx, memory
        self.numbers, self.buffers = op_numbers(cx.kernel), buffer_numbers(cx.kernel)
        self.columns = {quantity: n for n, quantity in enumerate(quantities(cx.kernel))}
        self.start = cx.b.mul(cx.b.tid, len(self.columns))
        self.arguments = {memory: value for value, memory in cx.buffers.items()}

    def op(self, op: Operation) -> None:
        """Counts one execution of an op, whose operands are known."""
        match op:
            case LoadOp():
                self.region(op, "read", op.source, list(op.at), tile(op.out).extents)
            case StoreOp():
                self.region(op, "write", op.target, list(op.at), tile(op.source).extents)
            case LookupOp():
                self.around(op, ["read"], op.source, list(op.at), tile(op.out).extents)
            case UpdateOp():
                self.around(op, _updates(op), op.target, list(op.at), tile(op.source).extents)
                self.work(op)
            case SortLineOp() | TopkLineOp():
                self.line(op)
            case ScalarOp():
                self.region(op, "read", op.source, list(op.at), (1,) * len(op.at))
            case ViewSegmentOp():
                view, which = self.cx.views[op.offsets], self.cx.indices[op.which]
                runs = [Run.of(view, 0, at, 1) for at in (which, Index(self.cx.b.add(which.value, 1), which.expr + 1))]
                for run in runs:
                    self.moved(op, "read", op.offsets, run.inside)
                    self.reads(op, run)
            case StageOp():
                self.stage(op)
            case TileOp() if not isinstance(op, _SILENT):
                self.work(op)

    def work(self, op: TileOp) -> None:
        for work, flops in _work(op):
            if flops:
                self.add(Quantity(self.numbers[op], work), self.cx.b.index(flops))

    def around(
        self, op: LookupOp | UpdateOp, kinds: Sequence[Kind], view: SSAValue, at: list[SSAValue], extents: Sequence[int]
    ) -> None:
        """Counts the lanes whose coordinates along the other axes lie inside the view."""
        source, total = self.cx.views[view], self.cx.b.index(1)
        others = [axis for axis in range(len(source.extents)) if axis != op.axis.data]
        for axis, start, count in zip(others, at, extents, strict=True):
            total = self.cx.b.mul(total, Run.of(source, axis, self.cx.indices[start], count).inside)
        for kind in kinds:
            self.moved(op, kind, view, total)

    def line(self, op: SortLineOp | TopkLineOp) -> None:
        """Counts a line read, and what is kept of it written twice."""
        length = self.cx.views[op.source].extents[op.axis.data].value
        kept = self.cx.b.min(length, op.k.data) if isinstance(op, TopkLineOp) else length
        self.moved(op, "read", op.source, length)
        for line in (op.values, op.places):
            self.moved(op, "write", line, kept)

    def region(self, op: Operation, kind: Kind, view: SSAValue, at: list[SSAValue], extents: tuple[int, ...]) -> None:
        """Counts a region's lanes inside the view, and the indices that addressing it reads."""
        runs = self.runs(view, at, extents)
        self.moved(op, kind, view, self.inside(runs))
        for run in runs:
            self.reads(op, run)

    def runs(self, view: SSAValue, at: list[SSAValue], extents: tuple[int, ...]) -> list[Run]:
        source = self.cx.views[view]
        return [
            Run.of(source, axis, self.cx.indices[start], count)
            for axis, (start, count) in enumerate(zip(at, extents, strict=True))
        ]

    def inside(self, runs: list[Run]) -> Value:
        total = self.cx.b.index(1)
        for run in runs:
            total = self.cx.b.mul(total, run.inside)
        return total

    def stage(self, op: StageOp) -> None:
        load = staged_load(op)
        count = self.cx.b.index(prod(tile(op.source).extents))
        if load is not None:
            count = self.inside(self.runs(load.source, list(load.at), tile(load.out).extents))
        self.add(Quantity(self.numbers[op], "stage", None, op.level.data), count)

    def reads(self, op: Operation, run: Run) -> None:
        for memory, count in run.reads:
            number = self.buffers[self.arguments[memory]]
            self.add(Quantity(self.numbers[op], "read", number, MEMORY), count)

    def moved(self, op: Operation, kind: Kind, view: SSAValue, count: Value) -> None:
        self.add(Quantity(self.numbers[op], kind, self.buffers[root(view)], MEMORY), count)

    def add(self, quantity: Quantity, count: Value) -> None:
        b = self.cx.b
        where = b.add(self.start, self.columns[quantity])
        b.store(b.add(b.load(self.memory, where), count), self.memory, where)
