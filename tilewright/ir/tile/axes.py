"""The axes of views while a kernel runs: each axis of a view maps its coordinate to elements of one buffer,
independently of the others.

A region's lane is *inside* when its coordinates lie in the view's extents (and, through a window, in the source's);
other lanes clip. An inside lane is *lost* when an index read from memory (rows, pages, a segment's offsets) points
nowhere: it is poison, whatever the fill. Strides and offsets count elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from tilewright.errors import IRError, KernelStoreError, PoisonError, Problem, TilewrightError
from tilewright.ir.tile.base import Array

if TYPE_CHECKING:
    from tilewright.ir.tile.regions import View

Reads: TypeAlias = Counter[int]  # elements of index buffers read on the way, by buffer number


@dataclass(slots=True)
class Site:
    """Where a run is: what errors name, and which program writes."""

    kernel: str
    op: Any = None
    coordinates: tuple[int, ...] = ()
    program: int = 0
    names: Sequence[str] = ()

    def buffer(self, number: int, kind: str) -> str:
        """A buffer by its name, where buffers have names, else by its kind and number."""
        return self.names[number] if self.names else f"{kind} {number}"

    def error(self, kind: type[TilewrightError], text: str, step: str) -> TilewrightError:
        """An error that names the op, the kernel and the program's coordinates."""
        at = f" at ({', '.join(map(str, self.coordinates))})" if self.coordinates else ""
        return kind(Problem(f"{text}, in @{self.kernel}{at}", op=self.op.name, where=self.op.loc), step=step)

    def poison(self, text: str) -> TilewrightError:
        return self.error(PoisonError, text, "give the load a fill value, or mask the lanes outside the view")


@dataclass(slots=True, eq=False)
class Memory:
    """One buffer during a run.

    flat: its elements; writers: for outputs, 1 + the number of the program that wrote each element, 0 for none. held:
    an output that is changed in place, whose elements have values before any program writes them.
    """

    number: int
    flat: Array
    writers: Array | None
    held: bool = False
    raw: Array = field(init=False)

    def __post_init__(self) -> None:
        self.raw = self.flat.view(np.uint8)

    def gather(self, offsets: Array, site: Site) -> Array:
        """Elements by offset; all must exist, and be written by this program if the buffer is an output."""
        if offsets.size and (offsets.min() < 0 or offsets.max() >= self.flat.size):
            raise self.leaves(site)
        if self.writers is not None:
            self.check_read(self.writers[offsets], site)
        return self.flat[offsets]

    def window(self, of: Array, base: int, shape: Sequence[int], strides: Sequence[int], site: Site) -> Array:
        """A strided look at `flat` or `writers`, without copying; it must lie inside the buffer."""
        size = of.itemsize
        source = self.raw if of is self.flat else of
        try:
            return np.ndarray(shape, of.dtype, buffer=source, offset=base * size, strides=[s * size for s in strides])
        except (ValueError, TypeError):
            raise self.leaves(site) from None

    def check_read(self, writers: Array, site: Site) -> None:
        if not (writers == site.program + 1).all():
            what = "not written yet" if not writers.all() else "written by another program"
            raise site.error(
                KernelStoreError, f"reads an element of {site.buffer(self.number, 'output')} {what}", "split the kernel"
            )

    def check_write(self, writers: Array, site: Site) -> None:
        if writers.any():
            first = int(writers[writers != 0].flat[0])
            who = "this program" if first == site.program + 1 else f"program {first - 1}"
            raise site.error(
                KernelStoreError,
                f"writes elements of {site.buffer(self.number, 'output')} that {who} has written",
                "let every element belong to one program",
            )

    def check_update(self, writers: Array, offsets: Array, site: Site) -> None:
        found = writers[offsets]
        if self.held:
            found = np.where(found == 0, site.program + 1, found)
            writers[offsets] = found
        self.check_read(found, site)

    def leaves(self, site: Site) -> TilewrightError:
        return site.error(
            IRError,
            f"a view leaves {site.buffer(self.number, 'buffer')} of {self.flat.size} elements",
            "check extents and strides",
        )


class Span(NamedTuple):
    """Lanes lo..hi-1 are inside, none is lost, and lane i lies at offset + i * stride."""

    lo: int
    hi: int
    offset: int
    stride: int


class Lanes(NamedTuple):
    """Lane by lane: inside, lost, and the offset where it is neither outside nor lost (0 elsewhere)."""

    inside: Array
    lost: Array
    offsets: Array


class Axis(Protocol):
    """One axis of a view. `span` answers for an arithmetic progression of coordinates where that needs no memory."""

    def span(self, start: int, count: int, step: int) -> Span | None: ...

    def lanes(self, at: Array, active: Array, reads: Reads, site: Site) -> Lanes: ...


def _clip(start: int, count: int, step: int, extent: int) -> tuple[int, int]:
    """The lanes i of 0..count-1 with 0 <= start + i * step < extent, for step >= 1."""
    lo = min(max(0, -(start // step)), count)
    return lo, max(lo, min(count, -((start - extent) // step)))


@dataclass(slots=True)
class AffineAxis:
    """An axis of a buffer's own layout."""

    extent: int
    stride: int

    def span(self, start: int, count: int, step: int) -> Span:
        return Span(*_clip(start, count, step, self.extent), start * self.stride, step * self.stride)

    def lanes(self, at: Array, active: Array, reads: Reads, site: Site) -> Lanes:
        inside = active & (at >= 0) & (at < self.extent)
        return Lanes(inside, np.zeros_like(inside), np.where(inside, at, 0) * self.stride)


@dataclass(slots=True)
class WindowAxis:
    """Coordinate c is offset + c * step of the source; what leaves the source clips."""

    source: Axis
    extent: int
    offset: int
    step: int

    def span(self, start: int, count: int, step: int) -> Span | None:
        inner = self.source.span(self.offset + start * self.step, count, step * self.step)
        if inner is None:
            return None
        lo, hi = _clip(start, count, step, self.extent)
        lo = max(lo, inner.lo)
        return Span(lo, max(lo, min(hi, inner.hi)), inner.offset, inner.stride)

    def lanes(self, at: Array, active: Array, reads: Reads, site: Site) -> Lanes:
        own = active & (at >= 0) & (at < self.extent)
        return self.source.lanes(self.offset + at * self.step, own, reads, site)


@dataclass(slots=True)
class RowsAxis:
    """Coordinate c is indices[c] of the source; an index outside the source is lost."""

    source: Axis
    indices: View
    extent: int

    def span(self, start: int, count: int, step: int) -> None:
        return None

    def lanes(self, at: Array, active: Array, reads: Reads, site: Site) -> Lanes:
        own = active & (at >= 0) & (at < self.extent)
        where = self.indices.axes[0].lanes(at, own, reads, site)
        reads[self.indices.memory.number] += int(where.inside.sum())
        known = where.inside & ~where.lost
        source = self.source.lanes(self.indices.integers(where, known, site), known, reads, site)
        return Lanes(where.inside, where.inside & ~(source.inside & ~source.lost), source.offsets)


@dataclass(slots=True)
class PagesAxis:
    """Coordinate s is (table[s // page], s % page) of two source axes; a page outside the source is lost."""

    pages: Axis
    within: Axis
    table: View
    extent: int
    page: int

    def span(self, start: int, count: int, step: int) -> None:
        return None

    def lanes(self, at: Array, active: Array, reads: Reads, site: Site) -> Lanes:
        own = active & (at >= 0) & (at < self.extent)
        touched = np.unique(at[own] // self.page)
        entries = self.table.axes[0].lanes(touched, np.ones(touched.shape, bool), reads, site)
        reads[self.table.memory.number] += touched.size
        known = entries.inside & ~entries.lost
        numbers = self.table.integers(entries, known, site)
        page_of = np.searchsorted(touched, np.where(own, at // self.page, touched[0] if touched.size else 0))
        spread = (lambda values: values[page_of]) if touched.size else (lambda values: np.zeros(at.shape, values.dtype))
        usable = own & spread(known)
        outer = self.pages.lanes(spread(numbers), usable, reads, site)
        inner = self.within.lanes(at % self.page, usable, reads, site)
        found = outer.inside & ~outer.lost & inner.inside & ~inner.lost
        return Lanes(own, own & ~found, np.where(found, outer.offsets + inner.offsets, 0))


@dataclass(slots=True)
class SegmentAxis:
    """Coordinate c is begin + c of the source for c below the segment's length; what leaves the source is lost."""

    source: Axis
    begin: int
    extent: int

    def span(self, start: int, count: int, step: int) -> Span | None:
        inner = self.source.span(self.begin + start, count, step)
        lo, hi = _clip(start, count, step, self.extent)
        if inner is None or (lo < hi and not (inner.lo <= lo and hi <= inner.hi)):
            return None
        return Span(lo, hi, inner.offset, inner.stride)

    def lanes(self, at: Array, active: Array, reads: Reads, site: Site) -> Lanes:
        own = active & (at >= 0) & (at < self.extent)
        source = self.source.lanes(self.begin + at, own, reads, site)
        return Lanes(own, own & ~(source.inside & ~source.lost), source.offsets)
