"""Regions of views while a kernel runs: what a load gives, what a store does, and what both check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from tilewright.errors import IRError, KernelStoreError
from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile.axes import Axis, Lanes, Memory, Reads, Site, Span
from tilewright.ir.tile.base import Array


class Loaded(NamedTuple):
    """A region's values, its poison lanes (None: none) and how many lanes were inside."""

    values: Array
    poison: Array | None
    inside: int


@dataclass(slots=True)
class View:
    """A view during a run: element base + the sum of the axes' offsets."""

    memory: Memory
    base: int
    axes: tuple[Axis, ...]

    def integers(self, lanes: Lanes, known: Array, site: Site) -> Array:
        """The integers at the known lanes of this view's only axis, -1 at the others."""
        result = np.full(known.shape, -1, np.int64)
        result[known] = self.memory.gather(self.base + lanes.offsets[known], site)
        return result

    def element(self, at: Sequence[int], reads: Reads, site: Site) -> int:
        """One integer, which must exist."""
        parts = [
            a.lanes(np.array([c], np.int64), np.ones(1, bool), reads, site) for a, c in zip(self.axes, at, strict=True)
        ]
        if not all(p.inside[0] and not p.lost[0] for p in parts):
            raise site.poison(f"reads an integer outside its view, at [{', '.join(map(str, at))}]")
        reads[self.memory.number] += 1
        return int(self.memory.gather(np.array([self.base + sum(int(p.offsets[0]) for p in parts)]), site)[0])

    def load(
        self, at: Sequence[int], extents: Sequence[int], outside: Any, lost: Any, reads: Reads, site: Site
    ) -> Loaded:
        """The region from `at`; lanes outside hold `outside`, or are poison (holding `lost`) when that is None."""
        memory = self.memory
        spans = self._spans(at, extents)
        if spans is None:
            return self._load_lanes(at, extents, outside, lost, reads, site)
        shape = [s.hi - s.lo for s in spans]
        whole, count = shape == list(extents), prod(shape)
        if count and memory.writers is not None:
            memory.check_read(self._look(memory.writers, spans, shape, site), site)
        if whole and count:
            return Loaded(self._look(memory.flat, spans, shape, site).copy(), None, count)
        values = np.full(extents, lost if outside is None else outside, memory.flat.dtype)
        box = tuple(slice(s.lo, s.hi) for s in spans)
        if count:
            values[box] = self._look(memory.flat, spans, shape, site)
        if outside is not None or whole:
            return Loaded(values, None, count)
        poison = np.ones(extents, bool)
        poison[box] = False
        return Loaded(values, poison, count)

    def _spans(self, at: Sequence[int], extents: Sequence[int]) -> list[Span] | None:
        spans = []
        for axis, start, count in zip(self.axes, at, extents, strict=True):
            span = axis.span(start, count, 1)
            if span is None:
                return None
            spans.append(span)
        return spans

    def _look(self, of: Array, spans: Sequence[Span], shape: Sequence[int], site: Site) -> Array:
        base = self.base + sum(s.offset + s.lo * s.stride for s in spans)
        strides = [s.stride for s in spans]
        return self.memory.window(of, base, shape, strides, site)

    def _lanes(self, at: Sequence[int], extents: Sequence[int], reads: Reads, site: Site) -> Lanes:
        """All lanes of a region, as arrays of its extents."""
        rank = len(extents)
        inside: Array = np.ones((1,) * rank, bool)
        lost: Array = np.zeros((1,) * rank, bool)
        offsets: Array = np.full((1,) * rank, self.base, np.int64)
        for axis, (start, count) in enumerate(zip(at, extents, strict=True)):
            found = self.axes[axis].lanes(np.arange(start, start + count), np.ones(count, bool), reads, site)
            shape = [count if a == axis else 1 for a in range(rank)]
            inside = inside & found.inside.reshape(shape)
            lost = lost | found.lost.reshape(shape)
            offsets = offsets + found.offsets.reshape(shape)
        return Lanes(inside, lost & inside, offsets)

    def _load_lanes(
        self, at: Sequence[int], extents: Sequence[int], outside: Any, lost: Any, reads: Reads, site: Site
    ) -> Loaded:
        return self._gathered(self._lanes(at, extents, reads, site), extents, outside, lost, site)

    def look_up(
        self, axis: int, indices: Array, unknown: Array | None, at: Sequence[int], extents: Sequence[int],
        outside: Any, lost: Any, site: Site,
    ) -> Loaded:  # fmt: skip
        """Like `load`, with the coordinate along an axis from `indices`, of which some are unknown."""
        return self._gathered(self._looked_up(axis, indices, unknown, at, extents, site), extents, outside, lost, site)

    def _looked_up(
        self, axis: int, indices: Array, unknown: Array | None, at: Sequence[int], extents: Sequence[int], site: Site
    ) -> Lanes:
        around = View(self.memory, self.base, (*self.axes[:axis], *self.axes[axis + 1 :]))
        lanes = around._lanes(at, extents, Reads(), site)
        known = np.ones(extents, bool) if unknown is None else ~np.broadcast_to(unknown, extents)
        own = np.broadcast_to(indices, extents).astype(np.int64)
        found = self.axes[axis].lanes(own.reshape(-1), known.reshape(-1), Reads(), site)
        inside, offsets = (a.reshape(extents) for a in (found.inside, found.offsets))
        reached = np.broadcast_to(lanes.inside, extents)
        return Lanes(reached, reached & ~inside, lanes.offsets + offsets)

    def update(
        self, axis: int, indices: Array, unknown: Array | None, values: Array, poison: Array | None,
        at: Sequence[int], mode: str, site: Site,
    ) -> int:  # fmt: skip
        """Sets or combines lanes in elements that this program wrote, or of an output changed in place that no other
        program wrote; gives how many there are.
        """
        memory, lanes = self.memory, self._looked_up(axis, indices, unknown, at, values.shape, site)
        if memory.writers is None:
            raise site.error(IRError, f"updates {site.buffer(memory.number, 'buffer')}, an input", "update an output")
        offsets = self._own_lanes(lanes, poison, site)
        memory.check_update(memory.writers, offsets, site)
        given = values[lanes.inside]
        with np.errstate(all="ignore"):
            met = memory.flat[offsets]
            memory.flat[offsets] = given if mode == "set" else SCALARS[mode].numpy(met, given)
        return int(offsets.size)

    def _gathered(self, lanes: Lanes, extents: Sequence[int], outside: Any, lost: Any, site: Site) -> Loaded:
        known = lanes.inside & ~lanes.lost
        values = np.full(extents, lost, self.memory.flat.dtype)
        values[known] = self.memory.gather(lanes.offsets[known], site)
        if outside is not None:
            values[~lanes.inside] = outside
        poison = ~known if outside is None else lanes.lost
        return Loaded(values, poison if poison.any() else None, int(lanes.inside.sum()))

    def store(self, values: Array, poison: Array | None, at: Sequence[int], reads: Reads, site: Site) -> int:
        """Writes the lanes inside; gives how many there are. Raises PoisonError, KernelStoreError."""
        memory, writers = self.memory, self.memory.writers
        if writers is None:
            raise site.error(
                IRError, f"stores to {site.buffer(memory.number, 'buffer')}, an input", "store to an output"
            )
        spans = self._spans(at, values.shape)
        if spans is None or not _injective(spans):
            return self._store_lanes(values, poison, at, writers, reads, site)
        box = tuple(slice(s.lo, s.hi) for s in spans)
        shape = [s.hi - s.lo for s in spans]
        if poison is not None and poison[box].any():
            raise site.poison("stores a lane that was never loaded")
        if 0 in shape:
            return 0
        written = self._look(writers, spans, shape, site)
        memory.check_write(written, site)
        written[...] = site.program + 1
        self._look(memory.flat, spans, shape, site)[...] = values[box]
        return written.size

    def _store_lanes(
        self, values: Array, poison: Array | None, at: Sequence[int], writers: Array, reads: Reads, site: Site
    ) -> int:
        memory, lanes = self.memory, self._lanes(at, values.shape, reads, site)
        offsets = self._own_lanes(lanes, poison, site)
        memory.check_write(writers[offsets], site)
        writers[offsets] = site.program + 1
        memory.flat[offsets] = values[lanes.inside]
        return int(offsets.size)

    def _own_lanes(self, lanes: Lanes, poison: Array | None, site: Site) -> Array:
        """The offsets of the lanes inside, which must exist, hold values and be distinct."""
        memory = self.memory
        if lanes.lost.any():
            raise site.poison("stores to a place that an index outside the view names")
        if poison is not None and poison[lanes.inside].any():
            raise site.poison("stores a lane that was never loaded")
        offsets = lanes.offsets[lanes.inside]
        if offsets.size and (offsets.min() < 0 or offsets.max() >= memory.flat.size):
            raise memory.leaves(site)
        if np.unique(offsets).size != offsets.size:
            raise site.error(
                KernelStoreError,
                f"writes an element of {site.buffer(memory.number, 'output')} twice in one store",
                "give every lane its own element",
            )
        return offsets


def _injective(spans: Sequence[Span]) -> bool:
    """True where no two lanes of a region can share an element: every stride exceeds the reach of all smaller ones."""
    reach = 0
    for stride, count in sorted((abs(s.stride), s.hi - s.lo) for s in spans if s.hi - s.lo > 1):
        if stride <= reach:
            return False
        reach += stride * (count - 1)
    return True
