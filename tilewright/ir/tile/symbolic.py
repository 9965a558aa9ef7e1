"""Walks a kernel with index values as expressions, and gives what each op counts as terms over the iteration space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from xdsl.ir import Block, Operation, SSAValue

from tilewright.errors import IRError, Problem
from tilewright.ir.dims import Expr, ceildiv, floordiv, minimum
from tilewright.ir.tile.base import TileOp, buffer, tile, view
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
    staged_load,
)
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.spaces import Clip, Condition, Datum, Factor, Loop, PageSpan, Relation, Symbols, Term
from tilewright.ir.tile.structure import CompareOp, ExprOp, ForOp, IfOp, KernelOp, ScalarOp, YieldOp
from tilewright.ir.types import IndexType

ZERO, ONE = Expr.of(0), Expr.of(1)


class IndexRead(NamedTuple):
    """Integers read to follow an axis: one a lane, or one a page of positions shift + scale * c."""

    buffer: int
    page: int | None = None
    scale: int = 1
    shift: Expr = ZERO


@dataclass(frozen=True, slots=True)
class SymbolicAxis:
    """One axis of a view: which coordinates are inside, the element one lies at, and what is read to find it."""

    lows: tuple[Expr, ...]
    highs: tuple[Expr, ...]
    address: Callable[[Expr], Expr]
    reads: tuple[IndexRead, ...] = ()


@dataclass(frozen=True, slots=True)
class SymbolicView:
    """A view of a buffer: element base + the sum of the axes' addresses."""

    buffer: int
    base: Expr
    axes: tuple[SymbolicAxis, ...]


class Counted(NamedTuple):
    """A quantity's term, in bytes or FLOPs."""

    quantity: Quantity
    term: Term


class SymbolicWalk:
    """The terms of a kernel, in the order of its ops."""

    def __init__(self, kernel: KernelOp) -> None:
        self.kernel = kernel
        prefix = "_"
        while any(dim.startswith(prefix) for dim in kernel.dims.data):
            prefix += "_"
        self.symbols = Symbols(prefix)
        self.counted: list[Counted] = []
        self._numbers, self._buffers = op_numbers(kernel), buffer_numbers(kernel)
        self._sizes = [buffer(b).dtype.bytes for b in kernel.buffers]
        self._indices: dict[SSAValue, Expr] = {}
        self._views: dict[SSAValue, SymbolicView] = {}
        self._loaded: dict[Operation, tuple[Clip, ...]] = {}
        self._path: tuple[Loop | Condition, ...] = ()
        grid = zip(kernel.coordinates, kernel.extents.data, kernel.tiles.data, strict=True)
        for coordinate, extent, size in grid:
            self._path += (self._new_loop(coordinate, ZERO, extent, size),)
        self._block(kernel.block)

    # --- symbols --------------------------------------------------------------------------------------------------

    def _new_loop(self, coordinate: SSAValue, lo: Expr, hi: Expr, step: int) -> Loop:
        loop = Loop(self.symbols.fresh(), lo, hi, step)
        self.symbols.loops[loop.name] = loop
        self._indices[coordinate] = Expr.of(loop.name)
        return loop

    def _relation(self, a: Expr, relation: str, b: Expr) -> Expr:
        gap = (a - b).constant
        if gap is not None:
            return Expr.of(int({"<": gap < 0, "<=": gap <= 0, "==": gap == 0, "!=": gap != 0}[relation]))
        name = self.symbols.fresh()
        self.symbols.relations[name] = Relation(a, relation, b)
        return Expr.of(name)

    def _datum(self, number: int, address: Expr) -> Expr:
        name = self.symbols.fresh()
        self.symbols.data[name] = Datum(number, address)
        return Expr.of(name)

    # --- control --------------------------------------------------------------------------------------------------

    def _block(self, block: Block) -> None:
        for op in block.ops:
            self._op(op)

    def _op(self, op: Operation) -> None:
        match op:
            case ForOp():
                self._for(op)
            case IfOp():
                self._if(op)
            case ExprOp():
                self._indices[op.out] = op.expr.substitute({f"a{i}": self._indices[a] for i, a in enumerate(op.args)})
            case CompareOp():
                self._indices[op.out] = self._relation(self._indices[op.a], op.relation.data, self._indices[op.b])
            case ScalarOp():
                at = [self._indices[c] for c in op.at]
                self._indices[op.out] = self._integer(op, self._views[op.source], at)
            case ViewOp() | ViewWindowOp() | ViewRowsOp() | ViewPagesOp() | ViewSegmentOp():
                self._views[op.out] = self._view(op)
            case LoadOp():
                clips = self._region(op, "read", self._views[op.source], op.at, op.extents.data)
                self._loaded[op] = clips
            case StoreOp():
                self._region(op, "write", self._views[op.target], op.at, tile(op.source).extents)
            case LookupOp():
                around = _without(self._views[op.source], op.axis.data)
                self._region(op, "read", around, op.at, op.extents.data)
            case UpdateOp():
                around = _without(self._views[op.target], op.axis.data)
                self._region(op, "write", around, op.at, tile(op.source).extents)
                if op.mode.data != "set":
                    self._region(op, "read", around, op.at, tile(op.source).extents)
                self._work(op)
            case SortLineOp() | TopkLineOp():
                self._line(op)
            case StageOp():
                self._stage(op)
            case YieldOp():
                pass
            case TileOp():
                self._work(op)

    def _work(self, op: TileOp) -> None:
        cost = op.cost()
        works: tuple[tuple[Kind, int | None], ...] = (
            ("matrix", cost.matrix.constant),
            ("vector", cost.vector.constant),
        )
        for kind, flops in works:
            if flops:
                self._count(Quantity(self._numbers[op], kind), (), flops)

    def _for(self, op: ForOp) -> None:
        outside = self._path
        loop = self._new_loop(op.coordinate, self._indices[op.lo], self._indices[op.hi], op.step.data)
        self._path = (*outside, loop)
        steps = self._carried_steps(op, loop)
        nth = floordiv(Expr.of(loop.name) - loop.lo, loop.step)
        for initial, inner, outer, step in zip(op.carries, op.carried, op.out, steps, strict=True):
            if step is not None:
                self._indices[inner] = self._indices[initial] + step * nth
                self._indices[outer] = self._indices[initial] + step * loop.trips
        self._block(op.body.blocks[0])
        self._path = outside

    def _carried_steps(self, op: ForOp, loop: Loop) -> list[Expr | None]:
        """What each carried index grows by in an iteration; None for tiles."""
        carried = [c for c in op.carried if isinstance(c.type, IndexType)]
        if not carried:
            return [None] * len(op.carried)
        # walk the body once with unknowns in their place, to see what it yields, and forget what was counted
        unknowns = {c: self._datum(0, ZERO) for c in carried}
        before = list(self.counted)
        self._indices.update(unknowns)
        self._block(op.body.blocks[0])
        self.counted = before
        steps: list[Expr | None] = []
        for inner, given in zip(op.carried, op.yielded, strict=True):
            if inner not in unknowns:
                steps.append(None)
                continue
            step = self._indices[given] - unknowns[inner]
            outer = {part.name for part in self._path if isinstance(part, Loop)} - {loop.name}
            if not step.symbols <= outer | set(self.kernel.dims.data):
                raise IRError(
                    Problem("an index is carried that does not grow by the same amount each time", op.name, op.loc),
                    step="compute the index from the loop's coordinate",
                )
            steps.append(step)
        return steps

    def _if(self, op: IfOp) -> None:
        condition, outside = self._indices[op.condition], self._path
        yielded: list[Sequence[SSAValue]] = []
        for region, holds in ((op.then, True), (op.otherwise, False)):
            block = region.blocks[0]
            self._path = (*outside, Condition(condition, holds))
            self._block(block)
            yielded.append(block.last_op.operands if block.last_op is not None else ())
        self._path = outside
        if any(isinstance(r.type, IndexType) for r in op.out):
            chosen = self._relation(condition, "!=", ZERO)
            for result, then, otherwise in zip(op.out, *yielded, strict=True):
                if isinstance(result.type, IndexType):
                    a, b = self._indices[then], self._indices[otherwise]
                    self._indices[result] = b + chosen * (a - b)

    # --- memory ---------------------------------------------------------------------------------------------------

    def _integer(self, op: Operation, source: SymbolicView, at: Sequence[Expr]) -> Expr:
        """An integer read by this op: counted, with the reads on its way."""
        for axis in source.axes:
            for read in axis.reads:
                self._count_buffer(op, "read", read.buffer, ())
        self._count_buffer(op, "read", source.buffer, ())
        address = sum((a.address(c) for a, c in zip(source.axes, at, strict=True)), start=source.base)
        return self._datum(source.buffer, address)

    def _region(
        self, op: Operation, kind: Kind, source: SymbolicView, at: Sequence[SSAValue], extents: Sequence[int]
    ) -> tuple[Clip, ...]:
        clips = tuple(
            Clip(self._indices[c], n, axis.lows, axis.highs)
            for axis, c, n in zip(source.axes, at, extents, strict=True)
        )
        self._count_buffer(op, kind, source.buffer, clips)
        for axis, clip in zip(source.axes, clips, strict=True):
            for read in axis.reads:
                lanes = clip if read.page is None else PageSpan(clip, read.page, read.scale, read.shift)
                self._count_buffer(op, "read", read.buffer, (lanes,))
        return clips

    def _line(self, op: SortLineOp | TopkLineOp) -> None:
        """A whole line read, and what is kept of it written twice: the length of a line is a loop of its own."""
        axis, outside = op.axis.data, self._path
        length = view(op.source).dims[axis]
        kept = length if isinstance(op, SortLineOp) else minimum(length, op.k.data)
        moves: list[tuple[Kind, SSAValue, Expr]] = [
            ("read", op.source, length), ("write", op.values, kept), ("write", op.places, kept),
        ]  # fmt: skip
        for kind, moved, count in moves:
            loop = Loop(self.symbols.fresh(), ZERO, count, 1)
            self.symbols.loops[loop.name] = loop
            self._path = (*outside, loop)
            self._count_buffer(op, kind, self._views[moved].buffer, ())
        self._path = outside

    def _stage(self, op: StageOp) -> None:
        staged, load = tile(op.source), staged_load(op)
        quantity = Quantity(self._numbers[op], "stage", None, op.level.data)
        if load is None:
            self._count(quantity, (), staged.dtype.bytes * prod(staged.extents))
        else:
            self._count(quantity, self._loaded[load], staged.dtype.bytes)

    def _count(self, quantity: Quantity, factors: tuple[Factor, ...], scale: int) -> None:
        self.counted.append(Counted(quantity, Term(self._path, factors, scale)))

    def _count_buffer(self, op: Operation, kind: Kind, number: int, factors: tuple[Factor, ...]) -> None:
        self._count(Quantity(self._numbers[op], kind, number, MEMORY), factors, self._sizes[number])

    # --- views ----------------------------------------------------------------------------------------------------

    def _view(self, op: ViewOp | ViewWindowOp | ViewRowsOp | ViewPagesOp | ViewSegmentOp) -> SymbolicView:
        dims = view(op.out).dims
        if isinstance(op, ViewOp):
            affine = zip(dims, op.strides.data, strict=True)
            axes = tuple(SymbolicAxis((ZERO,), (n,), stride.__mul__) for n, stride in affine)
            return SymbolicView(self._buffers[op.source], op.offset.data[0], axes)
        source = self._views[op.source]
        match op:
            case ViewWindowOp():
                parts = zip(source.axes, dims, op.offsets, op.steps.data, strict=True)
                return replace(source, axes=tuple(_window(a, n, self._indices[o], s) for a, n, o, s in parts))
            case ViewRowsOp():
                return _replaced(source, op.axis.data, self._rows(op, source.axes[op.axis.data], dims[op.axis.data]))
            case ViewPagesOp():
                return self._pages(op, source, dims[0])
            case ViewSegmentOp():
                offsets, which = self._views[op.offsets], self._indices[op.which]
                begin, end = (self._integer(op, offsets, [which + i]) for i in (0, 1))
                axis = source.axes[op.axis.data]
                reads = tuple(r._replace(shift=r.shift + begin * r.scale) for r in axis.reads)
                highs = (dims[op.axis.data], end - begin)
                segment = SymbolicAxis((ZERO,), highs, lambda c: axis.address(begin + c), reads)
                return _replaced(source, op.axis.data, segment)

    def _rows(self, op: ViewRowsOp, axis: SymbolicAxis, extent: Expr) -> SymbolicAxis:
        indices = self._views[op.indices]
        (along,) = indices.axes
        if any(read.page is not None for read in axis.reads):
            raise IRError(
                Problem("rows of a paged axis read a number of pages that only the indices tell", op.name, op.loc),
                step="take rows of the pages themselves",
            )

        def address(c: Expr) -> Expr:
            return axis.address(self._datum(indices.buffer, indices.base + along.address(c)))

        reads = (IndexRead(indices.buffer), *along.reads, *axis.reads)
        return SymbolicAxis((ZERO, *along.lows), (extent, *along.highs), address, reads)

    def _pages(self, op: ViewPagesOp, source: SymbolicView, extent: Expr) -> SymbolicView:
        table, page = self._views[op.table], op.page.data
        (along,) = table.axes
        outer, inner, *rest = source.axes
        if outer.reads or inner.reads or any(read.page is not None for read in along.reads):
            raise IRError(
                Problem("pages of an indexed view read a number of indices that only the table tells", op.name, op.loc),
                step="page the buffer's own view",
            )

        def address(s: Expr) -> Expr:
            entry = self._datum(table.buffer, table.base + along.address(floordiv(s, page)))
            return outer.address(entry) + inner.address(s % page)

        reads = tuple(IndexRead(r.buffer, page) for r in (IndexRead(table.buffer), *along.reads))
        paged = SymbolicAxis((ZERO,), (extent, self._indices[op.length]), address, reads)
        return replace(source, axes=(paged, *rest))


def _window(axis: SymbolicAxis, extent: Expr, offset: Expr, step: int) -> SymbolicAxis:
    """c is inside where 0 <= c < extent and the source has offset + c * step."""
    lows = dict.fromkeys((ZERO, *(ceildiv(low - offset, step) for low in axis.lows)))
    highs = dict.fromkeys((extent, *(ceildiv(high - offset, step) for high in axis.highs)))
    reads = tuple(r._replace(scale=r.scale * step, shift=r.shift + offset * r.scale) for r in axis.reads)
    return SymbolicAxis(tuple(lows), tuple(highs), lambda c: axis.address(offset + c * step), reads)


def _without(source: SymbolicView, axis: int) -> SymbolicView:
    return replace(source, axes=(*source.axes[:axis], *source.axes[axis + 1 :]))


def _replaced(source: SymbolicView, at: int, by: SymbolicAxis) -> SymbolicView:
    return replace(source, axes=(*source.axes[:at], by, *source.axes[at + 1 :]))
