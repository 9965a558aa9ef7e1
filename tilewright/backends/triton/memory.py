"""Views, loads, stores and scalars: regions as pointers, masks where a region may leave its view."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.backends.source_names import bare
from tilewright.backends.triton.base import Printed, Values
from tilewright.backends.triton.extents import live_axes
from tilewright.backends.triton.functions import literal
from tilewright.backends.triton.indices import Index
from tilewright.backends.triton.places import (
    AffineAxis,
    Lanes,
    RowsAxis,
    SegmentAxis,
    ViewAxis,
    ViewText,
    WindowAxis,
    inside,
)
from tilewright.ir.dtypes import DType
from tilewright.ir.tile.base import element, tile, view
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
)
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.structure import ScalarOp


class MemoryOps(Values):
    """Prints the ops that touch memory."""

    def view(self, op: ViewOp) -> None:
        pairs = zip(op.extents.data, op.strides.data, strict=True)
        offset = op.offset.data[0]
        base = "" if offset.constant == 0 else self.size(offset)
        self.views[op.out] = ViewText(self.buffers[op.source], base, [AffineAxis(n, s) for n, s in pairs])

    def window(self, op: ViewWindowOp) -> None:
        source = self.views[op.source]
        parts = zip(source.axes, op.extents.data, op.offsets, op.steps.data, strict=True)
        axes = [WindowAxis(axis, n, self.indices[at], step) for axis, n, at, step in parts]
        self.views[op.out] = ViewText(source.buffer, source.base, axes)

    def rows(self, op: ViewRowsOp) -> None:
        axis, indices = op.axis.data, self.views[op.indices]
        extent = view(op.out).dims[axis]

        def read(lanes: Lanes) -> str:
            place = indices.axes[0].place(lanes, self)
            pointer = self.pointer(indices, [place.offset or ""])
            conditions = [*inside(lanes, extent, self), *place.conditions]
            mask = f", mask={self.conjunction(conditions)}, other=0" if conditions else ""
            return self.out.shared("row", f"tl.load({pointer}{mask}).to(tl.int64)")

        self.views[op.out] = self.views[op.source].replaced(axis, lambda a: RowsAxis(a, extent, read))

    def segment(self, op: ViewSegmentOp) -> None:
        offsets, which = self.views[op.offsets], self.indices[op.which]
        begin, end = (self.integer(offsets, [which.text + extra]) for extra in ("", " + 1"))
        extent = self.size(op.extent.data[0])
        size = self.name("size", f"tl.minimum({end} - {begin}, {extent})")
        self.views[op.out] = self.views[op.source].replaced(op.axis.data, lambda a: SegmentAxis(a, begin, size))

    def pages(self, op: ViewPagesOp) -> None:
        raise self.refuse(op, "paged views are not printed")

    def scalar(self, op: ScalarOp) -> None:
        text = self.integer(self.views[op.source], [self.indices[i].text for i in op.at])
        self.indices[op.out] = Index(text)

    def integer(self, source: ViewText, at: Sequence[str]) -> str:
        """One integer of a view; outside the view it is 0."""
        offsets, conditions = [], []
        for axis, text in zip(source.axes, at, strict=True):
            place = axis.place(Lanes(self.out.shared("i", text), Index(text), 1), self)
            offsets.append(place.offset or "")
            conditions += place.conditions
        mask = f", mask={self.conjunction(conditions)}, other=0" if conditions else ""
        return self.name("s", f"tl.load({self.pointer(source, offsets)}{mask}).to(tl.int64)")

    # --- regions --------------------------------------------------------------------------------------------------

    def pointer(self, source: ViewText, offsets: Sequence[str]) -> str:
        """The address of elements: the buffer, the view's base and what each axis adds."""
        return " + ".join([source.buffer, *filter(None, [source.base, *offsets])])

    def conjunction(self, conditions: Sequence[str]) -> str:
        return " & ".join(dict.fromkeys(conditions))

    def region(self, source: SSAValue, at: Sequence[SSAValue], value: SSAValue) -> tuple[str, str, tuple[int, ...]]:
        """The pointer and mask ("" for none) of a region as large as a tile, and the tile's axes that they have."""
        offsets, conditions, axes = self._region(self.views[source], at, value)
        return self.pointer(self.views[source], offsets), self.conjunction(conditions), axes

    def _region(
        self, found: ViewText, at: Sequence[SSAValue], value: SSAValue
    ) -> tuple[list[str], list[str], tuple[int, ...]]:
        """What every axis of a view adds to the pointer and the mask, and the tile's axes that they have."""
        axes = live_axes(value)
        offsets: list[str] = []
        conditions: list[str] = []
        for number, (axis, start) in enumerate(zip(found.axes, at, strict=True)):
            lanes, own = self.lanes(axis, self.indices[start], value, number)
            place = axis.place(lanes, self)
            if place.offset is not None:
                offsets.append(self._spread(place.offset, number, axes))
            conditions += [self._spread(c, number, axes) for c in (*own, *place.conditions)]
        return offsets, conditions, axes

    def _spread(self, text: str, axis: int, axes: tuple[int, ...]) -> str:
        """A text that varies along one axis, among several."""
        if axis not in axes or len(axes) == 1:
            return text
        whole = text.isidentifier() or bare(text) != text
        return self.aligned(Printed(text if whole else f"({text})", (axis,)), axes)

    def lanes(
        self, view_axis: ViewAxis, start: Index, value: SSAValue, axis: int, shift: int = 0
    ) -> tuple[Lanes, list[str]]:
        """The coordinates of a tile's axis from an index (and a shift) on, and the condition that they lie in the tile.

        None is needed where the tile starts at 0 and the view's own end keeps out what is printed beyond the tile.
        """
        extent, printed = tile(value).extents[axis], self.extents.of(value, axis)
        text = start.text if not shift else str(shift) if start.text == "0" else f"{start.text} + {shift}"
        low = None if start.low is None else start.low + shift
        high = None if start.high is None else start.high + shift + extent - 1
        if printed == 1:
            below = start.below if not shift else None
            return Lanes(self.out.shared("i", text), Index(text, low, high, below), 1), []
        vector = f"tl.arange(0, {printed})" if text == "0" else f"{text} + tl.arange(0, {printed})"
        name = self.out.shared("r", vector)
        end = view_axis.extent.constant if isinstance(view_axis, AffineAxis) else None
        by_view = not shift and start.low == start.high == 0 and end is not None and end <= extent
        own = [f"(tl.arange(0, {printed}) < {extent})"] if printed > extent and not by_view else []
        beyond = None if start.high is None else start.high + shift + printed - 1
        return Lanes(name, Index(name, low, high if own else beyond), printed), own

    # --- loads and stores -----------------------------------------------------------------------------------------

    def load(self, op: LoadOp) -> None:
        pointer, mask, axes = self.region(op.source, op.at, op.out)
        self.tiles[op.out] = self.loaded(op, pointer, mask, axes)

    def loaded(self, op: LoadOp, pointer: str, mask: str, axes: tuple[int, ...]) -> Printed:
        """Elements that a load reads, with its fill where the mask ("" for none) is off."""
        if not mask:
            return Printed(self.out.name("x", f"tl.load({pointer})"), axes)
        fill = 0.0 if op.fill.data == POISON else op.value.data
        text = f"tl.load({pointer}, mask={mask}, other={element_text(fill, tile(op.out).dtype)})"
        return Printed(self.out.name("x", text), axes, frozenset(axes if fill == 0 else ()))

    def lookup(self, op: LookupOp) -> None:
        """A load whose coordinate along one axis is a tensor; places that the axis does not have are not touched."""
        source, axis = self.views[op.source], op.axis.data
        around = ViewText(source.buffer, source.base, [a for i, a in enumerate(source.axes) if i != axis])
        offsets, conditions, axes = self._region(around, op.at, op.out)
        text = self.aligned(self.tensor_of(op.indices), axes)
        places = self.out.name("p", f"{text if text.isidentifier() else f'({text})'}.to(tl.int64)")
        place = source.axes[axis].place(Lanes(places, Index(places), 1), self)
        mask = self.conjunction([*conditions, *place.conditions])
        value = 0.0 if op.fill.data == POISON else op.value.data
        other = element_text(value, tile(op.out).dtype)
        pointer = self.pointer(source, [*offsets, *([place.offset] if place.offset else [])])
        masked = f", mask={mask}, other={other}" if mask else ""
        self.tiles[op.out] = Printed(self.out.name("x", f"tl.load({pointer}{masked})"), axes, frozenset())

    def tensor_of(self, value: SSAValue) -> Printed:
        """A value as a tensor, with the axes that it has."""
        return Printed(self.tensor(value), self.tiles[value].axes)

    def store(self, op: StoreOp) -> None:
        pointer, mask, axes = self.region(op.target, op.at, op.source)
        text = self.full(op.source, axes) if axes else self.tiles[op.source].text
        masked = f", mask={mask}" if mask else ""
        self.out.line(f"tl.store({pointer}, {bare(text)}{masked})")

    def update(self, op: UpdateOp) -> None:
        """A store whose coordinate along one axis is a tensor; what it adds to is read first."""
        target, axis = self.views[op.target], op.axis.data
        around = ViewText(target.buffer, target.base, [a for i, a in enumerate(target.axes) if i != axis])
        offsets, conditions, axes = self._region(around, op.at, op.source)
        text = self.aligned(self.tensor_of(op.indices), axes)
        places = self.out.name("p", f"{text if text.isidentifier() else f'({text})'}.to(tl.int64)")
        place = target.axes[axis].place(Lanes(places, Index(places), 1), self)
        mask = self.conjunction([*conditions, *place.conditions])
        masked = f", mask={mask}" if mask else ""
        pointer = self.pointer(target, [*offsets, *([place.offset] if place.offset else [])])
        value = self.full(op.source, axes) if axes else self.tiles[op.source].text
        if op.mode.data == "add":
            value = f"tl.load({pointer}{masked}) + {value}"
        self.out.line(f"tl.store({pointer}, {bare(value)}{masked})")
        # the next update may change the same elements, and other threads may hold them
        self.out.line("tl.debug_barrier()")

    def stage(self, op: StageOp) -> None:
        """A level of memory is the compiler's own affair here."""
        self.tiles[op.out] = self.tiles[op.source]


def element_text(value: float, dtype: DType) -> str:
    """A fill as text: integers saturate."""
    return literal(element(value, dtype).item(), dtype)
