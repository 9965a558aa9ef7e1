"""The running skeleton: sums, products, maxima and linear recurrences along an axis, with pointwise work around them.

Every element is computed from the one before it, in order, so the bits depend on nothing but the line itself.

Column form (another axis lies innermost): lanes run along that axis, and the line is a loop that carries one row.
Row form (the line lies innermost): blocks of several lines are turned, so that lanes run across the lines; where there
are too few lines to fill a vector, each is walked element by element.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.dtypes import F32, DType
from tilewright.ir.graph import recurrence, reduction
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import tile as tile_type
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import LANES
from tilewright.ir.tile.compute import ScanOp as TileScanOp
from tilewright.passes.lower_to_tile.access import map_group, unsupported
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, all_strides, begin, padded
from tilewright.passes.lower_to_tile.layout import Walk, merge_axes
from tilewright.passes.lower_to_tile.pointwise import axes_apart

RUN = 64  # elements of each line that a block of the row form holds: one number, because it decides rounding
FEW_LINES = 3  # up to here, lines are walked one by one
COLUMNS = 128  # lanes of the column form: the carried row stays in registers
_COMBINE = {"sum": "add", "prod": "mul", "max": "max"}

Anchor = reduction.CumulativeOp | recurrence.ScanOp


def lower_running(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """Lowers a group around one cumulative op or one linear recurrence."""
    (anchor,) = (op for op in group.block.ops if isinstance(op, (reduction.CumulativeOp, recurrence.ScanOp)))
    space = map_group(group, anchor)
    strides = all_strides(space, group)
    line = space.maps[anchor.out][anchor.axis.data].axes
    if len(line) > 1:
        raise unsupported(anchor, "a running op along an axis that another op of its kernel splits")
    walk = merge_axes(space, space.order, strides, axes_apart(space, group) | frozenset(line))
    if not walk.extents:
        walk = Walk([Expr.of(1)], [()])
    along = next((i for i, m in enumerate(walk.members) if m and m[0] in line), None)
    rows = along is not None and along == len(walk.members) - 1
    across = [i for i in range(len(walk.members)) if i != along]
    lines = product(walk.extents[i] for i in across)
    guard = lines if rows and across else Expr.of(0)
    few = guard.constant is not None and guard.constant <= FEW_LINES
    many = guard.constant is not None and guard.constant > FEW_LINES
    forms = [1] if few else [LANES] if many else [1, LANES]
    variants: list[Variant] = []
    for height in forms:
        b, buffers, outputs = begin(group, name if height == forms[0] else f"{name}_lines")
        extent = dict.fromkeys(range(len(walk.members)), 1)
        column = len(walk.members) - 1
        row = across[-1] if rows and across else None
        if rows:
            extent[column] = RUN
            if row is not None:
                extent[row] = height
        elif walk.members[column]:
            size = walk.extents[column].constant
            extent[column] = min(padded(max(size, 1), LANES), COLUMNS) if size is not None else COLUMNS
        coordinates = b.grid([walk.extents[i] for i in across] or [1], [extent[i] for i in across] or [1])
        at = dict(zip(across, coordinates, strict=False))
        at[column] = at.get(column, b.index(0))
        if along is not None:
            at[along] = b.index(0)
        emitter = Emitter(b, space, walk, buffers, strides, at, row, column, extent)
        _Runner(emitter, group, anchor, along, rows=rows).run(outputs)
        variants.append(Variant(b.finish(), FEW_LINES if height == 1 and len(forms) > 1 else None))
    return Lowered(tuple(variants), b.dims, guard)


class _Runner:
    """Emits the walk along the lines and the stores."""

    def __init__(self, emitter: Emitter, group: GroupOp, anchor: Anchor, along: int | None, *, rows: bool) -> None:
        self.e, self.group, self.anchor, self.along, self.rows = emitter, group, anchor, along, rows
        self.b: KernelBuilder = emitter.b
        dtype = tensor(anchor.out).dtype
        self.kind: DType = F32 if dtype.is_float and dtype.bits < 32 else dtype

    def run(self, outputs: Sequence[SSAValue]) -> None:
        e = self.e
        start = self._start()
        if self.along is None:
            self._store(outputs, self._step(self._operands(), start))
            return
        step = RUN if self.rows else 1
        with self.b.loop(0, e.walk.extents[self.along], step, [start]) as loop, e.scope():
            e.at[self.along] = loop.at
            if self.rows:
                result, last = self._block(self._operands(), loop.carried[0])
            else:
                result = last = self._step(self._operands(), loop.carried[0])
            self._store(outputs, result)
            loop.give(last)

    def _store(self, outputs: Sequence[SSAValue], result: SSAValue) -> None:
        self.e.set(self.anchor.out, self.b.cast(result, tensor(self.anchor.out).dtype))
        for value, output in zip(self.group.yielded, outputs, strict=True):
            self.e.store(value, output, self.e.tile(value))

    def _full(self, value: SSAValue) -> SSAValue:
        """A value's tile in the carried dtype, of the kernel's whole extents."""
        e = self.e
        rows = e.extent[e.row] if e.row is not None else 1
        return self.b.broadcast(self.b.cast(e.tile(value), self.kind), (rows, e.extent[e.column]))

    def _operands(self) -> list[SSAValue]:
        op = self.anchor
        return [self._full(v) for v in ([op.x] if isinstance(op, reduction.CumulativeOp) else [op.a, op.b])]

    def _start(self) -> SSAValue:
        """What comes before the first element: [1, columns], or one number a line of a block."""
        b, e, op = self.b, self.e, self.anchor
        lines = e.extent[e.row] if e.row is not None else 1
        extents = (1, lines) if self.rows else (1, e.extent[e.column])
        if isinstance(op, recurrence.ScanOp):
            if op.h0 is None:
                return b.constant(0.0, extents, self.kind)
            first = b.cast(e.tile(op.h0), self.kind)
            return b.broadcast(b.reshape(first, (1, lines)) if self.rows else first, extents)
        match op.fn.data:
            case "prod":
                return b.constant(1.0, extents, self.kind)
            case "max":
                return b.constant(float("-inf"), extents, self.kind)
            case _:
                # -0.0 added changes nothing, not even a first element of -0.0
                return b.constant(-0.0, extents, self.kind)

    def _step(self, operands: Sequence[SSAValue], before: SSAValue) -> SSAValue:
        """The next elements from those before them."""
        b, op = self.b, self.anchor
        if isinstance(op, recurrence.ScanOp):
            factor, term = operands
            return b.map("add", b.map("mul", factor, before), term)
        return b.map(_COMBINE[op.fn.data], before, operands[0])

    def _block(self, operands: Sequence[SSAValue], before: SSAValue) -> tuple[SSAValue, SSAValue]:
        """A block of lines [lines, RUN], continued: its elements, and the last one of every line as [1, lines]."""
        b, op = self.b, self.anchor
        lines = tile_type(operands[0]).extents[0]
        turned = lines > 1
        axis = 0 if turned else 1
        tiles = [b.transpose(t, (1, 0)) if turned else t for t in operands]
        extents = (RUN, 1) if turned else (1, RUN)
        first = b.map("eq", b.coordinates(0, axis, extents), b.splat(0, (1, 1)))
        joined = self._step(tiles, before)
        tiles[-1] = b.map("select", b.broadcast(first, tile_type(tiles[-1]).extents), joined, tiles[-1])
        if isinstance(op, recurrence.ScanOp):
            made = TileScanOp.make(tiles, fn="linear", axis=axis)
        else:
            made = TileScanOp.make(tiles, fn=op.fn.data, axis=axis)
        b.add(made)
        done = made.results[-1]
        last = b.slice(done, [RUN - 1, 0], [RUN, lines]) if turned else b.slice(done, [0, RUN - 1], [1, RUN])
        return b.transpose(done, (1, 0)) if turned else done, last
