"""Views made of views: windows, rows picked by indices, pages of a table, segments of a ragged axis.

Each turns spans of its own coordinates into spans of its source's, and adds the checks that its own extents need.
Integers that address other elements are read once a block and never trusted: one outside is a condition or a clamp, at
every view down to the plain one, whose place in its buffer `ir/tile/containment.py` proves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.ir.dims import minimum
from tilewright.ir.dtypes import I64
from tilewright.ir.loops import BufferArg, Value
from tilewright.ir.loops.folding import divisor
from tilewright.passes.lower_tile_to_loops.emission import Emission
from tilewright.passes.lower_tile_to_loops.indices import Facts, Index
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord
from tilewright.passes.lower_tile_to_loops.views import Place, Run, Span, View, all_of


class WindowView(View):
    """Coordinate i along axis a is offsets[a] + i * steps[a] of the source."""

    def __init__(self, source: View, offsets: Sequence[Index], steps: Sequence[int], extents: Sequence[Index]) -> None:
        super().__init__(source.b, source.facts, source.dtype, extents)
        self.source, self.offsets, self.steps = source, list(offsets), list(steps)

    @property
    def root(self) -> BufferArg:
        return self.source.root

    def clip(self, axis: int, run: Run) -> None:
        b = self.b
        run.within(b, self.extents[axis].value)
        run.base = b.add(self.offsets[axis].value, b.mul(run.base, self.steps[axis]))
        run.step *= self.steps[axis]
        self.source.clip(axis, run)

    def place(self, spans: Sequence[Span], lanes: int, *, clamp: bool, counts: Value | None = None) -> Place:
        b, needed, inner = self.b, [], []
        for span, extent, offset, step in zip(spans, self.extents, self.offsets, self.steps, strict=True):
            needed += self.conditions(span, extent, lanes)
            origin = Index(b.add(offset.value, b.mul(span.origin.value, step)), offset.expr + span.origin.expr * step)
            inner.append(replace(span, origin=origin, scale=span.scale * step))
        place = self.source.place(inner, lanes, clamp=clamp, counts=counts)
        place.conditions += needed
        return place


class RowsView(View):
    """Coordinate i along `axis` is indices[i] of the source; the index of a row is read once a site."""

    def __init__(self, source: View, indices: View, axis: int) -> None:
        extents = [*source.extents]
        extents[axis] = indices.extents[0]
        super().__init__(source.b, source.facts, source.dtype, extents)
        self.source, self.indices, self.axis = source, indices, axis

    @property
    def root(self) -> BufferArg:
        return self.source.root

    def clip(self, axis: int, run: Run) -> None:
        if axis != self.axis:
            self.source.clip(axis, run)
            return
        run.within(self.b, self.extents[axis].value)
        self.indices.clip(0, run)
        run.reads.append((self.indices.root, run.count(self.b)))

    def place(self, spans: Sequence[Span], lanes: int, *, clamp: bool, counts: Value | None = None) -> Place:
        found, checks = read_integers(self.indices, [spans[self.axis]], lanes, counts)
        inner = list(spans)
        inner[self.axis] = opaque_span(self.b, self.facts, found)
        place = self.source.place(inner, lanes, clamp=clamp, counts=counts)
        place.conditions += checks
        return place


class PagesView(View):
    """A paged sequence: source [pages, page, ...], coordinate s is (table[s // page], s % page)."""

    def __init__(self, source: View, table: View, length: Index, page: int, extent: Index) -> None:
        b = source.b
        reach = Index(b.min(length.value, extent.value), minimum(length.expr, extent.expr))
        super().__init__(b, source.facts, source.dtype, [reach, *source.extents[2:]])
        self.source, self.table, self.page = source, table, page

    @property
    def root(self) -> BufferArg:
        return self.source.root

    def clip(self, axis: int, run: Run) -> None:
        b = self.b
        if axis:
            self.source.clip(axis + 1, run)
            return
        run.within(b, self.extents[0].value)
        first = b.floordiv(b.add(run.base, b.mul(run.lo, run.step)), self.page)
        last = b.floordiv(b.add(run.base, b.mul(b.sub(run.hi, 1), run.step)), self.page)
        touched = b.select(b.compare("lt", run.lo, run.hi), b.add(b.sub(last, first), 1), 0)
        # With steps above a page, pages between two coordinates are passed over.
        run.reads.append((self.table.root, b.min(touched, run.count(b))))

    def place(self, spans: Sequence[Span], lanes: int, *, clamp: bool, counts: Value | None = None) -> Place:
        b, span = self.b, spans[0]
        needed = self.conditions(span, self.extents[0], lanes)
        first = span.first(b)
        together = span.local.varies and self._in_one_page(span, first, lanes)
        where = span.lanes(b, lanes) if span.local.varies and not together else first
        number = opaque_span(b, self.facts, b.floordiv(where, self.page))
        # The table has an entry for every page below the length, so what the condition lets through is inside it.
        entry, checks = read_integers(self.table, [number], lanes, counts)
        within = opaque_span(b, self.facts, b.mod(where, self.page), self.page)
        if together:
            begin = Index(within.origin.value, self.facts.opaque() % (self.page // lanes) * lanes)
            within = Span(begin, Coord(0, 1, align=lanes), lanes)
        inner = [opaque_span(b, self.facts, entry), within, *spans[1:]]
        if entry.type.lanes == 1:
            exists = b.and_(b.compare("ge", entry, 0), b.compare("lt", entry, self.source.extents[0].value))
            # what a mask hides is looked up, too, and memory that was never written takes a core long not to find
            entry, most = b.select(exists, entry, b.index(0)), self.source.extents[0].expr.constant
            inner[0] = opaque_span(b, self.facts, entry, most)
            needed.append(exists)
        place = self.source.place(inner, lanes, clamp=clamp, counts=counts)
        place.conditions += needed + checks
        return place

    def _in_one_page(self, span: Span, first: Value, lanes: int) -> bool:
        """Whether the lanes are known to be rows side by side of one page."""
        dense = span.local.spread is None and span.local.step * span.scale == 1
        return dense and self.page % lanes == 0 and divisor(first) % lanes == 0


class SegmentView(View):
    """Coordinate i along `axis` is start + i of the source, for i below a length read at run time."""

    def __init__(self, source: View, start: Index, length: Index, axis: int) -> None:
        extents = [*source.extents]
        extents[axis] = length
        super().__init__(source.b, source.facts, source.dtype, extents)
        self.source, self.start, self.axis = source, start, axis

    @property
    def root(self) -> BufferArg:
        return self.source.root

    def clip(self, axis: int, run: Run) -> None:
        if axis == self.axis:
            run.within(self.b, self.extents[axis].value)
        else:
            self.source.clip(axis, run)

    def place(self, spans: Sequence[Span], lanes: int, *, clamp: bool, counts: Value | None = None) -> Place:
        b, span = self.b, spans[self.axis]
        needed = self.conditions(span, self.extents[self.axis], lanes)
        origin = Index(b.add(self.start.value, span.origin.value), self.start.expr + span.origin.expr)
        inner = list(spans)
        inner[self.axis] = replace(span, origin=origin)
        place = self.source.place(inner, lanes, clamp=clamp, counts=counts)
        place.conditions += needed
        return place


def opaque_span(b: Emission, facts: Facts, found: Value, below: int | None = None) -> Span:
    """A span at coordinates computed at run time, of which nothing is known; but of scalars, that they are at least 0
    and below a number, where it is given.
    """
    if found.type.lanes == 1:
        return Span(Index(found, facts.opaque() if below is None else facts.opaque() % below), ORIGIN, 1)
    return Span(Index(b.index(0), facts.opaque()), Coord(0, spread=found), 1)


def read_integers(
    view: View, spans: Sequence[Span], lanes: int, counts: Value | None = None
) -> tuple[Value, list[Value]]:
    """Integers of a view as i64, read once a block, and the conditions under which they have a meaning."""
    b = view.b
    varies = any(s.local.varies for s in spans)
    place = view.place(spans, lanes, clamp=True, counts=counts)
    needed = [*place.conditions, *([counts] if varies and counts is not None else [])]
    mask = all_of(b, needed, lanes if varies else 1)
    key = ("integers", place.memory, id(place.offset), id(place.spread), place.step, lanes if varies else 1, id(mask))

    def read() -> Value:
        if not varies:
            loaded = b.load(place.memory, place.offset, mask=mask)
        elif place.spread is not None:
            loaded = b.gather(place.memory, place.offset, place.spread, mask=mask)
        else:
            loaded = b.load(place.memory, place.offset, lanes, stride=place.step, mask=mask)
        return b.cast(loaded, I64)

    return b.once(key, read), place.conditions + place.outside
