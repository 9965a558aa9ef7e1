"""The grouped matmul skeleton: a program is one expert and one panel of its matrix; its rows stream past.

The rows of an expert's segment are read where they lie, through the segment of row numbers, and results are written to
their slots' rows the same way: nothing is permuted in memory. How many rows there are is only known at run time, so a
program loops over its segment, and one without rows does nothing. Blocks of panels come first in the grid's order:
every thread has a share of each expert, however the rows are spread over experts. Several products of one kernel (gate
and up) sum in registers one after the other, before the epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.ir.dims import DimSpace, Expr, floordiv
from tilewright.ir.dtypes import F32, F64
from tilewright.ir.graph import routing, shape
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.memory import ViewOp, ViewSegmentOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import UNIT, Space, map_group, unsupported
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, all_strides, begin
from tilewright.passes.lower_to_tile.layout import Strides, Walk, strides_of
from tilewright.passes.lower_to_tile.matmul import DYNAMIC_K, chunk_of
from tilewright.passes.lower_to_tile.matrix_tiles import row_tiles, steps_of, tile_columns, unit_for
from tilewright.passes.lower_to_tile.packing import matrix_of_pairs
from tilewright.passes.lower_to_tile.skeleton import Refusal


@dataclass(frozen=True, slots=True)
class GroupedPanels:
    """A packed right-hand side: the group argument that holds it, its panel width, and the k's side by side.

    total: columns of all panels of a matrix.
    """

    argument: BlockArgument
    columns: int
    pairs: int
    total: int


def grouped_panels(b: SSAValue) -> GroupedPanels | None:
    """Reads back what plan-layout wrote: slice(reshape(transpose(argument))) from panels to [E, K, N]."""
    match b.owner:
        case shape.SliceOp(x=SSAValue(owner=shape.ReshapeOp(x=SSAValue(owner=shape.TransposeOp() as turned)))):
            dims = [d.constant for d in tensor(turned.x).dims]
            columns, pairs = dims[3], dims[4] if len(dims) == 5 else 1
            if isinstance(turned.x, BlockArgument) and columns is not None and pairs is not None and dims[1]:
                return GroupedPanels(turned.x, columns, pairs, dims[1] * columns)
    return None


def refuses_grouped(op: Operation) -> Refusal | None:
    """A number of experts that no one knows."""
    if isinstance(op, routing.GroupedMatmulOp) and op.sizes()[0].constant is None:
        return Refusal("a number of experts that varies")
    return None


def lower_grouped_matmul(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """One row at a time while experts have about one each, the machine's largest register tile beyond.

    Tiles between the two gain nothing: with few rows the matrices' bytes take the time, and a taller tile passes over
    them fewer times.
    """
    anchor = next(op for op in group.block.ops if isinstance(op, routing.GroupedMatmulOp))
    experts = anchor.sizes()[0].constant or 0
    average = floordiv(tensor(anchor.targets).dims[0], max(experts, 1)) + 1
    low, high = dims.interval(average)
    variants, previous = [], 0
    packed = grouped_panels(anchor.b)
    unit = unit_for(machine, anchor) if packed is not None and packed.pairs > 1 else None
    tiles = row_tiles(machine.rules, unit)
    for limit, rows in (tiles[0], tiles[-1]):
        if (low is None or limit is None or low <= limit) and (high is None or high > previous):
            variants.append(Variant(_Grouped(group, f"{name}_r{rows}", machine, rows).kernel(), limit))
        previous = limit or previous
    variants[-1] = Variant(variants[-1].kernel, None)
    return Lowered(tuple(variants), tuple(variants[0].kernel.dims.data), average)


class _SegmentEmitter(Emitter):
    """An emitter whose rows are the slots of a segment: what varies along rows is seen through their numbers."""

    segment: SSAValue

    def view_of(self, value: SSAValue, buffer: SSAValue, strides: Strides) -> tuple[SSAValue, list[int]]:
        """The value as seen by this program, and the walk axes of the view."""
        axes, steps = self._placed(strides)
        view = self.b.view(buffer, [self.walk.extents[a] for a in axes], steps, strides.offset)
        if self.row in axes:
            view = self.b.rows(view, self.segment, axes.index(self.row))
        return view, axes

    def load(self, value: SSAValue, fill: float | None = None) -> SSAValue:
        strides = self.strides[value]
        if self._placed(strides)[0] == [] or self.row not in self._placed(strides)[0]:
            return super().load(value, fill)
        view, axes = self.view_of(value, self.buffers[value], strides)
        loaded = self.b.load(view, [self.at[a] for a in axes], [self.extent[a] for a in axes], fill)
        return self.b.reshape(loaded, self.flat(axes))

    def store(self, value: SSAValue, buffer: SSAValue, tile: SSAValue) -> None:
        view, axes = self.view_of(value, buffer, strides_of(self.space, value))
        tile = self.b.broadcast(self.b.cast(tile, tensor(value).dtype), self.flat(axes))
        self.b.store(self.b.reshape(tile, [self.extent[a] for a in axes]), view, [self.at[a] for a in axes])


class _Grouped:
    """One kernel under construction."""

    def __init__(self, group: GroupOp, name: str, machine: Machine, rows: int) -> None:
        self.group, self.machine, self.rows = group, machine, rows
        self.anchors = [op for op in group.block.ops if isinstance(op, routing.GroupedMatmulOp)]
        first = self.anchors[0]
        self.lists = (first.rows, first.targets, first.offsets)
        if any((op.a, op.rows, op.targets, op.offsets) != (first.a, *self.lists) for op in self.anchors):
            raise unsupported(first, "grouped products of one kernel must share rows and segments")
        if not all(isinstance(value, BlockArgument) for value in (first.a, *self.lists)):
            raise unsupported(first, "a grouped product reads its rows from memory")
        self.space = map_group(group, first, self._seed)
        out = self.space.maps[first.out]
        if len(out[0].axes) > 1 or len(out[1].axes) > 1:
            raise unsupported(first, "the result of a grouped product is stored in pieces")
        self.b, self.buffers, self.outputs = begin(group, name)
        self.panels = grouped_panels(first.b)
        self.width = machine.rules.panel
        if self.panels is not None:
            self.width = tile_columns(self.panels.columns, self.panels.pairs, self.panels.total, machine.rules)

    def _seed(self, space: Space) -> None:
        """Operands of the products are addressed here, not by the space."""
        for op in self.anchors:
            chain = op.b
            operands = [op.a, op.rows, op.targets, op.offsets, *([op.bias] if op.bias is not None else [])]
            while not isinstance(chain, BlockArgument):
                operands.append(chain)
                chain = chain.owner.operands[0]  # type: ignore[union-attr]
            for value in (*operands, chain):
                space.maps[value] = (UNIT,) * tensor(value).rank

    def kernel(self) -> KernelOp:
        b, op = self.b, self.anchors[0]
        experts, n, _ = op.sizes()
        total = tensor(op.targets).dims[0]
        panels = -(-(n.constant or 1) // self.width)
        # at least two blocks of panels a core, so that threads have equal shares of every expert
        block = max(1, panels // (2 * self.machine.cores))
        order = [(0, block), (1, 1), (0, 1)] if block > 1 else [(0, 1), (1, 1)]
        column, expert = b.grid([n, experts], [self.width, 1], order)
        offsets = b.view(self.buffers[op.offsets], [experts + 1], [1])
        begins = b.scalar(offsets, [expert])
        ends = b.scalar(offsets, [b.index(Expr.of("a0") + 1, expert)])
        count = b.index(Expr.of("a1") - "a0", begins, ends)
        lists = {
            value: b.add(_segment(b.view(self.buffers[value], [total], [1]), offsets, expert, total))
            for value in dict.fromkeys((op.rows, op.targets))
        }
        left = b.rows(b.dense(self.buffers[op.a]), lists[op.rows])
        walk = Walk([total, n], [self.space.maps[op.out][0].axes, self.space.maps[op.out][1].axes])
        strides = all_strides(self.space, self.group)
        with b.loop(0, count, self.rows) as loop:
            emitter = _SegmentEmitter(
                b, self.space, walk, self.buffers, strides, {0: loop.at, 1: column}, 0, 1, {0: self.rows, 1: self.width}
            )
            emitter.segment = lists[op.targets]
            size = op.sizes()[2].constant
            whole = None
            step = self._step(op)
            if size and step >= size:
                whole = b.load(left, [loop.at, 0], [self.rows, step], None if step == size else 0.0)
            for product in self.anchors:
                emitter.set(product.out, self._product(product, left, whole, loop.at, column, expert))
            for value, output in zip(self.group.yielded, self.outputs, strict=True):
                emitter.store(value, output, emitter.tile(value))
        return b.finish()

    def _product(
        self,
        op: routing.GroupedMatmulOp,
        left: SSAValue,
        whole: SSAValue | None,
        row: SSAValue,
        column: SSAValue,
        expert: SSAValue,
    ) -> SSAValue:
        """The register tile's sum over K, chunks of k in order as in every matmul, and the expert's bias.

        whole: the rows with all of their K where that is one chunk, read once for all products.
        """
        b = self.b
        kind = F64 if tensor(op.out).dtype == F64 else F32
        size = op.sizes()[2]
        k = size.constant
        zero = b.constant(0.0, (self.rows, self.width), kind)
        total = zero
        if k != 0:
            step = self._step(op)
            fill = 0.0 if k is None or k % step else None

            def part(at: SSAValue, acc: SSAValue) -> SSAValue:
                a = whole if whole is not None else b.load(left, [row, at], [self.rows, step], fill)
                return b.dot(a, self._right(op, at, column, expert, step, fill), acc)

            if k is not None and step >= k:
                total = part(b.index(0), zero)
            else:
                with b.loop(0, size, step, [zero]) as loop:
                    (acc,) = loop.carried
                    added = part(loop.at, acc if k is None else zero)
                    loop.give(added if k is None else b.map("add", acc, added))
                (total,) = loop.out
        if op.bias is not None:
            bias = b.load(b.dense(self.buffers[op.bias]), [expert, column], [1, self.width])
            total = b.map("add", total, b.cast(bias, kind))
        return b.cast(total, tensor(op.out).dtype)

    def _step(self, op: routing.GroupedMatmulOp) -> int:
        """The k of one dot; on a matrix unit it may reach past K, where both operands count as zero."""
        k, packed = op.sizes()[2].constant, grouped_panels(op.b)
        unit = unit_for(self.machine, op) if packed is not None and packed.pairs > 1 else None
        if k and unit is not None:
            return steps_of(k, unit, self.machine.rules)[0]
        return DYNAMIC_K if k is None else chunk_of(k, self.machine.rules, whole=True)

    def _right(
        self,
        op: routing.GroupedMatmulOp,
        k: SSAValue,
        column: SSAValue,
        expert: SSAValue,
        step: int,
        fill: float | None,
    ) -> SSAValue:
        """The [k, columns] tile of the expert's matrix at the current place."""
        b, packed = self.b, grouped_panels(op.b)
        if packed is not None:
            dims = tensor(packed.argument).dims
            view = b.view(self.buffers[packed.argument], dims, ViewOp.row_major(dims))
            panel = b.index(floordiv(Expr.of("a0"), packed.columns), column)
            if packed.pairs == 1:
                loaded = b.load(view, [expert, panel, k, 0], (1, 1, step, packed.columns))
                return b.reshape(loaded, (step, packed.columns))
            pair = b.index(floordiv(Expr.of("a0"), packed.pairs), k)
            count = (self.width // packed.columns, step // packed.pairs, packed.columns, packed.pairs)
            return matrix_of_pairs(b, b.reshape(b.load(view, [expert, panel, pair, 0, 0], (1, *count)), count))
        if not isinstance(op.b, BlockArgument):
            raise unsupported(op, "the experts' matrices must be in memory")
        view = b.dense(self.buffers[op.b])
        if op.transpose_b.data:
            loaded = b.load(view, [expert, column, k], (1, self.width, step), fill)
            return b.transpose(b.reshape(loaded, (self.width, step)), (1, 0))
        return b.reshape(b.load(view, [expert, k, column], (1, step, self.width), fill), (step, self.width))


def _segment(view: SSAValue, offsets: SSAValue, expert: SSAValue, total: Expr) -> ViewSegmentOp:
    return ViewSegmentOp.make(view, offsets, expert, axis=0, extent=[total])
