"""Tiles in another shape: broadcasts, reshapes, transposes, boxes of tiles and tiles joined."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.backends.triton.base import Printed
from tilewright.backends.triton.extents import live_axes, same_live_extents
from tilewright.backends.triton.memory import MemoryOps
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import BroadcastOp, ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.tile.memory import LoadOp

NONE: frozenset[int] = frozenset()


class RearrangingOps(MemoryOps):
    """Prints the ops that move elements without computing."""

    def broadcast(self, op: BroadcastOp) -> None:
        """Nothing: a text stretches where it is used."""
        printed = self.tiles[op.source]
        self.tiles[op.out] = Printed(printed.text, printed.axes, printed.zero, printed.number)

    def reshape(self, op: ReshapeOp) -> None:
        pairs = same_live_extents(op)
        printed = self.tiles[op.source]
        if pairs is not None:
            to = {theirs: mine for mine, theirs in pairs}
            axes = tuple(to[a] for a in printed.axes)
            zero = frozenset(to[a] for a in printed.zero if a in to)
            self.tiles[op.out] = Printed(printed.text, axes, zero, printed.number)
            return
        for value in (op.source, op.out):
            if any(self.extents.of(value, a) != tile(value).extents[a] for a in live_axes(value)):
                raise self.refuse(op, f"{tile(op.source)} as {tile(op.out)}: extents that are no powers of two")
        axes = live_axes(op.out)
        self.define(op.out, f"tl.reshape({self.full(op.source)}, {self.shape(op.out, axes)})", axes, "x", NONE)

    def transpose(self, op: TransposeOp) -> None:
        printed, order = self.tiles[op.source], op.permutation.data
        to = {theirs: mine for mine, theirs in enumerate(order)}
        axes = tuple(to[a] for a in printed.axes)
        zero = frozenset(to[a] for a in printed.zero)
        if list(axes) == sorted(axes):
            self.tiles[op.out] = Printed(printed.text, axes, zero, printed.number)
            return
        places = sorted(range(len(axes)), key=lambda n: axes[n])
        text = f"tl.trans({printed.text})" if len(axes) == 2 else f"tl.permute({printed.text}, {tuple(places)})"
        self.define(op.out, text, tuple(sorted(axes)), "t", zero)

    def slice(self, op: SliceOp) -> None:
        starts, stops = op.starts.data, op.stops.data
        source = self._loaded_from(op.source)
        if source is not None:
            load, to = source
            # a box of a load is a load of the box, where the axes correspond
            shift = [0] * tile(load.out).rank
            for mine, theirs in to.items():
                shift[theirs] = starts[mine]
            if all(s == 0 for a, s in enumerate(starts) if a not in to):
                self._load_box(load, op.out, shift, to)
                return
        moved = [a for a in live_axes(op.source) if (starts[a], stops[a]) != (0, tile(op.source).extents[a])]
        if len(moved) > 1 or any(tile(op.out).extents[a] == 1 for a in moved):
            raise self.refuse(op, f"a box of {tile(op.source)} along several axes, or of one element, is not printed")
        if not moved or self.tiles[op.source].axes == ():
            self.tiles[op.out] = self.tiles[op.source]
            return
        (axis,) = moved
        self._gathered(op.out, self.full(op.source), live_axes(op.source), axis, f"{starts[axis]}")

    def _loaded_from(self, value: SSAValue) -> tuple[LoadOp, dict[int, int]] | None:
        """The load that a value is, through reshapes that only add or drop axes of 1; and its axes by the value's."""
        to = {a: a for a in live_axes(value)}
        while isinstance(value.owner, ReshapeOp):
            pairs = same_live_extents(value.owner)
            if pairs is None:
                return None
            step = dict(pairs)
            to = {mine: step[theirs] for mine, theirs in to.items()}
            value = value.owner.source
        return (value.owner, to) if isinstance(value.owner, LoadOp) else None

    def _load_box(self, load: LoadOp, result: SSAValue, shift: list[int], to: dict[int, int]) -> None:
        """Loads what a slice keeps: the printed axes are the load's, so the region is placed axis by axis."""
        found, axes = self.views[load.source], live_axes(result)
        offsets: list[str] = []
        conditions: list[str] = []
        back = {theirs: mine for mine, theirs in to.items()}
        for number, (axis, start) in enumerate(zip(found.axes, load.at, strict=True)):
            mine = back.get(number)
            if mine is None:
                lanes, own = self.lanes(axis, self.indices[start], load.out, number)
            else:
                lanes, own = self.lanes(axis, self.indices[start], result, mine, shift[number])
            place = axis.place(lanes, self)
            if place.offset is not None:
                offsets.append(self._spread(place.offset, -1 if mine is None else mine, axes))
            conditions += [self._spread(c, -1 if mine is None else mine, axes) for c in (*own, *place.conditions)]
        self.tiles[result] = self.loaded(load, self.pointer(found, offsets), self.conjunction(conditions), axes)

    def _gathered(self, result: SSAValue, source: str, axes: tuple[int, ...], axis: int, start: str) -> None:
        """Elements `start + i` of a tile along an axis."""
        place = self.aligned(Printed(f"({start} + tl.arange(0, {self.extents.of(result, axis)}))", (axis,)), axes)
        index = f"tl.broadcast_to({place}, {self.shape(result, axes)})"
        self.define(result, f"tl.gather({source}, {index}, {axes.index(axis)})", axes, "x", NONE)

    def concat(self, op: ConcatOp) -> None:
        axis, args = op.axis.data, list(op.args)
        if len(args) == 1:
            self.tiles[op.out] = self.tiles[args[0]]
            return
        axes = live_axes(op.out)
        first, second = args[0], args[-1]
        extent, printed = tile(first).extents[axis], self.extents.of(first, axis)
        same = len(args) == 2 and tile(second).extents[axis] == extent
        if not same or printed == 1:
            raise self.refuse(op, "only two tiles of one extent, longer than 1, are joined")
        texts = [self.full(a) for a in args]
        # [.., n] and [.., n] make [.., n, 2]; the new axis goes before the joined one
        rank, at = len(axes), axes.index(axis)
        order = (*range(at), rank, *range(at, rank))
        sizes = [self.extents.of(first, a) for a in axes]
        sizes[at] *= 2
        shape = f"({', '.join(map(str, sizes))}{',' if rank == 1 else ''})"
        joined = self.out.name("x", f"tl.reshape(tl.permute(tl.join({', '.join(texts)}), {order}), {shape})")
        if printed == extent:
            self.tiles[op.out] = Printed(joined, axes)
            return
        place = f"tl.arange(0, {self.extents.of(op.out, axis)})"
        moved = f"tl.where({place} < {extent}, {place}, {place} + {printed - extent})"
        index = self.aligned(Printed(self.out.name("r", f"tl.minimum({moved}, {2 * printed - 1})"), (axis,)), axes)
        spread = f"tl.broadcast_to({index}, {self.shape(op.out, axes)})"
        self.define(op.out, f"tl.gather({joined}, {spread}, {at})", axes, "x", NONE)
