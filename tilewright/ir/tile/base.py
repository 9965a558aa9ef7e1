"""What every tile op shares: typed accessors and the NumPy meaning that the tile interpreter runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from xdsl.ir import SSAValue

from tilewright.errors import IRError
from tilewright.ir.dtypes import DType
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import BufferType, TileType, ViewType

Array = np.ndarray[Any, np.dtype[Any]]


def tile(value: SSAValue) -> TileType:
    """The tile type of a value."""
    if not isinstance(value.type, TileType):
        raise IRError(f"expected a tile.tile, got {value.type}", step="check the op that produces this operand")
    return value.type


def view(value: SSAValue) -> ViewType:
    """The view type of a value."""
    if not isinstance(value.type, ViewType):
        raise IRError(f"expected a tile.view, got {value.type}", step="make a view of the buffer first")
    return value.type


def buffer(value: SSAValue) -> BufferType:
    """The buffer type of a value."""
    if not isinstance(value.type, BufferType):
        raise IRError(f"expected a tile.buffer, got {value.type}", step="views are made of kernel arguments")
    return value.type


class TileOp(TwOperation):
    """A tile op. Pure ops give their meaning as `evaluate` on NumPy arrays of the operands' extents and dtypes.

    Poison is the interpreter's: it runs `evaluate` on values and `spread` on masks of lanes that hold no defined value.
    Index operands arrive as Python integers; results are never written to, so they may be views of operands.
    """

    def evaluate(self, *operands: Any) -> Array | tuple[Array, ...]:
        """The op's result on arrays; ops that touch memory or control flow are the interpreter's to run."""
        raise IRError(f"{self.name} has no meaning on values alone", step="run the kernel through the tile interpreter")

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array | tuple[Array, ...]:
        """Which result lanes are poison, given the operands and which of their lanes are; elementwise 'any' by default.

        A lane is poison when some value of the poisoned operand lanes could change it. `operands` hold garbage there.
        """
        result = np.zeros((), bool)
        for mask in poisoned:
            result = result | mask
        return result


def extents_of(values: Sequence[SSAValue]) -> list[tuple[int, ...]]:
    """The static extents of several tiles."""
    return [tile(v).extents for v in values]


def broadcast_extents(op: TwOperation, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The extents of tiles of one rank stretched to each other, as this dialect's error where they do not fit."""
    if len({len(shape) for shape in shapes}) > 1:
        rank = max(map(len, shapes))
        low = next(shape for shape in shapes if len(shape) < rank)
        raise op.malformed(
            f"tiles of equal rank stretch to each other, got {', '.join(map(str, map(list, shapes)))}",
            f"give the tile {list(low)} as many axes: b.reshape(tile, {[1] * (rank - len(low)) + list(low)}) to repeat "
            f"it along the first, or with the 1 where it is to be repeated",
        )
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*shapes))
    except ValueError:
        raise op.malformed(
            f"extents do not broadcast: {', '.join(map(str, map(list, shapes)))}",
            "give tiles whose extents are equal, or 1 where one is repeated",
        ) from None


def check_axis(op: TwOperation, axis: int, rank: int) -> int:
    """The axis, which must lie in 0..rank-1: tiles have no negative axes."""
    if not 0 <= axis < rank:
        raise op.malformed(f"axis {axis} is not one of {rank} axes")
    return axis


def element(value: float, dtype: DType) -> Any:
    """A property's number as an element: rounded for floats; integers truncate and saturate, so infinity is the
    extreme."""
    if dtype.is_float:
        with np.errstate(over="ignore"):
            return np.asarray(value, np.float64).astype(dtype.numpy())[()]
    if dtype.kind == "bool":
        return np.bool_(value != 0)
    limits = np.iinfo(dtype.numpy())
    if math.isnan(value):
        raise IRError(f"NaN is no element of {dtype}", step="use a number")
    if abs(value) < 2.0**63:
        return dtype.numpy().type(min(max(int(value), int(limits.min)), int(limits.max)))
    return dtype.numpy().type(limits.max if value > 0 else limits.min)
