"""The reduction skeletons: norms, softmax and reductions over rows or over other axes, with pointwise work around them.

Row form (the innermost axis is reduced). A short static row is one tile: it is read once and stays on chip. A longer or
dynamic row is walked in column tiles, once for every reduction that feeds another and once for the results. Sums go to
16 canonical lanes in both forms, so the bits do not depend on which one a machine picks.

Column form (the innermost axis is kept). The reduced axes are loops with the accumulator carried, first to last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dims import DimSpace, Expr
from tilewright.ir.dtypes import F32, I32, I64, DType
from tilewright.ir.graph import reduction
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import tile as tile_type
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import LANES
from tilewright.ir.tile.compute import ReduceOp as TileReduceOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import Space, map_group, unsupported
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, all_strides, begin, by_size, padded
from tilewright.passes.lower_to_tile.layout import Strides, merge_axes
from tilewright.passes.lower_to_tile.pointwise import axes_apart, column_tile

WHOLE_ROW = 4096  # elements of a row that is kept as one tile
IDENTITY = {"sum": 0.0, "prod": 1.0, "max": float("-inf"), "min": float("inf")}
COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def lower_reduction(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """Lowers a group of kind row-reduction or reduction."""
    return by_size(group, machine, dims, name, lambda name, streaming: _kernel(group, name, machine, streaming))


def _kernel(group: GroupOp, name: str, machine: Machine, streaming: bool) -> KernelOp:
    anchors = [
        op for op in group.block.ops if isinstance(op, (reduction.NormOp, reduction.SoftmaxOp, reduction.ReduceOp))
    ]
    if not anchors:
        raise unsupported(group, "a reduction group without a reduction")
    space = map_group(group)
    strides = all_strides(space, group)
    reduced = frozenset(space.reduced)
    order = [a for a in space.order if a not in reduced] + [a for a in space.order if a in reduced]
    dense = dense_axis(space, strides)
    if dense is not None:
        # lanes run along what lies side by side in memory
        order = [a for a in order if a != dense] + [dense]
    apart = axes_apart(space, group)
    walk = merge_axes(space, order, strides, apart)
    if any(set(m) & reduced and set(m) - reduced for m in walk.members):
        walk = merge_axes(space, order, strides, apart | reduced)
    kept = [i for i, m in enumerate(walk.members) if not set(m) & reduced]
    folded = [i for i, m in enumerate(walk.members) if set(m) & reduced]
    b, buffers, outputs = begin(group, name)
    column = len(walk.members) - 1 if walk.members else 0
    if not folded:
        raise unsupported(group, "the reduced axis has a size of 1 everywhere")
    in_rows = column in folded
    rows = [i for i in kept if i != column]
    row = rows[-1] if rows else None
    extent = dict.fromkeys(range(len(walk.members)), 1)
    if row is not None:
        extent[row] = machine.rules.rows
    size = walk.extents[column].constant
    whole = in_rows and size is not None and padded(size, LANES) <= WHOLE_ROW
    extent[column] = padded(max(size, 1), LANES) if whole and size is not None else column_tile(walk.extents[column])
    grid = kept or []
    coordinates = b.grid([walk.extents[i] for i in grid] or [1], [extent[i] for i in grid] or [1])
    at = dict(zip(grid, coordinates, strict=False))
    for i in folded:
        at.setdefault(i, b.index(0))
    emitter = Emitter(b, space, walk, buffers, strides, at, row, column, extent, streaming=streaming)
    _Reducer(emitter, group, folded, in_rows, whole).run(outputs)
    return b.finish()


def dense_axis(space: Space, strides: Mapping[SSAValue, Strides]) -> int | None:
    """The axis along which most buffers are dense; of several the one that comes last in the space."""
    counts = {a: sum(s.steps.get(a) == Expr.of(1) for s in strides.values()) for a in space.order}
    best = max(counts.values(), default=0)
    return next((a for a in reversed(space.order) if counts[a] == best), None) if best else None


class _Reducer:
    """Emits the passes over the reduced axes and the stores."""

    def __init__(self, emitter: Emitter, group: GroupOp, folded: Sequence[int], in_rows: bool, whole: bool) -> None:
        self.e, self.group, self.folded, self.in_rows, self.whole = emitter, group, list(folded), in_rows, whole
        self.b: KernelBuilder = emitter.b
        self.column = emitter.column

    def run(self, outputs: Sequence[SSAValue]) -> None:
        for op in self.group.block.ops:
            match op:
                case reduction.NormOp():
                    self._norm(op)
                case reduction.SoftmaxOp():
                    self._softmax(op)
                case reduction.ReduceOp():
                    self.e.set(op.out, self._reduce(op))
                case _:
                    pass
        wide = [(v, o) for v, o in zip(self.group.yielded, outputs, strict=True) if self._varies(v)]
        for value, output in zip(self.group.yielded, outputs, strict=True):
            if not self._varies(value):
                self.e.store(value, output, self.e.tile(value))
        if wide:

            def store_all() -> None:
                for value, output in wide:
                    self.e.store(value, output, self.e.tile(value))

            self._sweep(store_all)

    def _varies(self, value: SSAValue) -> bool:
        """Whether a result has elements along the reduced axes."""
        steps = self.e.walk.strides(self.e.strides[value])
        return any(steps[i] is not None for i in self.folded)

    # --- sweeps over the reduced axes ------------------------------------------------------------------------------

    def _sweep(self, body: Callable[[], None]) -> None:
        """Runs `body` over every tile of the reduced axes, with nothing carried."""
        if self.whole and self.folded == [self.column]:
            body()
            return

        def visit(carried: list[SSAValue]) -> list[SSAValue]:
            body()
            return carried

        self._nest(self.folded, [], visit)

    def _nest(
        self, axes: list[int], carries: list[SSAValue], body: Callable[[list[SSAValue]], list[SSAValue]]
    ) -> list[SSAValue]:
        """Loops over the reduced axes, outermost first, carrying accumulators."""
        if not axes:
            with self.e.scope():
                return body(carries)
        axis, rest = axes[0], axes[1:]
        if axis == self.column and self.whole:
            return self._nest(rest, carries, body)
        with self.b.loop(0, self.e.walk.extents[axis], self.e.extent[axis], carries) as loop:
            before = self.e.at[axis]
            self.e.at[axis] = loop.at
            with self.e.scope():
                loop.give(*self._nest(rest, loop.carried, body))
            self.e.at[axis] = before
        return loop.out

    def _fold(self, fn: str, dtype: DType, produce: Callable[[], SSAValue], identity: float | None = None) -> SSAValue:
        """Reduces tiles over the reduced axes: [rows, 1] in row form, [rows, columns] in column form."""
        b, e = self.b, self.e
        neutral = IDENTITY[fn] if identity is None else identity
        rows = e.extent[e.row] if e.row is not None else 1
        if self.whole and self.folded == [self.column]:
            return b.reduce(fn, self._masked(self._full(produce()), neutral), 1)
        if self.in_rows:
            zero = b.constant(neutral, (rows, LANES), dtype)

            def step(carried: list[SSAValue]) -> list[SSAValue]:
                return [b.accumulate(fn, self._masked(self._full(produce()), neutral), carried[0])]

            return b.reduce(fn, self._nest(self.folded, [zero], step)[0], 1)
        zero = b.constant(neutral, (rows, e.extent[self.column]), dtype)

        def add(carried: list[SSAValue]) -> list[SSAValue]:
            return [b.map(COMBINE[fn], carried[0], self._full(produce()))]

        return self._nest(self.folded, [zero], add)[0]

    def _full(self, tile: SSAValue) -> SSAValue:
        rows = self.e.extent[self.e.row] if self.e.row is not None else 1
        return self.b.broadcast(tile, (rows, self.e.extent[self.column]))

    def _masked(self, tile: SSAValue, neutral: float) -> SSAValue:
        """The tile with lanes past the end of the row replaced by the reduction's neutral element."""
        size, columns = self.e.walk.extents[self.column], self.e.extent[self.column]
        if size.constant is not None and size.constant % columns == 0:
            return tile
        b = self.b
        inside = b.map("lt", b.coordinates(self.e.at[self.column], 1, (1, columns)), b.splat(size, (1, 1)))
        return b.map("select", inside, tile, b.constant(neutral, (1, 1), tile_type(tile).dtype))

    def _reduced_elements(self, dtype: DType = F32) -> SSAValue:
        """The number of reduced elements as a [1, 1] tile."""
        size = Expr.of(1)
        for axis in self.folded:
            size = size * self.e.walk.extents[axis]
        if size.constant is not None:
            return self.b.constant(float(size.constant), (1, 1), dtype)
        return self.b.cast(self.b.splat(size, (1, 1)), dtype)

    # --- the ops ----------------------------------------------------------------------------------------------------

    def _wide(self, value: SSAValue) -> SSAValue:
        """A value's tile in f32 or wider."""
        tile = self.e.tile(value)
        dtype = tile_type(tile).dtype
        return self.b.cast(tile, F32) if dtype.is_float and dtype.bits < 32 else tile

    def _norm(self, op: reduction.NormOp) -> None:
        b = self.b
        kind = F32 if tensor(op.x).dtype.bits < 32 else tensor(op.x).dtype
        count = self._reduced_elements(kind)
        if op.kind.data == "layer":
            mean = b.map("div", self._fold("sum", kind, lambda: self._wide(op.x)), count)
            variance = b.map(
                "div", self._fold("sum", kind, lambda: self._square(b.map("sub", self._wide(op.x), mean))), count
            )
        else:
            mean = None
            variance = b.map("div", self._fold("sum", kind, lambda: self._square(self._wide(op.x))), count)
        scale = b.map("rsqrt", b.map("add", variance, b.constant(op.eps.data, (1, 1), kind)))

        def normed() -> SSAValue:
            x = self._wide(op.x)
            y = b.map("mul", b.map("sub", x, mean) if mean is not None else x, scale)
            if op.weight is not None:
                y = b.map("mul", y, self._wide(op.weight))
            if op.bias is not None:
                y = b.map("add", y, self._wide(op.bias))
            return b.cast(y, tensor(op.out).dtype)

        self._later(op, normed)

    def _softmax(self, op: reduction.SoftmaxOp) -> None:
        """exp(x - top) times one reciprocal a row: a division of every element would take longer than its exp."""
        b = self.b
        kind = F32 if tensor(op.x).dtype.bits < 32 else tensor(op.x).dtype
        top = self._fold("max", kind, lambda: self._wide(op.x))

        def raised() -> SSAValue:
            return b.map("exp", b.map("sub", self._wide(op.x), top))

        if self.whole and self.folded == [self.column] and not op.log.data:
            once = raised()  # of a row that stays on chip each is computed once
            total = self._fold("sum", kind, lambda: once)
        else:
            once = None
            total = self._fold("sum", kind, raised)
        scale = b.map("log" if op.log.data else "reciprocal", total)

        def soft() -> SSAValue:
            if op.log.data:
                y = b.map("sub", b.map("sub", self._wide(op.x), top), scale)
            else:
                y = b.map("mul", raised() if once is None else once, scale)
            return b.cast(y, tensor(op.out).dtype)

        self._later(op, soft)

    def _later(self, op: Operation, compute: Callable[[], SSAValue]) -> None:
        """Has the op's result computed wherever its tile is asked for: now for a whole row, else inside each sweep."""
        if self.whole and self.folded == [self.column]:
            self.e.set(op.results[0], compute())
        else:
            self.e.formulas[op.results[0]] = compute

    def _reduce(self, op: reduction.ReduceOp) -> SSAValue:
        b, fn, source = self.b, op.fn.data, tensor(op.x)
        result = tensor(op.out).dtype
        match fn:
            case "argmax" | "argmin":
                return b.cast(self._arg(op), result)
            case "any" | "all":
                as_int = self._fold(
                    "max" if fn == "any" else "min",
                    I32,
                    lambda: b.cast(self._truth(op.x), I32),
                    0.0 if fn == "any" else 1.0,
                )
                return b.map("ne", as_int, b.constant(0.0, (1, 1), I32))
            case "mean":
                kind = F32 if source.dtype.bits < 32 else source.dtype
                return b.cast(
                    b.map("div", self._fold("sum", kind, lambda: self._wide(op.x)), self._reduced_elements(kind)),
                    result,
                )
            case _:
                kind = _accumulator(fn, source.dtype, result)
                neutral = IDENTITY[fn]
                if not kind.is_float and fn in ("max", "min"):
                    neutral = _least(kind) if fn == "max" else _greatest(kind)
                return b.cast(self._fold(fn, kind, lambda: b.cast(self.e.tile(op.x), kind), neutral), result)

    def _truth(self, value: SSAValue) -> SSAValue:
        tile = self.e.tile(value)
        dtype = tile_type(tile).dtype
        return tile if dtype.kind == "bool" else self.b.map("ne", tile, self.b.constant(0.0, (1, 1), dtype))

    def _arg(self, op: reduction.ReduceOp) -> SSAValue:
        """The index of the first greatest (least) element along an axis; NaN counts as greatest (least), as in torch.

        Whole rows are one tile; rows are otherwise searched tile by tile, and lines along other axes element by element
        with one line a lane. What was found first stays where a later one equals it.
        """
        b, e, fn = self.b, self.e, op.fn.data
        dtype = tensor(op.x).dtype
        (axis,) = (self.e.space.maps[op.x][a] for a in op.axes.data)
        if len(axis.axes) != len(self.folded):
            raise unsupported(op, f"{fn} along an axis that another op of its kernel splits")
        rows, columns = e.extent[e.row] if e.row is not None else 1, e.extent[self.column]
        neutral = IDENTITY["max" if fn == "argmax" else "min"]
        if not dtype.is_float:
            neutral = _least(dtype) if fn == "argmax" else _greatest(dtype)

        def block() -> tuple[SSAValue, SSAValue]:
            places = b.cast(e.position(axis), I32)
            if not self.in_rows:
                return self._full(e.tile(op.x)), places
            values = self._masked(self._full(e.tile(op.x)), neutral)
            made = TileReduceOp.make([values, b.broadcast(places, tile_type(values).extents)], fn=fn, axis=1)
            b.add(made)
            return made.results[0], made.results[1]

        if self.whole and self.folded == [self.column]:
            return block()[1]
        extents = (rows, 1 if self.in_rows else columns)
        best = [b.constant(neutral, extents, dtype), b.constant(0.0, extents, I32)]

        def step(carried: list[SSAValue]) -> list[SSAValue]:
            value, place = block()
            better = b.map("gt" if fn == "argmax" else "lt", value, carried[0])
            if dtype.is_float:
                fresh_nan = b.map("and", b.map("isnan", value), b.map("not", b.map("isnan", carried[0])))
                better = b.map("or", b.map("and", better, b.map("not", b.map("isnan", carried[0]))), fresh_nan)
            place = b.broadcast(place, extents)
            return [b.map("select", better, value, carried[0]), b.map("select", better, place, carried[1])]

        return self._nest(self.folded, best, step)[1]

    def _square(self, tile: SSAValue) -> SSAValue:
        return self.b.map("mul", tile, tile)


def _accumulator(fn: str, source: DType, result: DType) -> DType:
    """The dtype a reduction runs in: f32 at least for sums of floats, the result's for sums of integers."""
    if fn in ("sum", "prod"):
        if result.is_float:
            return F32 if result.bits < 32 else result
        return I64 if result.kind != "bool" else I32
    return source


def _least(dtype: DType) -> int:
    """The smallest integer of a dtype."""
    return -(1 << (dtype.bits - 1)) if dtype.kind == "int" else 0


def _greatest(dtype: DType) -> int:
    """The largest integer of a dtype."""
    return (1 << (dtype.bits - 1)) - 1 if dtype.kind == "int" else (1 << dtype.bits) - 1
