"""Builds a `tile.kernel` op by op: the one builder that the compiler's skeletons and user kernels share.

b = KernelBuilder("scale", dims=["n"])
x, y = b.buffer(["n", 384], F32), b.output(["n", 384], F32)
i, j = b.grid(["n", 384], [1, 64])
b.store(b.map("mul", b.load(b.dense(x), [i, j], [1, 64]), 2.0), b.dense(y), [i, j])
kernel = b.finish()
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeAlias

from xdsl.ir import Block, Operation, Region, SSAValue

from tilewright.errors import IRError, Problem
from tilewright.ir.attributes import Ints
from tilewright.ir.dims import Expr, ExprLike
from tilewright.ir.dtypes import DTYPES, F32, I1, I32, DType
from tilewright.ir.operation import TwOperation
from tilewright.ir.tile import compute, memory, places, structure
from tilewright.ir.tile.base import buffer as buffer_type
from tilewright.ir.tile.base import tile as tile_type
from tilewright.ir.tile.base import view as view_type
from tilewright.ir.types import BufferType, IndexType

Index: TypeAlias = SSAValue | ExprLike
DTypeLike: TypeAlias = DType | str
"""A dtype, or its name: "f32", "bf16", "i32", ..."""


def dtype_of(dtype: DTypeLike) -> DType:
    """The dtype of a name; IRError where there is none."""
    if isinstance(dtype, DType):
        return dtype
    if dtype not in DTYPES:
        raise IRError(f"{dtype!r} is no dtype", step=f"use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _held(value: int | float, dtype: DType) -> int | float:
    """A number that becomes an element of a dtype; IRError where it cannot hold it. Infinity is the extreme."""
    if isinstance(value, int) and abs(value) > int(sys.float_info.max):
        text = f"an integer of {value.bit_length()} bits is no element of a tile of {dtype}"
        raise IRError(text, step='use a smaller number, or infinity: float("inf")')
    if dtype.is_float or math.isinf(value):
        return value
    whole = value == math.floor(value) if value == value else False
    low, high = (0, 1) if dtype is I1 else (-(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1)
    if dtype.kind == "uint":
        low, high = 0, (1 << dtype.bits) - 1
    if not whole or not low <= value <= high:
        step = 'cast the tile first: b.cast(tile, "f32")' if not whole else f"use a number from {low} to {high}"
        raise IRError(f"{value!r} is no element of a tile of {dtype}", step=step)
    return value


def _axis(axis: int, rank: int) -> int:
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise IRError(f"axis {axis!r} is none of a tile of rank {rank}", step=f"name one from {-rank} to {rank - 1}")
    return axis % rank


class KernelBuilder:
    """One kernel under construction; every method returns the SSA value it made."""

    def __init__(self, name: str, dims: Sequence[str], *, like: Operation | None = None) -> None:
        self.name = name
        self.dims = tuple(dims)
        self._block = Block()
        self._blocks = [self._block]
        self._outputs = 0
        self._updates: list[int] = []
        self._grid: tuple[tuple[Expr, ...], tuple[int, ...], tuple[int, ...]] | None = None
        self._folded: tuple[int, ...] = ()
        self._stretches = 2
        self._like = like
        self._views: dict[tuple[SSAValue, tuple[Expr, ...], tuple[Expr, ...], Expr], SSAValue] = {}

    # --- arguments and grid ---------------------------------------------------------------------------------------

    def buffer(self, dims: Sequence[ExprLike], dtype: DTypeLike) -> SSAValue:
        """The next input buffer."""
        if self._outputs or self._grid:
            raise IRError(f"kernel {self.name}: inputs come before outputs and grid", step="declare inputs first")
        return self._block.insert_arg(BufferType.of(dims, dtype_of(dtype)), len(self._block.args))

    def output(self, dims: Sequence[ExprLike], dtype: DTypeLike) -> SSAValue:
        """The next output buffer."""
        self._outputs += 1
        return self._block.insert_arg(BufferType.of(dims, dtype_of(dtype)), len(self._block.args))

    def updated(self, dims: Sequence[ExprLike], dtype: DTypeLike) -> SSAValue:
        """The next output buffer, changed in place: it starts as the memory is, and stores need not cover it."""
        self._updates.append(self._outputs)
        return self.output(dims, dtype)

    def grid(
        self,
        extents: Sequence[ExprLike],
        tiles: Sequence[int],
        order: Sequence[tuple[int, int]] | None = None,
        folded: Sequence[int] = (),
        stretches: int = 2,
    ) -> list[SSAValue]:
        """The grid's axes (extent by tile); order as (axis, programs a step), outermost first. Gives coordinates.

        folded, stretches: axes whose programs are taken from so many stretches in turn, as `tile.kernel` says.
        """
        self._folded, self._stretches = tuple(sorted(folded)), stretches
        loops = order if order is not None else [(axis, 1) for axis in range(len(extents))]
        sizes, steps = Ints.of(tiles).data, Ints.of([v for pair in loops for v in pair]).data
        self._grid = (tuple(Expr.of(e) for e in extents), sizes, steps)
        return [self._block.insert_arg(IndexType(), len(self._block.args)) for _ in extents]

    def finish(self) -> structure.KernelOp:
        """The kernel, verified."""
        if self._grid is None or len(self._blocks) != 1:
            raise IRError(
                f"kernel {self.name}: it has no grid or a loop is open", step="call grid() and close every loop"
            )
        extents, tiles, order = self._grid
        self._block.add_op(structure.YieldOp.make([], result_types=[]))
        return structure.KernelOp.make(
            result_types=[],
            regions=[Region(self._block)],
            sym_name=self.name,
            dims=self.dims,
            extents=extents,
            tiles=tiles,
            order=order,
            folded=self._folded,
            stretches=self._stretches,
            outputs=self._outputs,
            updates=self._updates,
            like=self._like,
        )

    # --- indices --------------------------------------------------------------------------------------------------

    def index(self, value: Index, *args: SSAValue) -> SSAValue:
        """An index: a value as it is, or an expression over dims and `a0, a1, ...` for the given index values."""
        if isinstance(value, SSAValue):
            return value
        return self._add(structure.ExprOp.make(list(args), value=[Expr.of(value)]))

    def scalar(self, view: SSAValue, at: Sequence[Index]) -> SSAValue:
        """One integer of a view."""
        return self._add(structure.ScalarOp.make(view, [self.index(i) for i in at]))

    def compare(self, a: Index, relation: str, b: Index) -> SSAValue:
        """1 or 0 for a relation of two indices."""
        return self._add(structure.CompareOp.make(self.index(a), self.index(b), relation=relation))

    # --- memory ---------------------------------------------------------------------------------------------------

    def view(
        self, buffer: SSAValue, extents: Sequence[ExprLike], strides: Sequence[ExprLike], offset: ExprLike = 0
    ) -> SSAValue:
        """An affine view of a buffer; equal views of one buffer at kernel level are one value."""
        shape, steps, start = tuple(Expr.of(e) for e in extents), tuple(Expr.of(s) for s in strides), Expr.of(offset)
        key = (buffer, shape, steps, start)
        if len(self._blocks) > 1:
            return self._add(memory.ViewOp.make(buffer, extents=shape, strides=steps, offset=[start]))
        if key not in self._views:
            self._views[key] = self._add(memory.ViewOp.make(buffer, extents=shape, strides=steps, offset=[start]))
        return self._views[key]

    def dense(self, buffer: SSAValue) -> SSAValue:
        """The buffer's own dims in row-major order as a view."""
        dims = buffer_type(buffer).dims
        return self.view(buffer, dims, memory.ViewOp.row_major(dims))

    def window(
        self, view: SSAValue, offsets: Sequence[Index], extents: Sequence[ExprLike], steps: Sequence[int] | None = None
    ) -> SSAValue:
        """Coordinate i along an axis is offset + i * step of the view; what leaves the view is outside."""
        where = [self.index(o) for o in offsets]
        return self._add(
            memory.ViewWindowOp.make(
                view, where, extents=[Expr.of(e) for e in extents], steps=steps or [1] * len(where)
            )
        )

    def rows(self, view: SSAValue, indices: SSAValue, axis: int = 0) -> SSAValue:
        """Rows of a view picked by an integer view."""
        return self._add(memory.ViewRowsOp.make(view, indices, axis=axis))

    def load(self, view: SSAValue, at: Sequence[Index], extents: Sequence[int], fill: float | None = None) -> SSAValue:
        """The region at the coordinates; `fill` for lanes outside the view (None: poison)."""
        where = [self.index(i) for i in at]
        if fill is None:
            return self._add(memory.LoadOp.make(view, where, extents=extents))
        element = _held(fill, view_type(view).dtype)
        return self._add(memory.LoadOp.make(view, where, extents=extents, fill=memory.VALUE, value=element))

    def store(self, value: SSAValue, view: SSAValue, at: Sequence[Index], *, streaming: bool = False) -> None:
        """Writes a tile; lanes outside the view are dropped. streaming: past the caches, where a machine can."""
        where = [self.index(i) for i in at]
        self._append(memory.StoreOp.make(value, view, where, streaming=streaming, result_types=[]))

    def lookup(
        self, view: SSAValue, indices: SSAValue, at: Sequence[Index], extents: Sequence[int], axis: int
    ) -> SSAValue:
        """The region at the coordinates of all axes but one, whose coordinates are a tile of integers."""
        where = [self.index(i) for i in at]
        return self._add(places.LookupOp.make(view, indices, where, extents=extents, axis=axis))

    def update(
        self, value: SSAValue, indices: SSAValue, view: SSAValue, at: Sequence[Index], axis: int, mode: str
    ) -> None:
        """Sets or adds a tile in elements that were stored before, at integers along an axis."""
        where = [self.index(i) for i in at]
        self._append(places.UpdateOp.make(value, indices, view, where, axis=axis, mode=mode, result_types=[]))

    # --- values ---------------------------------------------------------------------------------------------------

    def constant(self, value: int | float, extents: Sequence[int], dtype: DTypeLike = F32) -> SSAValue:
        """A tile of one value."""
        made = dtype_of(dtype)
        return self._add(compute.ConstantOp.make(value=_held(value, made), extents=extents, dtype=made.name))

    def elements(self, values: Sequence[int | float], dtype: DType) -> SSAValue:
        """A tile of rank 1 with these elements."""
        return self._add(compute.ElementsOp.make(values=tuple(values), dtype=dtype.name))

    def coordinates(self, base: Index, axis: int, extents: Sequence[int]) -> SSAValue:
        """Absolute coordinates along an axis, i32."""
        return self._add(compute.IndexTileOp.make(self.index(base), axis=axis, extents=extents))

    def splat(self, value: Index, extents: Sequence[int], dtype: DTypeLike = I32) -> SSAValue:
        """A tile of one index, i32 or i64."""
        return self._add(compute.SplatOp.make(self.index(value), extents=extents, dtype=dtype_of(dtype).name))

    def map(self, fn: str, *args: SSAValue | int | float) -> SSAValue:
        """An elementwise function. Numbers have the dtype of the first tile that is no condition, else of the first."""
        tiles = [tile_type(a) for a in args if isinstance(a, SSAValue)]
        if not tiles:
            raise IRError(f"map {fn!r} is given no tile", step="compute numbers in Python")
        like = next((t for t in tiles if t.dtype is not I1), tiles[0])
        values = [self.constant(a, [1] * like.rank, like.dtype) if isinstance(a, (int, float)) else a for a in args]
        return self._add(compute.MapOp.make(values, fn=fn))

    def cast(self, value: SSAValue, dtype: DTypeLike) -> SSAValue:
        """The value in another dtype; itself when it has it already."""
        wanted = dtype_of(dtype)
        return value if tile_type(value).dtype == wanted else self._add(compute.CastOp.make(value, dtype=wanted.name))

    def broadcast(self, value: SSAValue, extents: Sequence[int]) -> SSAValue:
        """Extents of 1 repeated."""
        if tile_type(value).extents == tuple(extents):
            return value
        return self._add(compute.BroadcastOp.make(value, extents=extents))

    def reshape(self, value: SSAValue, extents: Sequence[int]) -> SSAValue:
        """Other extents, same row-major order."""
        if tile_type(value).extents == tuple(extents):
            return value
        return self._add(compute.ReshapeOp.make(value, extents=extents))

    def transpose(self, value: SSAValue, permutation: Sequence[int]) -> SSAValue:
        """Axes permuted."""
        return self._add(compute.TransposeOp.make(value, permutation=permutation))

    def slice(self, value: SSAValue, starts: Sequence[int], stops: Sequence[int]) -> SSAValue:
        """A static box."""
        return self._add(compute.SliceOp.make(value, starts=starts, stops=stops))

    def concat(self, values: Sequence[SSAValue], axis: int) -> SSAValue:
        """Tiles joined along an axis."""
        return self._add(compute.ConcatOp.make(list(values), axis=axis))

    def reduce(self, fn: str, value: SSAValue, axis: int = -1) -> SSAValue:
        """An axis reduced to extent 1."""
        rank = tile_type(value).rank
        return self._add(compute.ReduceOp.make([value], fn=fn, axis=_axis(axis, rank)))

    def combine(self, fn: str, values: Sequence[SSAValue], axis: int = -1) -> list[SSAValue]:
        """Tiles that travel together, an axis reduced to extent 1: "argmax" of (keys, i32 indices), "welford", ..."""
        rank = tile_type(values[0]).rank
        return self._all(compute.ReduceOp.make(list(values), fn=fn, axis=_axis(axis, rank)))

    def scan(self, fn: str, values: Sequence[SSAValue], axis: int = -1) -> list[SSAValue]:
        """Inclusive scan along an axis: "sum", "max", ... of one tile, "linear" of a pair."""
        rank = tile_type(values[0]).rank
        return self._all(compute.ScanOp.make(list(values), fn=fn, axis=_axis(axis, rank)))

    def sort(
        self, keys: SSAValue, payload: SSAValue, axis: int = -1, *, descending: bool = False
    ) -> tuple[SSAValue, SSAValue]:
        """Keys in order along an axis, stable, with what belongs to them."""
        rank = tile_type(keys).rank
        made = self._all(compute.SortOp.make(keys, payload, axis=_axis(axis, rank), descending=descending))
        return made[0], made[1]

    def topk(self, value: SSAValue, k: int, axis: int = -1) -> tuple[SSAValue, SSAValue]:
        """The k largest along an axis in order, and their positions in the tile, i32."""
        made = self._all(compute.TopkOp.make(value, k=k, axis=_axis(axis, tile_type(value).rank)))
        return made[0], made[1]

    def accumulate(self, fn: str, value: SSAValue, acc: SSAValue) -> SSAValue:
        """The last axis folded into 16 canonical lanes."""
        return self._add(compute.AccumulateOp.make(value, acc, fn=fn))

    def dot(self, a: SSAValue, b: SSAValue, acc: SSAValue, chain: int = 0) -> SSAValue:
        """acc + a b; chain: the k of one chain of multiply-adds (0: all), whose sums are added in order."""
        return self._add(compute.DotOp.make(a, b, acc, chain=chain))

    # --- control --------------------------------------------------------------------------------------------------

    def loop(self, lo: Index, hi: Index, step: int, carries: Sequence[SSAValue] = ()) -> Loop:
        """`with b.loop(0, "n", 64, [acc]) as loop:`; read loop.at, loop.carried; end by loop.give(...)."""
        return Loop(self, self.index(lo), self.index(hi), step, carries)

    def add(self, op: TwOperation) -> Any:
        """Appends an op the builder has no method for; its first result, if it has one."""
        self._append(op)
        return op.results[0] if op.results else None

    def _all(self, op: TwOperation) -> list[SSAValue]:
        self._append(op)
        return list(op.results)

    def _add(self, op: TwOperation) -> SSAValue:
        self._append(op)
        return op.results[0]

    def _append(self, op: TwOperation) -> None:
        if self._like is not None:
            op.take_location(self._like)
        self._require_seen(op.operands, op)
        self._blocks[-1].add_op(op)

    def _require_seen(self, values: Sequence[SSAValue], user: TwOperation | None = None) -> None:
        """IRError for a value of a loop that is closed, or of another kernel: nothing holds it here."""
        for value in values:
            owner = value.owner
            block = owner if isinstance(owner, Block) else owner.parent
            if block in self._blocks:
                continue
            around = block.parent_op() if block is not None else None
            made = owner.loc if isinstance(owner, TwOperation) else None
            text, step = "uses a value that another kernel computes", "compute it in this kernel"
            if isinstance(around, structure.ForOp):
                made = made or around.loc
                text = "uses a value that a loop computes, after the loop"
                step = "carry it out: b.loop(lo, hi, step, [initial]), loop.give(value) inside and loop.out[0] after"
            problem = Problem(f"{text}{f' (made at {made})' if made else ''}")
            raise IRError(problem if user is None else replace(problem, op=user.name, where=user.loc), step=step)


class Loop:
    """A `tile.for` under construction."""

    def __init__(self, b: KernelBuilder, lo: SSAValue, hi: SSAValue, step: int, carries: Sequence[SSAValue]) -> None:
        self._builder, self._lo, self._hi, self._step, self._carries = b, lo, hi, step, list(carries)
        self._block = Block(arg_types=[IndexType(), *(c.type for c in carries)])
        self._given: list[SSAValue] | None = None
        self.out: list[SSAValue] = []

    @property
    def at(self) -> SSAValue:
        """The coordinate of this iteration."""
        return self._block.args[0]

    @property
    def carried(self) -> list[SSAValue]:
        """The carried values at the start of an iteration."""
        return list(self._block.args[1:])

    def give(self, *values: SSAValue) -> None:
        """The carried values for the next iteration."""
        self._given = list(values)

    def __enter__(self) -> Loop:
        self._builder._blocks.append(self._block)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._given is not None:
            self._builder._require_seen(self._given)
        self._builder._blocks.pop()
        if kind is not None:
            return
        given = self._given if self._given is not None else []
        if [v.type for v in given] != [c.type for c in self._carries]:
            raise IRError("a loop must give as many values of the same types as it carries", step="call loop.give(...)")
        self._block.add_op(structure.YieldOp.make(given, result_types=[]))
        op = structure.ForOp.make(
            self._lo,
            self._hi,
            self._carries,
            step=self._step,
            regions=[Region(self._block)],
            result_types=[[c.type for c in self._carries]],
        )
        self._builder._append(op)
        self.out = list(op.results)


__all__ = ["KernelBuilder", "Loop"]
