"""Static rearrangement of a tile's elements: nothing here computes, and no position depends on a value."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, var_operand_def

from tilewright.ir.attributes import Int, Ints
from tilewright.ir.tile.base import Array, TileOp, check_axis, tile
from tilewright.ir.types import TileType


class _Rearrangement(TileOp):
    """Poison moves as values do."""

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array | tuple[Array, ...]:
        return self.evaluate(*poisoned)


@irdl_op_definition
class ReshapeOp(_Rearrangement):
    """The same elements in row-major order under other extents."""

    name = "tile.reshape"
    source = operand_def(TileType)
    extents = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        if prod(source.extents) != prod(self.extents.data):
            raise self.malformed(
                f"{source} has {prod(source.extents)} elements, {list(self.extents.data)} another number"
            )
        return [TileType.of(self.extents.data, source.dtype)]

    def evaluate(self, source: Array) -> Array:
        return source.reshape(self.extents.data)


@irdl_op_definition
class TransposeOp(_Rearrangement):
    """Axis i of the result is axis permutation[i] of the source."""

    name = "tile.transpose"
    source = operand_def(TileType)
    permutation = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        if sorted(self.permutation.data) != list(range(source.rank)):
            raise self.malformed(f"{list(self.permutation.data)} does not permute {source.rank} axes")
        return [TileType.of([source.extents[a] for a in self.permutation.data], source.dtype)]

    def evaluate(self, source: Array) -> Array:
        return source.transpose(self.permutation.data)


@irdl_op_definition
class SliceOp(_Rearrangement):
    """The static box from starts to stops."""

    name = "tile.slice"
    source = operand_def(TileType)
    starts = prop_def(Ints)
    stops = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        if not len(self.starts.data) == len(self.stops.data) == source.rank:
            raise self.malformed(f"{source} needs {source.rank} starts and stops")
        boxes = zip(self.starts.data, self.stops.data, source.extents, strict=True)
        if any(not 0 <= lo <= hi <= extent for lo, hi, extent in boxes):
            raise self.malformed(f"box {list(self.starts.data)}..{list(self.stops.data)} leaves {source}")
        return [TileType.of([hi - lo for lo, hi in zip(self.starts.data, self.stops.data, strict=True)], source.dtype)]

    def evaluate(self, source: Array) -> Array:
        return source[tuple(slice(lo, hi) for lo, hi in zip(self.starts.data, self.stops.data, strict=True))]


@irdl_op_definition
class ConcatOp(_Rearrangement):
    """Tiles joined along an axis."""

    name = "tile.concat"
    args = var_operand_def(TileType)
    axis = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        tiles = [tile(a) for a in self.args]
        if not tiles:
            raise self.malformed("needs one tile or more")
        axis = check_axis(self, self.axis.data, tiles[0].rank)
        rest = {(*t.extents[:axis], *t.extents[axis + 1 :], t.dtype) for t in tiles}
        if len(rest) != 1:
            raise self.malformed(f"cannot join {', '.join(map(str, tiles))} along axis {axis}")
        extents = list(tiles[0].extents)
        extents[axis] = sum(t.extents[axis] for t in tiles)
        return [TileType.of(extents, tiles[0].dtype)]

    def evaluate(self, *args: Array) -> Array:
        return np.concatenate(args, self.axis.data)


REARRANGEMENT: list[type[Any]] = [ReshapeOp, TransposeOp, SliceOp, ConcatOp]
