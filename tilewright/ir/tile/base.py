"""What every tile op shares: typed accessors and the NumPy meaning that the tile interpreter runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from xdsl.ir import SSAValue

from tilewright.errors import IRError
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
    """

    def evaluate(self, *operands: Array) -> Array | tuple[Array, ...]:
        """The op's result on arrays; ops that touch memory or control flow are the interpreter's to run."""
        raise IRError(f"{self.name} has no meaning on values alone", step="run the kernel through the tile interpreter")

    def spread(self, *poisoned: Array) -> Array | tuple[Array, ...]:
        """Which result lanes are poison, given which operand lanes are; the default evaluates elementwise 'any'."""
        result = np.zeros((), bool)
        for mask in poisoned:
            result = result | mask
        return result


def extents_of(values: Sequence[SSAValue]) -> list[tuple[int, ...]]:
    """The static extents of several tiles."""
    return [tile(v).extents for v in values]


def broadcast_extents(op: TwOperation, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """NumPy's broadcast of static extents, as this dialect's error."""
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*shapes))
    except ValueError:
        raise op.malformed(f"extents do not broadcast: {', '.join(map(str, shapes))}") from None
