"""Turns the pointwise values of a group into tiles, on demand, inside a kernel under construction.

Every tile has rank 2: [rows, columns] of the kernel's two inner axes, with extent 1 where the value does not vary. The
other axes of the walk are one program (or loop step) wide and only place the loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.graph import attention, elementwise, indexing, shape, structure
from tilewright.ir.graph.base import tensor
from tilewright.ir.tile.base import tile as tile_type
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.access import Axis, Space, padded_axes, unsupported
from tilewright.passes.lower_to_tile.layout import Strides, Walk, strides_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Emitter:
    """Emits tiles of one group's values at the current program's (and loop's) coordinates.

    at: coordinate per walk axis; extent: tile extent per walk axis (1 except for `row` and `column`).
    scopes: values that already have a tile; loops push a scope so that their tiles do not leak.
    formulas: values whose tile a skeleton computes (a norm's result, once its statistics are known).
    streaming: whether results are written past the caches.
    """

    b: KernelBuilder
    space: Space
    walk: Walk
    buffers: Mapping[SSAValue, SSAValue]
    strides: Mapping[SSAValue, Strides]
    at: dict[int, SSAValue]
    row: int | None
    column: int
    extent: dict[int, int]
    scopes: list[dict[SSAValue, SSAValue]] = field(default_factory=lambda: [{}])
    formulas: dict[SSAValue, Callable[[], SSAValue]] = field(default_factory=dict)
    streaming: bool = False

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Tiles made inside are forgotten afterwards."""
        self.scopes.append({})
        yield
        self.scopes.pop()

    def set(self, value: SSAValue, tile: SSAValue) -> None:
        """Gives a value its tile in the current scope."""
        self.scopes[-1][value] = tile

    def tile(self, value: SSAValue) -> SSAValue:
        """The value's tile, [rows or 1, columns or 1]."""
        for scope in reversed(self.scopes):
            if value in scope:
                return scope[value]
        if value in self.formulas:
            made = self.formulas[value]()
        else:
            owner = value.owner
            made = self._compute(owner) if isinstance(owner, Operation) else self.load(value)
        self.set(value, made)
        return made

    # --- memory ---------------------------------------------------------------------------------------------------

    def _placed(self, strides: Strides) -> tuple[list[int], list[Expr]]:
        """The walk axes a buffer varies along, and its strides there."""
        steps = self.walk.strides(strides)
        axes = [i for i, s in enumerate(steps) if s is not None]
        return axes, [s for s in steps if s is not None]

    def flat(self, axes: list[int]) -> tuple[int, int]:
        """The 2-D extents of a tile over some walk axes."""
        rows = self.extent[self.row] if self.row is not None and self.row in axes else 1
        return rows, self.extent[self.column] if self.column in axes else 1

    def load(self, value: SSAValue, fill: float | None = None) -> SSAValue:
        """Loads a group argument's region."""
        strides = self.strides[value]
        axes, steps = self._placed(strides)
        buffer = self.buffers[value]
        if not axes:
            view = self.b.view(buffer, [1], [1], strides.offset)
            return self.b.reshape(self.b.load(view, [0], [1]), (1, 1))
        view = self.b.view(buffer, [self.walk.extents[a] for a in axes], steps, strides.offset)
        loaded = self.b.load(view, [self.at[a] for a in axes], [self.extent[a] for a in axes], fill)
        return self.b.reshape(loaded, self.flat(axes))

    def store(self, value: SSAValue, buffer: SSAValue, tile: SSAValue) -> None:
        """Stores a result's tile to its buffer."""
        strides = strides_of(self.space, value)
        axes, steps = self._placed(strides)
        tile = self.b.cast(tile, tensor(value).dtype)
        if not axes:
            self.b.store(self.b.reshape(tile, (1,)), self.b.view(buffer, [1], [1], strides.offset), [0])
            return
        tile = self.b.broadcast(tile, self.flat(axes))
        view = self.b.view(buffer, [self.walk.extents[a] for a in axes], steps, strides.offset)
        shaped = self.b.reshape(tile, [self.extent[a] for a in axes])
        self.b.store(shaped, view, [self.at[a] for a in axes], streaming=self.streaming)

    # --- pointwise ops --------------------------------------------------------------------------------------------

    def _compute(self, op: Operation) -> SSAValue:
        result = op.results[0]
        b = self.b
        match op:
            case elementwise.MapOp():
                return b.map(op.fn.data, *(self.tile(a) for a in op.args))
            case elementwise.CastOp():
                return b.cast(self.tile(op.x), tensor(result).dtype)
            case shape.BroadcastOp() | shape.ReshapeOp() | shape.TransposeOp() | shape.SliceOp():
                return self.tile(op.x)
            case structure.ConstantOp():
                if op.splat is None:
                    raise unsupported(op, "a constant of several values must be a packed tensor")
                return b.constant(op.splat, (1, 1), tensor(result).dtype)
            case structure.DimOp():
                return b.splat(op.value.data[0], (1, 1), I64)
            case structure.IotaOp():
                index = self.position(self.space.maps[result][op.axis.data])
                start, step = op.start.data[0], op.step.data
                if step != 1:
                    index = b.map("mul", index, b.splat(step, (1, 1), I64))
                if start != Expr.of(0):
                    index = b.map("add", index, b.splat(start, (1, 1), I64))
                return b.cast(index, tensor(result).dtype)
            case structure.PositionsOp():
                return self.position(self.space.maps[result][0])
            case indexing.GatherOp() | indexing.TakeAlongOp():
                return self._looked_up(op)
            case shape.PadOp():
                return self._padded(op)
            case attention.RotaryOp():
                return self._rotary(op)
            case _:
                raise unsupported(op, "this op cannot be computed element by element")

    def position(self, axis: Axis) -> SSAValue:
        """The coordinate along a value's axis, as i64: offset + step * the row-major combination of its axes."""
        b = self.b
        total = b.splat(axis.offset, (1, 1), I64)
        scale = Expr.of(axis.step)
        for number in reversed(axis.axes):
            at = next(i for i, members in enumerate(self.walk.members) if number in members)
            if len(self.walk.members[at]) > 1:
                raise unsupported(next(iter(self.space.reduced.values())), "a position inside a merged axis")
            if at in (self.row, self.column):
                extents = (self.extent[at], 1) if at == self.row else (1, self.extent[at])
                index = b.coordinates(self.at[at], 0 if at == self.row else 1, extents)
            else:
                index = b.splat(self.at[at], (1, 1))
            wide = b.cast(index, I64)
            if scale != Expr.of(1):
                wide = b.map("mul", wide, b.splat(scale, (1, 1), I64))
            total = wide if total is None or _is_zero(axis.offset, number, axis.axes) else b.map("add", total, wide)
            scale = scale * self.space.extents[number]
        return total

    def _looked_up(self, op: indexing.GatherOp | indexing.TakeAlongOp) -> SSAValue:
        """Elements at indices along an axis of a table in memory; the indices may be computed here.

        The view has the table's axes and those along which the indices vary, where it stands still.
        """
        b, table = self.b, op.x
        if not isinstance(table, BlockArgument):
            raise unsupported(op, "a gather inside a kernel needs its table in memory")
        counted = self._counted(op)
        if counted is not None:
            return counted
        index = b.cast(self.tile(op.indices), I64)
        placed = dict(zip(*self._placed(self.strides[table]), strict=True))
        rows, columns = tile_type(index).extents
        wide = {a: n for a, n in ((self.row, rows), (self.column, columns)) if a is not None and n > 1}
        axes = sorted({*placed, *wide})
        dims = tensor(table).dims
        along, step = dims[op.axis.data], product(dims[op.axis.data + 1 :])
        steps = [placed.get(a, Expr.of(0)) for a in axes]
        sizes, extents = [self.walk.extents[a] for a in axes], [self.extent[a] for a in axes]
        at, own = [self.at[a] for a in axes], [wide.get(a, 1) for a in axes]
        if not axes:
            sizes, steps, at, extents, own = [Expr.of(1)], [Expr.of(0)], [b.index(0)], [1], [1]
        view = b.view(self.buffers[table], [*sizes, along], [*steps, step], self.strides[table].offset)
        found = b.lookup(view, b.reshape(index, own), at, extents, len(sizes))
        return b.reshape(found, self.flat(axes))

    def _counted(self, op: indexing.GatherOp | indexing.TakeAlongOp) -> SSAValue | None:
        """A load where the indices count along one axis of the space: a table read backwards, or in steps."""
        b, table, leaf = self.b, op.x, op.indices.owner
        if not isinstance(leaf, structure.IotaOp):
            return None
        axis = self.space.maps[op.indices][leaf.axis.data]
        if len(axis.axes) != 1 or axis.sliced:
            return None
        (along,) = (i for i, members in enumerate(self.walk.members) if axis.axes[0] in members)
        placed = dict(zip(*self._placed(self.strides[table]), strict=True))
        if along in placed:
            return None
        step = product(tensor(table).dims[op.axis.data + 1 :])
        placed[along] = step * leaf.step.data
        axes = sorted(placed)
        offset = self.strides[table].offset + step * leaf.start.data[0]
        view = b.view(self.buffers[table], [self.walk.extents[a] for a in axes], [placed[a] for a in axes], offset)
        return b.reshape(b.load(view, [self.at[a] for a in axes], [self.extent[a] for a in axes]), self.flat(axes))

    def _padded(self, op: shape.PadOp) -> SSAValue:
        """A load whose coordinates along the padded axes are moved; what lies outside the operand is the value."""
        b, x = self.b, op.x
        if not isinstance(x, BlockArgument):
            raise unsupported(op, "padding inside a kernel needs its operand in memory")
        dims = tensor(x).dims
        strides = ViewOp.row_major(dims)
        whole = self.strides[x]
        offset, taken = whole.offset, set[int]()
        axes: dict[int, tuple[Expr, Expr, SSAValue, int]] = {}
        for number, i in enumerate(padded_axes(op)):
            place = self.space.maps[x][i]
            if len(place.axes) > 1 or place.step != 1:
                raise unsupported(op, "a padded axis that another op of its kernel splits")
            offset = offset - place.offset * strides[i]
            if place.axes:
                (at,) = (w for w, members in enumerate(self.walk.members) if place.axes[0] in members)
                taken.add(at)
                start = b.index(Expr.of("a0") + place.offset, self.at[at])
                axes[at] = (dims[i], strides[i], start, self.extent[at])
            else:
                axes[-1 - number] = (dims[i], strides[i], b.index(place.offset), 1)
        for at, step in zip(*self._placed(whole), strict=True):
            if at not in taken:
                axes[at] = (self.walk.extents[at], step, self.at[at], self.extent[at])
        order = sorted(axes)
        if not order:
            return self.load(x)
        view = b.view(self.buffers[x], [axes[a][0] for a in order], [axes[a][1] for a in order], offset)
        loaded = b.load(view, [axes[a][2] for a in order], [axes[a][3] for a in order], op.value.data)
        return b.reshape(loaded, self.flat(order))

    def _rotary(self, op: attention.RotaryOp) -> SSAValue:
        """x * cos + partner(x) * sin, where the partner swaps the halves (or the pairs) and negates the first."""
        b = self.b
        size = tensor(op.x).dims[-1].constant
        x = b.cast(self.tile(op.x), F32)
        rows, columns = tile_type(x).extents
        if size != columns:
            raise unsupported(op, "rotary needs the whole feature axis in one tile")
        half = columns // 2
        if op.style.data == "half":
            first, second = b.slice(x, [0, 0], [rows, half]), b.slice(x, [0, half], [rows, columns])
            partner = b.concat([b.map("neg", second), first], 1)
        else:
            pairs = b.reshape(x, (rows * half, 2))
            first, second = b.slice(pairs, [0, 0], [rows * half, 1]), b.slice(pairs, [0, 1], [rows * half, 2])
            partner = b.reshape(b.concat([b.map("neg", second), first], 1), (rows, columns))
        cos, sin = b.cast(self.tile(op.cos), F32), b.cast(self.tile(op.sin), F32)
        turned = b.map("add", b.map("mul", x, cos), b.map("mul", partner, sin))
        return b.cast(turned, tensor(op.results[0]).dtype)


def _is_zero(offset: Expr, number: int, axes: tuple[int, ...]) -> bool:
    """True for the first term added to a zero offset, which needs no addition."""
    return offset == Expr.of(0) and number == axes[-1]
