"""Views resolved to memory: index maps from a view's coordinates to elements of a buffer, with the checks they need.

A `Span` is a coordinate along one axis of a view: the tile's origin plus a site's local coordinate. A bound that
`Facts` proves costs nothing; one that it cannot prove becomes a clamp (where what lies outside is poison anyway) or a
condition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.loops import BufferArg, Const, Value
from tilewright.passes.lower_tile_to_loops.emission import Emission
from tilewright.passes.lower_tile_to_loops.indices import Facts, Index
from tilewright.passes.lower_tile_to_loops.sites import Coord, lane_positions


@dataclass(frozen=True, slots=True)
class Span:
    """A coordinate along one axis of a view: origin + scale * local, where 0 <= local < count (and < local.below)."""

    origin: Index
    local: Coord
    count: int
    scale: int = 1

    def first(self, b: Emission) -> Value:
        """The first lane's coordinate."""
        moved = self.local.at * self.scale if isinstance(self.local.at, int) else b.mul(self.local.at, self.scale)
        return b.add(self.origin.value, moved)

    def lanes(self, b: Emission, lanes: int) -> Value:
        """Every lane's coordinate, i64."""
        return b.add(b.mul(lane_positions(b, self.local, lanes), self.scale), self.origin.value)

    def bounded(self, facts: Facts, extent: Expr) -> bool:
        """Whether every lane that counts is proved to be below the extent."""
        limits = [Expr.of(self.count), *self.local.below]
        return any(facts.at_least(extent - self.origin.expr - (limit - 1) * self.scale, 1) for limit in limits)


@dataclass(slots=True)
class Place:
    """Where a site's lanes lie: memory[offset + lane * step], or memory[offset + spread[lane]].

    conditions: what must hold for an access to be in bounds (scalars or lane masks). outside: conditions that were met
    by clamping instead: where they fail, the access reads an element of no meaning. aligned: a divisor of the offset,
    in elements; 1 where none is known.
    """

    memory: BufferArg
    offset: Value
    step: Value | int = 0
    spread: Value | None = None
    conditions: list[Value] = field(default_factory=list)
    outside: list[Value] = field(default_factory=list)
    aligned: int = 1


@dataclass(slots=True)
class Run:
    """The coordinates base + i * step for i in lo..hi-1 along one axis, clipped on the way down a chain of views.

    reads: what addressing them reads of integer buffers, and how many elements.
    """

    base: Value
    step: int
    lo: Value
    hi: Value
    reads: list[tuple[BufferArg, Value]] = field(default_factory=list)
    inside: Value = field(init=False)

    @staticmethod
    def of(view: View, axis: int, start: Index, count: int) -> Run:
        """The part of a region along an axis that lies inside the view."""
        b = view.b
        run = Run(start.value, 1, b.index(0), b.index(count))
        view.clip(axis, run)
        run.inside = b.max(b.sub(run.hi, run.lo), 0)
        return run

    def within(self, b: Emission, extent: Value) -> None:
        """Keeps the coordinates in 0..extent-1."""
        self.lo = b.max(self.lo, b.ceildiv(b.sub(0, self.base), self.step))
        self.hi = b.min(self.hi, b.ceildiv(b.sub(extent, self.base), self.step))

    def count(self, b: Emission) -> Value:
        return b.max(b.sub(self.hi, self.lo), 0)


class View(ABC):
    """What every resolved view answers."""

    def __init__(self, b: Emission, facts: Facts, dtype: DType, extents: Sequence[Index]) -> None:
        self.b, self.facts, self.dtype, self.extents = b, facts, dtype, list(extents)

    @abstractmethod
    def place(self, spans: Sequence[Span], lanes: int, *, clamp: bool, counts: Value | None = None) -> Place:
        """The memory under the spans.

        clamp: whether scalar coordinates outside may be moved inside (loads only). counts: the lanes that count, where
        not all do; indices of the others are not read.
        """

    @abstractmethod
    def clip(self, axis: int, run: Run) -> None:
        """Clips a run of coordinates along an axis to the view, and notes the integers that addressing it reads."""

    @property
    @abstractmethod
    def root(self) -> BufferArg:
        """The buffer behind the view."""

    def conditions(self, span: Span, extent: Index, lanes: int) -> list[Value]:
        """What must hold for the span to be inside 0..extent; nothing where it is proved."""
        b, found = self.b, []
        varies = span.local.varies
        if not span.bounded(self.facts, extent.expr):
            if span.local.step * span.scale == 1 and span.local.spread is None:
                found.append(b.tail_mask(b.sub(extent.value, span.first(b)), lanes))
            else:
                found.append(b.compare("lt", span.lanes(b, lanes) if varies else span.first(b), extent.value))
        if not (self.facts.at_least(span.origin.expr, 0) and span.local.spread is None):
            found.append(b.compare("ge", span.lanes(b, lanes) if varies else span.first(b), 0))
        return found


class AffineView(View):
    """A buffer with strides: the bottom of every chain."""

    def __init__(
        self,
        b: Emission,
        facts: Facts,
        memory: BufferArg,
        extents: Sequence[Index],
        strides: Sequence[Expr],
        offset: Expr,
    ) -> None:
        super().__init__(b, facts, memory.dtype, extents)
        self.memory, self.strides, self.offset = memory, list(strides), offset

    @property
    def root(self) -> BufferArg:
        return self.memory

    def clip(self, axis: int, run: Run) -> None:
        run.within(self.b, self.extents[axis].value)

    def place(self, spans: Sequence[Span], lanes: int, *, clamp: bool, counts: Value | None = None) -> Place:
        b = self.b
        fixed, moving = b.expr(self.offset), b.index(0)
        place = Place(self.memory, fixed)
        for span, extent, stride in zip(spans, self.extents, self.strides, strict=True):
            step = b.expr(stride)
            needed = self.conditions(span, extent, lanes)
            if needed and clamp and not span.local.varies and self._inhabited(span, extent):
                where = b.min(span.first(b), b.sub(extent.value, 1))
                if not self.facts.at_least(span.origin.expr, 0):
                    where = b.max(where, 0)
                moving = b.add(moving, b.mul(where, step))
                place.outside += needed
                continue
            place.conditions += needed
            fixed = b.add(fixed, b.mul(span.origin.value, step))
            per_local = b.mul(step, span.scale)
            if span.local.spread is not None:
                far = b.mul(span.local.spread, per_local)
                place.spread = far if place.spread is None else b.add(place.spread, far)
                continue
            moving = b.add(moving, b.mul(per_local, span.local.at))
            if span.local.step:
                place.step = _sum(b, place.step, b.mul(per_local, span.local.step))
        if isinstance(place.step, Const):
            place.step = int(place.step.value)
        place.offset = b.add(fixed, moving)
        place.aligned = self._aligned(spans)
        if place.spread is not None and place.step != 0:
            place.spread = b.add(place.spread, b.mul(b.iota(lanes, I64), place.step))
        return place

    def _aligned(self, spans: Sequence[Span]) -> int:
        """A divisor of the first lane's offset: of every term's coefficient, times what divides a tile's coordinate."""
        whole = self.offset
        divisor = 0
        for span, stride in zip(spans, self.strides, strict=True):
            whole = whole + span.origin.expr * stride
            divisor = gcd(divisor, _divisor(stride * span.scale) * span.local.align)
        return gcd(divisor, _divisor(whole))

    def _inhabited(self, span: Span, extent: Index) -> bool:
        """Whether the axis is proved to have an element to clamp to."""
        return self.facts.at_least(extent.expr, 1) or (
            self.facts.at_least(extent.expr - span.origin.expr, 1) and self.facts.at_least(span.origin.expr, 0)
        )


def _divisor(expr: Expr) -> int:
    """The greatest number that divides every coefficient; 0 for zero."""
    return gcd(*(coefficient for _, coefficient in expr.terms))


def all_of(b: Emission, conditions: Sequence[Value], lanes: int) -> Value | None:
    """The conjunction of scalar conditions and lane masks; None for none. Scalars join before they are broadcast."""
    total: Value | None = None
    for condition in sorted(conditions, key=lambda c: c.type.lanes):
        total = condition if total is None else b.and_(total, condition)
    if total is not None and lanes > 1:
        total = b.broadcast(total, lanes) if total.type.lanes == 1 else total
    return total


def _sum(b: Emission, a: Value | int, c: Value) -> Value:
    return c if isinstance(a, int) and a == 0 else b.add(a, c)
