"""Where tiles that are computed once live: unrolled in registers, or in scratch memory.

Scratch tiles are row-major with the lane axis padded to whole vectors; what pads them is never read as data. Register
tiles are SSA values by static position, so whoever reads one unrolls the axes it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as cartesian
from math import prod

from xdsl.ir import Operation

from tilewright.errors import IRError
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.loops import Scratch, Value
from tilewright.ir.tile.compute import LANES
from tilewright.passes.lower_tile_to_loops.emission import Emission
from tilewright.passes.lower_tile_to_loops.sites import Coord, Site, known, lane_axis


class ScratchTile:
    """A tile in thread-private memory."""

    def __init__(self, memory: Scratch, extents: tuple[int, ...]) -> None:
        self.memory, self.extents, self.dtype = memory, extents, memory.dtype
        self.axis = lane_axis(extents)
        self.strides = _strides(extents, self.axis)

    @staticmethod
    def elements(extents: tuple[int, ...]) -> int:
        """Elements of memory that a tile needs, with room for one vector beyond its last row."""
        axis = lane_axis(extents)
        rows = prod(extents[:axis]) if axis is not None else 1
        return rows * padded(extents[axis] if axis is not None else 1) + LANES

    def read(self, b: Emission, site: Site) -> Value:
        """The elements at a site: a vector, or a scalar where the lanes share a coordinate."""
        offset, step, spread = self._address(b, site)
        if spread is not None:
            return b.gather(self.memory, offset, spread, mask=site.mask)
        if step == 0:
            return b.load(self.memory, offset)
        return b.load(self.memory, offset, site.lanes, stride=step, mask=None if step == 1 else site.mask)

    def write(self, b: Emission, site: Site, value: Value) -> None:
        """Sets the elements at a site; along the lane axis whole vectors, into the padding where the tile ends."""
        offset, step, spread = self._address(b, site)
        if spread is not None:
            b.scatter(value, self.memory, offset, spread, mask=site.mask)
            return
        if step != 0 and value.type.lanes == 1:
            value = b.broadcast(value, site.lanes)
        b.store(value, self.memory, offset, stride=step or 1, mask=None if step in (0, 1) else site.mask)

    def _address(self, b: Emission, site: Site) -> tuple[Value, int, Value | None]:
        offset, step, spread = b.index(0), 0, None
        for coord, stride in zip(site.coords, self.strides, strict=True):
            if stride == 0:
                continue
            if coord.spread is not None:
                far = b.mul(coord.spread, stride)
                spread = far if spread is None else b.add(spread, far)
                continue
            at = coord.at * stride if isinstance(coord.at, int) else b.mul(coord.at, stride)
            offset = b.add(offset, at)
            step += coord.step * stride
        if spread is not None and step:
            spread = b.add(spread, b.mul(b.iota(site.lanes, I64), step))
        return offset, step, spread


@dataclass(slots=True)
class Pairs:
    """A tile packed in pairs of k, and the dots that are still to read it."""

    home: ScratchTile
    readers: list[Operation]


class RegisterTile:
    """A tile in SSA values: one vector of `lanes` along the lane axis each, or one scalar each where `axis` is None."""

    def __init__(self, extents: tuple[int, ...], dtype: DType, lanes: int, *, scalars: bool = False) -> None:
        self.extents, self.dtype = extents, dtype
        self.axis = None if scalars else lane_axis(extents)
        self.lanes = lanes if self.axis is not None else 1
        self.values: dict[tuple[int, ...], Value] = {}

    def positions(self) -> list[tuple[int, ...]]:
        """The positions of all values, in row-major order."""
        steps = [self.lanes if axis == self.axis else 1 for axis in range(len(self.extents))]
        return list(cartesian(*(range(0, n, s) for n, s in zip(self.extents, steps, strict=True))))

    def sites(self) -> list[Site]:
        """The sites of all values, alike."""
        return [Site(self._coords(p), self.lanes) for p in self.positions()]

    def _coords(self, position: tuple[int, ...]) -> tuple[Coord, ...]:
        return tuple(known(at, int(axis == self.axis)) for axis, at in enumerate(position))

    def take(self, values: Sequence[Value]) -> None:
        """Sets all values, in the order of `positions`."""
        self.values = dict(zip(self.positions(), values, strict=True))

    def all(self) -> list[Value]:
        """All values, in the order of `positions`."""
        return [self.values[p] for p in self.positions()]

    def read(self, b: Emission, site: Site) -> Value:
        """The elements at a static site; unaligned ones are shuffled together."""
        static = [c.static for c in site.coords]
        if any(at is None for at in static):
            raise IRError("a register tile is read at a position of run time", step="place the tile in scratch")
        first = tuple(at for at in static if at is not None)
        varying = [axis for axis, c in enumerate(site.coords) if c.varies]
        if not varying:
            return self._element(b, first)
        if varying == [self.axis] and site.coords[varying[0]].step == 1:
            return self._consecutive_lanes(b, first, varying[0], site.lanes)
        lanes = [
            self._element(b, tuple(at + lane * c.step for at, c in zip(first, site.coords, strict=True)))
            for lane in range(site.lanes)
        ]
        return join(b, lanes)

    def _element(self, b: Emission, at: tuple[int, ...]) -> Value:
        if self.axis is None:
            return self.values.get(at) or next(iter(self.values.values()))
        inside = at[self.axis] % self.lanes
        found = self.values.get((*at[: self.axis], at[self.axis] - inside, *at[self.axis + 1 :]))
        return b.extract(found or next(iter(self.values.values())), inside)

    def _consecutive_lanes(self, b: Emission, first: tuple[int, ...], axis: int, lanes: int) -> Value:
        """Consecutive lanes; positions past the tile's end repeat its last vector, because nobody counts them."""
        at = first[axis]

        def vector(start: int) -> Value:
            start = min(start, (self.extents[axis] - 1) // self.lanes * self.lanes)
            return self.values[(*first[:axis], start, *first[axis + 1 :])]

        start = at - at % self.lanes
        if at == start and lanes == self.lanes:
            return vector(start)
        parts = [vector(s) for s in range(start, at + lanes, self.lanes)]
        whole = parts[0]
        while len(parts) > 1:
            if len(parts) % 2:
                parts.append(parts[-1])
            count = 2 * parts[0].type.lanes
            parts = [b.shuffle(x, range(count), y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
            whole = parts[0]
        return b.shuffle(whole, range(at - start, at - start + lanes))

    def write(self, b: Emission, site: Site, value: Value) -> None:
        """Sets the value at one of the tile's own sites."""
        position = tuple(c.static for c in site.coords)
        if any(at is None for at in position):
            raise IRError("a register tile is written at a position of run time", step="place the tile in scratch")
        if self.axis is not None and value.type.lanes == 1:
            value = b.broadcast(value, self.lanes)
        self.values[position] = value  # type: ignore[index]  # no None is left


Storage = ScratchTile | RegisterTile


def join(b: Emission, lanes: Sequence[Value]) -> Value:
    """Scalars as one vector; the count is a power of two, and a single one stays a scalar."""
    parts = list(lanes)
    while len(parts) > 1:
        width = 2 * parts[0].type.lanes
        parts = [b.shuffle(x, range(width), y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def padded(extent: int) -> int:
    """An extent of the lane axis in scratch: whole canonical vectors."""
    return -(-extent // LANES) * LANES


def _strides(extents: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    strides, far = [0] * len(extents), 1
    for a in reversed(range(len(extents))):
        if axis is None or a > axis or (extents[a] == 1 and a != axis):
            continue
        strides[a] = far
        far *= padded(extents[a]) if a == axis else extents[a]
    return tuple(strides)
