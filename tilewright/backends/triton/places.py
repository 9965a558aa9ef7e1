"""Views as offsets and conditions: what a load or store of a region prints for each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tilewright.backends.triton.indices import Index
from tilewright.ir.dims import Expr


@dataclass(frozen=True, slots=True)
class Lanes:
    """Coordinates along one axis of a view: one (`printed` 1) or a vector of them.

    text: a name. index: the bounds of all of them. printed: the vector's length.
    """

    text: str
    index: Index
    printed: int


@dataclass(slots=True)
class Place:
    """What an axis adds to an access: an offset in elements (None: nothing) and conditions, all along its own axis."""

    offset: str | None = None
    conditions: list[str] = field(default_factory=list)


class Sizes(Protocol):
    """What axes ask of the printer."""

    def size(self, expr: Expr) -> str:
        """A size's text."""
        ...

    def name(self, hint: str, text: str) -> str:
        """A name for a text, defined here."""
        ...


def inside(lanes: Lanes, extent: Expr, sizes: Sizes) -> list[str]:
    """The conditions, as far as they are not known to hold, that coordinates lie in 0..extent-1."""
    index, conditions = lanes.index, []
    if index.low is None or index.low < 0:
        conditions.append(f"({lanes.text} >= 0)")
    end = extent.constant
    known = index.below == extent or (end is not None and index.high is not None and index.high < end)
    if not known:
        conditions.append(f"({lanes.text} < {sizes.size(extent)})")
    return conditions


class ViewAxis(Protocol):
    """One axis of a view."""

    def place(self, lanes: Lanes, sizes: Sizes) -> Place: ...


@dataclass(frozen=True, slots=True)
class AffineAxis:
    """Element coordinate * stride, below the extent."""

    extent: Expr
    stride: Expr

    def place(self, lanes: Lanes, sizes: Sizes) -> Place:
        stride = self.stride.constant
        if stride == 0 or lanes.text == "0":
            offset = None
        else:
            offset = lanes.text if stride == 1 else f"{lanes.text} * {sizes.size(self.stride)}"
        return Place(offset, inside(lanes, self.extent, sizes))


@dataclass(frozen=True, slots=True)
class WindowAxis:
    """Coordinate i is `offset + i * step` of another axis."""

    source: ViewAxis
    extent: Expr
    offset: Index
    step: int

    def place(self, lanes: Lanes, sizes: Sizes) -> Place:
        moved = sizes.name("w", f"{self.offset.text} + {lanes.text}{f' * {self.step}' if self.step > 1 else ''}")
        below = self.source.place(Lanes(moved, Index(moved), lanes.printed), sizes)
        return Place(below.offset, [*inside(lanes, self.extent, sizes), *below.conditions])


@dataclass(frozen=True, slots=True)
class RowsAxis:
    """Coordinate i is what an index view holds at i; rows that the source does not have are not touched."""

    source: ViewAxis
    extent: Expr
    indices: Callable[[Lanes], str]

    def place(self, lanes: Lanes, sizes: Sizes) -> Place:
        rows = self.indices(lanes)
        below = self.source.place(Lanes(rows, Index(rows), lanes.printed), sizes)
        return Place(below.offset, [*inside(lanes, self.extent, sizes), *below.conditions])


@dataclass(frozen=True, slots=True)
class PagesAxis:
    """Coordinate i lies in the page that a table names for i // page, at i % page, for i below a length."""

    pages: ViewAxis
    within: ViewAxis
    length: str
    page: int
    read: Callable[[Lanes], str]

    def place(self, lanes: Lanes, sizes: Sizes) -> Place:
        number = self.read(lanes)
        outer = self.pages.place(Lanes(number, Index(number), lanes.printed), sizes)
        at = sizes.name("w", f"{lanes.text} % {self.page}")
        inner = self.within.place(Lanes(at, Index(at, 0, self.page - 1), lanes.printed), sizes)
        offset = " + ".join(filter(None, [outer.offset, inner.offset]))
        low = [] if lanes.index.low is not None and lanes.index.low >= 0 else [f"({lanes.text} >= 0)"]
        return Place(offset or None, [*low, f"({lanes.text} < {self.length})", *outer.conditions])


@dataclass(frozen=True, slots=True)
class SegmentAxis:
    """Coordinate i is `begin + i` of another axis, for i below a size read from memory."""

    source: ViewAxis
    begin: str
    size: str

    def place(self, lanes: Lanes, sizes: Sizes) -> Place:
        moved = sizes.name("w", f"{self.begin} + {lanes.text}")
        below = self.source.place(Lanes(moved, Index(moved), lanes.printed), sizes)
        return Place(below.offset, [f"({lanes.text} < {self.size})", *below.conditions])


@dataclass(frozen=True, slots=True)
class ViewText:
    """A view: its buffer's name, the offset of its first element, and its axes."""

    buffer: str
    base: str
    axes: Sequence[ViewAxis]

    def replaced(self, axis: int, by: Callable[[ViewAxis], ViewAxis]) -> ViewText:
        """The view with one axis mapped otherwise."""
        axes = list(self.axes)
        axes[axis] = by(axes[axis])
        return ViewText(self.buffer, self.base, axes)
