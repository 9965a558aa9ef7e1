"""Sites: the places at which a tile is evaluated. One site is a vector of lanes along one axis of a tile (or a scalar).

A consumer makes sites over its own axes; walking back through slices, transposes and reshapes turns them into sites of
the operands, so that such ops move no data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import TypeAlias

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.loops import LoopBuilder, Value

Position: TypeAlias = Value | int  # an i64 scalar, static where it is a Python int


@dataclass(frozen=True, slots=True)
class Coord:
    """A site's coordinate along one axis of a tile.

    Lane l lies at `at + l * step`, or at lane l of `spread` (i64) where that is given. `align` divides `at`.
    below: expressions that are known to exceed the coordinate of every lane that counts.
    """

    at: Position
    step: int = 0
    spread: Value | None = None
    align: int = 1
    below: tuple[Expr, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether lanes have different coordinates."""
        return self.step != 0 or self.spread is not None

    @property
    def static(self) -> int | None:
        """The first lane's coordinate where it is known while compiling."""
        return self.at if isinstance(self.at, int) and self.spread is None else None

    @property
    def key(self) -> tuple[object, ...]:
        return (self.at if isinstance(self.at, int) else id(self.at), self.step, id(self.spread))


ORIGIN = Coord(0, align=1 << 30)


def known(at: int, step: int = 0) -> Coord:
    """A static coordinate."""
    return Coord(at, step, align=at or 1 << 30)


def shifted(b: LoopBuilder, coord: Coord, by: int) -> Coord:
    """The coordinate moved by a constant."""
    if by == 0:
        return coord
    below = tuple(e + by for e in coord.below)
    if coord.spread is not None:
        return replace(coord, spread=b.add(coord.spread, by), below=below)
    at = coord.at + by if isinstance(coord.at, int) else b.add(coord.at, by)
    return replace(coord, at=at, align=gcd(coord.align, by), below=below)


def lane_positions(b: LoopBuilder, coord: Coord, lanes: int) -> Value:
    """The coordinates as i64 lanes."""
    if coord.spread is not None:
        return coord.spread
    first = b.broadcast(b.index(coord.at), lanes)
    return b.add(first, b.mul(b.iota(lanes, I64), coord.step)) if coord.step else first


@dataclass(frozen=True, slots=True)
class Site:
    """Coordinates along every axis of a tile, the number of lanes, and which of them count (None: all).

    Lanes outside `mask` may hold anything, and reading them must not touch memory outside a buffer.
    """

    coords: tuple[Coord, ...]
    lanes: int = 1
    mask: Value | None = None

    @property
    def key(self) -> tuple[object, ...]:
        return (self.lanes, id(self.mask), *(c.key for c in self.coords))

    def moved(self, coords: tuple[Coord, ...]) -> Site:
        """The same lanes at other coordinates; a scalar where none of them varies."""
        if any(c.varies for c in coords):
            return Site(coords, self.lanes, self.mask)
        return Site(coords)


def lane_axis(extents: tuple[int, ...]) -> int | None:
    """The axis that a tile of these extents is stored and walked along in vectors: the last one longer than 1."""
    return next((axis for axis in reversed(range(len(extents))) if extents[axis] > 1), None)
