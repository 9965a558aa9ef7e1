"""A kernel's ops as Python closures over numbered slots: made once for a run, called for every program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from xdsl.ir import Block, Operation, SSAValue

from tilewright.errors import IRError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.tile.axes import AffineAxis, Axis, Memory, PagesAxis, Reads, RowsAxis, SegmentAxis, Site, WindowAxis
from tilewright.ir.tile.base import Array, TileOp, element, tile, view
from tilewright.ir.tile.counting import MEMORY, Counters, Kind, Quantity, buffer_numbers, op_numbers
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp, spare_words
from tilewright.ir.tile.memory import (
    POISON,
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
from tilewright.ir.tile.ordering import stable_order
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.regions import View
from tilewright.ir.tile.structure import CompareOp, ExprOp, ForOp, IfOp, KernelOp, ScalarOp, YieldOp
from tilewright.ir.types import TileType

Slots: TypeAlias = list[Any]  # the values of one program, by slot: integers, Tiles, Views and Memories
Step: TypeAlias = Callable[[Slots], None]


class Tile(NamedTuple):
    """A tile's values, its poison lanes (None: none), and how many lanes were inside where a load made it."""

    values: Array
    poison: Array | None
    inside: int = 0


def garbage(dtype: DType) -> Any:
    """What a poison lane holds: NaN, or a number that no one computes by accident."""
    if dtype.is_float:
        return element(float("nan"), dtype)
    return np.bool_(True) if dtype.kind == "bool" else np.frombuffer(b"\xa5" * dtype.bytes, dtype.numpy())[0]


class Execution:
    """One run of a kernel: `run` executes the program at some coordinates, `count_into` tells what all of them did."""

    def __init__(self, kernel: KernelOp, memories: Sequence[Memory], dims: Mapping[str, int], site: Site) -> None:
        self._site = site
        self._dims = {name: dims[name] for name in kernel.dims.data}
        self._numbers = op_numbers(kernel)
        self._buffers = buffer_numbers(kernel)
        self._slots: dict[SSAValue, int] = {}
        self._moved: dict[Quantity, int] = {}
        self._sizes: dict[Quantity, int] = {}
        self._item_sizes = [memory.flat.itemsize for memory in memories]
        self._index_reads: dict[int, Reads] = {}
        self._executed: dict[TileOp, int] = {}
        self._arguments = self._all([*kernel.buffers, *kernel.coordinates])
        self._steps = self._block(kernel.block)
        self._env: Slots = [None] * len(self._slots)
        self._memories = list(memories)

    def run(self, coordinates: Sequence[int]) -> None:
        """Executes one program."""
        env = self._env
        for slot, value in zip(self._arguments, [*self._memories, *coordinates], strict=True):
            env[slot] = value
        for step in self._steps:
            step(env)

    def count_into(self, counters: Counters) -> None:
        """Adds what the programs moved and did."""
        for quantity, n in self._moved.items():
            counters.add(quantity, n, self._sizes[quantity])
        for number, reads in self._index_reads.items():
            for index_buffer, n in reads.items():
                counters.add(Quantity(number, "read", index_buffer, MEMORY), n, self._item_sizes[index_buffer])
        for op, times in self._executed.items():
            cost = op.cost()
            works: tuple[tuple[Kind, Expr], ...] = (("matrix", cost.matrix), ("vector", cost.vector))
            for kind, flops in works:
                if flops.constant:
                    counters.add(Quantity(self._numbers[op], kind), times * flops.constant)

    # --- slots and blocks -----------------------------------------------------------------------------------------

    def _slot(self, value: SSAValue) -> int:
        return self._slots.setdefault(value, len(self._slots))

    def _all(self, values: Sequence[SSAValue]) -> list[int]:
        return [self._slot(v) for v in values]

    def _evaluated(self, exprs: Sequence[Expr]) -> list[int]:
        return [e.evaluate(self._dims) for e in exprs]

    def _block(self, block: Block) -> list[Step]:
        return [self._step(op) for op in block.ops if not isinstance(op, YieldOp)]

    def _yields(self, block: Block) -> list[int]:
        return self._all(block.last_op.operands) if isinstance(block.last_op, YieldOp) else []

    def _step(self, op: Operation) -> Step:
        match op:
            case ForOp():
                return self._for(op)
            case IfOp():
                return self._if(op)
            case ExprOp():
                return self._expr(op)
            case CompareOp():
                return self._compare(op)
            case ScalarOp():
                return self._scalar(op)
            case LoadOp():
                return self._load(op)
            case StoreOp():
                return self._store(op)
            case LookupOp():
                return self._lookup(op)
            case UpdateOp():
                return self._update(op)
            case SortLineOp() | TopkLineOp():
                return self._line(op)
            case StageOp():
                return self._stage(op)
            case ViewOp() | ViewWindowOp() | ViewRowsOp() | ViewPagesOp() | ViewSegmentOp():
                return self._view(op)
            case TileOp():
                return self._compute(op)
            case _:
                raise IRError(f"{op.name} is not an op of a kernel", step="lower it before running the kernel")

    # --- control --------------------------------------------------------------------------------------------------

    def _for(self, op: ForOp) -> Step:
        lo, hi, step = self._slot(op.lo), self._slot(op.hi), op.step.data
        coordinate, carried = self._slot(op.coordinate), self._all(op.carried)
        initial, final = self._all(op.carries), self._all(op.out)
        block = op.body.blocks[0]
        body, yields = self._block(block), self._yields(block)

        def run(env: Slots) -> None:
            values = [env[s] for s in initial]
            for at in range(env[lo], env[hi], step):
                env[coordinate] = at
                for slot, value in zip(carried, values, strict=True):
                    env[slot] = value
                for do in body:
                    do(env)
                values = [env[s] for s in yields]
            for slot, value in zip(final, values, strict=True):
                env[slot] = value

        return run

    def _if(self, op: IfOp) -> Step:
        condition, final = self._slot(op.condition), self._all(op.out)
        branches = [(self._block(r.blocks[0]), self._yields(r.blocks[0])) for r in (op.otherwise, op.then)]

        def run(env: Slots) -> None:
            body, yields = branches[env[condition] != 0]
            for do in body:
                do(env)
            for slot, value in zip(final, [env[s] for s in yields], strict=True):
                env[slot] = value

        return run

    def _expr(self, op: ExprOp) -> Step:
        out, args = self._slot(op.out), self._all(op.args)
        expr = op.expr.substitute(self._dims)
        constant = expr.constant
        names = [f"a{i}" for i in range(len(args))]

        def fixed(env: Slots) -> None:
            env[out] = constant

        def run(env: Slots) -> None:
            env[out] = expr.evaluate({name: env[slot] for name, slot in zip(names, args, strict=True)})

        return run if constant is None else fixed

    def _compare(self, op: CompareOp) -> Step:
        out, a, b, relation = self._slot(op.out), self._slot(op.a), self._slot(op.b), op.relation.data

        def run(env: Slots) -> None:
            x, y = env[a], env[b]
            env[out] = int(x < y if relation == "<" else x <= y if relation == "<=" else x == y)

        return run

    # --- memory ---------------------------------------------------------------------------------------------------

    def _reads(self, op: Operation) -> Reads:
        return self._index_reads.setdefault(self._numbers[op], Reads())

    def _counted(self, op: Operation, kind: Kind, value: SSAValue) -> Quantity:
        """A quantity of a view's buffer, starting at 0."""
        number = self._buffers[root(value)]
        quantity = Quantity(self._numbers[op], kind, number, MEMORY)
        self._moved[quantity], self._sizes[quantity] = 0, self._item_sizes[number]
        return quantity

    def _scalar(self, op: ScalarOp) -> Step:
        out, source, at = self._slot(op.out), self._slot(op.source), self._all(op.at)
        reads, site = self._reads(op), self._site

        def run(env: Slots) -> None:
            site.op = op
            env[out] = env[source].element([env[s] for s in at], reads, site)

        return run

    def _load(self, op: LoadOp) -> Step:
        out, source, at, extents = self._slot(op.out), self._slot(op.source), self._all(op.at), op.extents.data
        dtype = tile(op.out).dtype
        outside = None if op.fill.data == POISON else element(op.value.data, dtype)
        lost, reads, site, moved = garbage(dtype), self._reads(op), self._site, self._moved
        quantity = self._counted(op, "read", op.source)

        def run(env: Slots) -> None:
            site.op = op
            loaded = env[source].load([env[s] for s in at], extents, outside, lost, reads, site)
            moved[quantity] += loaded.inside
            env[out] = Tile(*loaded)

        return run

    def _store(self, op: StoreOp) -> Step:
        source, target, at = self._slot(op.source), self._slot(op.target), self._all(op.at)
        reads, site, moved = self._reads(op), self._site, self._moved
        quantity = self._counted(op, "write", op.target)

        def run(env: Slots) -> None:
            site.op = op
            stored: Tile = env[source]
            moved[quantity] += env[target].store(stored.values, stored.poison, [env[s] for s in at], reads, site)

        return run

    def _lookup(self, op: LookupOp) -> Step:
        out, source, indices = self._slot(op.out), self._slot(op.source), self._slot(op.indices)
        at, axis, extents, dtype = self._all(op.at), op.axis.data, op.extents.data, tile(op.out).dtype
        outside = None if op.fill.data == POISON else element(op.value.data, dtype)
        lost, site, moved = garbage(dtype), self._site, self._moved
        quantity = self._counted(op, "read", op.source)

        def run(env: Slots) -> None:
            site.op = op
            places: Tile = env[indices]
            where = [env[s] for s in at]
            loaded = env[source].look_up(axis, places.values, places.poison, where, extents, outside, lost, site)
            moved[quantity] += loaded.inside
            env[out] = Tile(*loaded)

        return run

    def _update(self, op: UpdateOp) -> Step:
        source, indices, target = self._slot(op.source), self._slot(op.indices), self._slot(op.target)
        at, axis, mode, site, moved = self._all(op.at), op.axis.data, op.mode.data, self._site, self._moved
        quantities = [self._counted(op, "write", op.target)]
        if mode != "set":
            quantities.append(self._counted(op, "read", op.target))
        self._executed[op] = 0

        def run(env: Slots) -> None:
            site.op = op
            self._executed[op] += 1
            given, places, where = env[source], env[indices], [env[s] for s in at]
            changed = env[target].update(
                axis, places.values, places.poison, given.values, given.poison, where, mode, site
            )
            for quantity in quantities:
                moved[quantity] += changed

        return run

    def _line(self, op: SortLineOp | TopkLineOp) -> Step:
        source, values, places = self._slot(op.source), self._slot(op.values), self._slot(op.places)
        axis, rank, site, moved = op.axis.data, view(op.source).rank, self._site, self._moved
        at = self._all(op.at[: rank - 1])
        (length,) = self._evaluated([view(op.source).dims[axis]])
        kept = length if isinstance(op, SortLineOp) else min(op.k.data, length)
        descending = op.descending.data if isinstance(op, SortLineOp) else True
        spare = (self._slot(op.spare), self._slot(op.at[rank - 1])) if isinstance(op, SortLineOp) else None
        words = 2 * length * spare_words(view(op.source).dtype)
        read = self._counted(op, "read", op.source)
        written = [self._counted(op, "write", v) for v in (op.values, op.places)]

        def run(env: Slots) -> None:
            site.op = op
            where = [env[s] for s in at]
            where.insert(axis, 0)
            extents = [length if a == axis else 1 for a in range(rank)]
            loaded = env[source].load(where, extents, None, garbage(view(op.source).dtype), Reads(), site)
            if loaded.poison is not None:
                raise site.poison("orders a line that leaves its view")
            moved[read] += loaded.inside
            order = stable_order(loaded.values, axis, descending=descending).take(range(kept), axis)
            results = (np.take_along_axis(loaded.values, order, axis), order.astype(np.int64))
            for slot, quantity, result in zip((values, places), written, results, strict=True):
                moved[quantity] += env[slot].store(result, None, where, Reads(), site)
            if spare is not None:
                rubbish = np.full((1, words), garbage(I64))
                env[spare[0]].store(rubbish, None, [env[spare[1]], 0], Reads(), site)

        return run

    def _stage(self, op: StageOp) -> Step:
        out, source, moved = self._slot(op.out), self._slot(op.source), self._moved
        staged, of_load = tile(op.source), staged_load(op) is not None
        lanes = prod(staged.extents)
        quantity = Quantity(self._numbers[op], "stage", None, op.level.data)
        moved[quantity], self._sizes[quantity] = 0, staged.dtype.bytes

        def run(env: Slots) -> None:
            held: Tile = env[source]
            moved[quantity] += held.inside if of_load else lanes
            env[out] = held

        return run

    def _view(self, op: ViewOp | ViewWindowOp | ViewRowsOp | ViewPagesOp | ViewSegmentOp) -> Step:
        out, source = self._slot(op.out), self._slot(op.source)
        extents = self._evaluated(view(op.out).dims)
        match op:
            case ViewOp():
                strides, (base,) = self._evaluated(op.strides.data), self._evaluated(op.offset.data)
                axes: tuple[Axis, ...] = tuple(AffineAxis(n, s) for n, s in zip(extents, strides, strict=True))

                def run(env: Slots) -> None:
                    env[out] = View(env[source], base, axes)

            case ViewWindowOp():
                offsets, steps = self._all(op.offsets), op.steps.data

                def run(env: Slots) -> None:
                    whole: View = env[source]
                    parts = zip(whole.axes, extents, offsets, steps, strict=True)
                    axes = tuple(WindowAxis(axis, n, env[offset], step) for axis, n, offset, step in parts)
                    env[out] = View(whole.memory, whole.base, axes)

            case ViewRowsOp():
                indices, axis = self._slot(op.indices), op.axis.data

                def run(env: Slots) -> None:
                    env[out] = _replaced(env[source], axis, lambda a: RowsAxis(a, env[indices], extents[axis]))

            case ViewPagesOp():
                table, length, page = self._slot(op.table), self._slot(op.length), op.page.data

                def run(env: Slots) -> None:
                    whole: View = env[source]
                    pages, within, *rest = whole.axes
                    paged = PagesAxis(pages, within, env[table], max(0, min(extents[0], env[length])), page)
                    env[out] = View(whole.memory, whole.base, (paged, *rest))

            case ViewSegmentOp():
                bounds, which, axis = self._slot(op.offsets), self._slot(op.which), op.axis.data
                reads, site = self._reads(op), self._site

                def run(env: Slots) -> None:
                    site.op = op
                    at = env[which]
                    begin, end = (env[bounds].element([i], reads, site) for i in (at, at + 1))
                    size = max(0, min(extents[axis], end - begin))
                    env[out] = _replaced(env[source], axis, lambda a: SegmentAxis(a, begin, size))

        return run

    # --- values ---------------------------------------------------------------------------------------------------

    def _compute(self, op: TileOp) -> Step:
        args, outs = self._all(op.operands), self._all(op.results)
        is_tile = [isinstance(v.type, TileType) for v in op.operands]
        shapes = [tile(v).extents if t else () for v, t in zip(op.operands, is_tile, strict=True)]
        executed, evaluate = self._executed, op.evaluate
        executed[op] = 0

        def run(env: Slots) -> None:
            executed[op] += 1
            given = [env[s] for s in args]
            values = [v.values if t else v for v, t in zip(given, is_tile, strict=True)]
            result = evaluate(*values)
            results = result if isinstance(result, tuple) else (result,)
            if any(t and v.poison is not None for v, t in zip(given, is_tile, strict=True)):
                masks = [
                    v.poison if t and v.poison is not None else np.zeros(shape, bool)
                    for v, t, shape in zip(given, is_tile, shapes, strict=True)
                ]
                spread = op.spread(values, masks)
                poisons: Sequence[Any] = spread if isinstance(spread, tuple) else (spread,)
            else:
                poisons = (None,) * len(results)
            for slot, value, poison in zip(outs, results, poisons, strict=True):
                env[slot] = Tile(value, poison if poison is not None and poison.any() else None)

        return run


def _replaced(source: View, axis: int, by: Callable[[Axis], Axis]) -> View:
    axes = list(source.axes)
    axes[axis] = by(axes[axis])
    return View(source.memory, source.base, tuple(axes))
