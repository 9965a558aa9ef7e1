"""Tiles in another shape: broadcasts, reshapes, transposes, boxes of tiles and tiles joined."""

from __future__ import annotations

from math import prod

from xdsl.ir import SSAValue

from tilewright.backends.source_names import bare
from tilewright.backends.triton.base import SHORT, Printed
from tilewright.backends.triton.extents import live_axes, same_live_extents
from tilewright.backends.triton.functions import cast
from tilewright.backends.triton.memory import MemoryOps
from tilewright.ir.dtypes import I1, I32
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
        axes = live_axes(op.out)
        exact = all(self.extents.of(v, a) == tile(v).extents[a] for v in (op.source, op.out) for a in live_axes(v))
        if exact:
            self.define(op.out, f"tl.reshape({self.full(op.source)}, {self.shape(op.out, axes)})", axes, "x", NONE)
            return
        number = self._number(op.out)
        places, step = {}, 1
        for axis in reversed(live_axes(op.source)):
            extent = tile(op.source).extents[axis]
            place = number if step == 1 else f"{number} // {step}"
            places[axis] = place if step * extent == prod(tile(op.out).extents) else f"{place} % {extent}"
            step *= extent
        self._picked(op.out, op.source, places)

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
        printed = self.tiles[op.source]
        if not moved or not set(moved) & set(printed.axes):
            self.tiles[op.out] = Printed(printed.text, printed.axes, NONE, printed.number)
        elif len(moved) == 1 and tile(op.out).extents[moved[0]] > 1:
            (axis,) = moved
            self._gathered(op.out, op.source, axis, starts[axis])
        elif len(moved) == 1:
            # one element along an axis: all others are nothing beside it
            (axis,) = moved
            axes = live_axes(op.source)
            at = f"(tl.arange(0, {self.extents.of(op.source, axis)}) == {starts[axis]})"
            text = self._only(op.source, self.aligned(Printed(at, (axis,)), axes), axes, axis)
            self.define(op.out, text, tuple(a for a in axes if a != axis), "x", NONE)
        else:
            axes = live_axes(op.source)
            if not live_axes(op.out):
                text = self.full(op.source, axes)
                for axis in axes:
                    at = f"(tl.arange(0, {self.extents.of(op.source, axis)}) == {starts[axis]})"
                    left = tuple(a for a in axes if a >= axis)
                    text = self._only(op.source, self.aligned(Printed(at, (axis,)), left), left, axis, text)
                self.define(op.out, text, (), "x", NONE)
                return
            places = {a: self._along(op.out, a, starts[a]) for a in axes}
            self._picked(op.out, op.source, places)

    def _only(self, source: SSAValue, within: str, axes: tuple[int, ...], axis: int, text: str | None = None) -> str:
        """The one element along an axis where a condition holds; of a tile, or of a text of its kind."""
        dtype, at, whole = tile(source).dtype, axes.index(axis), text or self.full(source, axes)
        if dtype == I1:
            return f"(tl.max(tl.where({within}, {whole}, False).to(tl.int32), {at}) != 0)"
        total = f"tl.sum(tl.where({within}, {whole}, 0), {at})"
        return cast(total, I32, dtype) if dtype.is_integer and dtype.bits < 32 else total

    def _along(self, result: SSAValue, axis: int, start: int) -> str:
        """Coordinates along an axis of a result, from a number on, among the result's axes."""
        if tile(result).extents[axis] == 1:
            return str(start)
        lanes = f"tl.arange(0, {self.extents.of(result, axis)})"
        text = f"({start} + {lanes})" if start else lanes
        return self.aligned(Printed(text, (axis,)), live_axes(result))

    def _number(self, value: SSAValue) -> str:
        """The row-major number of every element of a tile, as a name."""
        parts, step = [], 1
        for axis in reversed(live_axes(value)):
            along = self._along(value, axis, 0)
            parts.append(along if step == 1 else f"{along} * {step}")
            step *= tile(value).extents[axis]
        return self.out.shared("at", " + ".join(reversed(parts)) or "tl.full((), 0, tl.int32)")

    def _picked(self, result: SSAValue, source: SSAValue, places: dict[int, str]) -> None:
        """Elements of a tile at places along each of its axes, as the result's axes have them."""
        axes, own = live_axes(source), live_axes(result)
        parts, step = [], 1
        for axis in reversed(axes):
            printed = self.extents.of(source, axis)
            place = f"tl.minimum({bare(places[axis])}, {printed - 1})"
            parts.append(place if step == 1 else f"{place} * {step}")
            step *= printed
        shape = self.shape(result, own)
        whole = prod(self.extents.shape(result, own))
        number = f"tl.broadcast_to({' + '.join(reversed(parts))}, {shape})"
        index = self.out.shared("at", f"tl.reshape({number}, ({whole},))")
        flat = f"tl.reshape({self.full(source, axes)}, ({step},))"
        self.define(result, f"tl.reshape(tl.gather({flat}, {index}, 0), {shape})", own, "x", NONE)

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

    def _gathered(self, result: SSAValue, of: SSAValue, axis: int, start: int) -> None:
        """Elements `start + i` of a tile along an axis."""
        axes = live_axes(of)
        printed, last = self.extents.of(result, axis), self.extents.of(of, axis) - 1
        text = f"tl.arange(0, {printed})" if start == 0 else f"({start} + tl.arange(0, {printed}))"
        if start + printed - 1 > last:
            text = f"tl.minimum({bare(text)}, {last})"
        index = f"tl.broadcast_to({self.aligned(Printed(text, (axis,)), axes)}, {self.shape(result, axes)})"
        self.define(result, f"tl.gather({self.full(of, axes)}, {index}, {axes.index(axis)})", axes, "x", NONE)

    def concat(self, op: ConcatOp) -> None:
        axis, args = op.axis.data, list(op.args)
        if len(args) == 1:
            self.tiles[op.out] = self.tiles[args[0]]
            return
        axes = live_axes(op.out)
        extents = [tile(a).extents[axis] for a in args]
        printed = self.extents.of(args[0], axis)
        exact = all(self.extents.of(a, axis) == printed == n for a, n in zip(args, extents, strict=True))
        if len(args) == 2 and exact and printed > 1 and 2 * printed == self.extents.of(op.out, axis):
            # [.., n] and [.., n] make [.., n, 2]; the new axis goes before the joined one
            texts = [self.full(a, axes) for a in args]
            rank, at = len(axes), axes.index(axis)
            order = (*range(at), rank, *range(at, rank))
            joined = f"tl.reshape(tl.permute(tl.join({', '.join(texts)}), {order}), {self.shape(op.out, axes)})"
            self.tiles[op.out] = Printed(self.out.name("x", joined), axes)
            return
        along = self._along(op.out, axis, 0)
        found, begin = "", 0
        for value, extent in zip(args, extents, strict=True):
            part = self._placed(op.out, value, axis, begin)
            found = f"tl.where({along} < {begin}, {found}, {part})" if found else part
            if len(found) > 2 * SHORT:
                found = self.out.name("x", found)
            begin += extent
        self.define(op.out, found, axes, "x", NONE)

    def _placed(self, result: SSAValue, value: SSAValue, axis: int, begin: int) -> str:
        """A part of a joined tile moved to where it begins, as large as the whole."""
        axes, extent = live_axes(result), tile(value).extents[axis]
        if extent == 1:
            text = self.aligned(Printed(self.tensor(value), self.tiles[value].axes), axes)
            return f"tl.broadcast_to({text}, {self.shape(result, axes)})"
        moved = f"tl.arange(0, {self.extents.of(result, axis)})"
        moved = f"{moved} - {begin}" if begin else moved
        clamped = f"tl.minimum(tl.maximum({moved}, 0), {self.extents.of(value, axis) - 1})"
        index = self.aligned(Printed(self.out.shared("r", clamped), (axis,)), axes)
        at = axes.index(axis)
        return f"tl.gather({self.full(value, axes)}, tl.broadcast_to({index}, {self.shape(result, axes)}), {at})"
