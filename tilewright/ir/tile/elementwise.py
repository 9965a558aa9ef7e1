"""Tiles made of one value or of coordinates, and arithmetic element by element."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from math import prod
from typing import Any

import numpy as np
from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, var_operand_def

from tilewright.ir.attributes import Int, Ints, Number, Numbers, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dtypes import BF16, DTYPES, I1, I32, DType
from tilewright.ir.loops.elementwise import cast as cast_lanes
from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile.base import Array, TileOp, broadcast_extents, check_axis, element, extents_of, tile
from tilewright.ir.types import IndexType, TileType


@irdl_op_definition
class ConstantOp(TileOp):
    """A tile whose elements all have one value; integers truncate it and saturate, so infinities are the extremes."""

    name = "tile.constant"
    value = prop_def(Number)
    extents = prop_def(Ints)
    dtype = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if self.dtype.data not in DTYPES:
            raise self.malformed(f"no dtype is called {self.dtype.data!r}")
        return [TileType.of(self.extents.data, DTYPES[self.dtype.data])]

    def evaluate(self) -> Array:
        dtype = DTYPES[self.dtype.data]
        return np.full(self.extents.data, element(self.value.data, dtype), dtype.numpy())


@irdl_op_definition
class ElementsOp(TileOp):
    """A tile of rank 1 with the stated elements; integers saturate as in tile.constant."""

    name = "tile.elements"
    values = prop_def(Numbers)
    dtype = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if self.dtype.data not in DTYPES:
            raise self.malformed(f"no dtype is called {self.dtype.data!r}")
        return [TileType.of([len(self.values.data)], DTYPES[self.dtype.data])]

    def evaluate(self) -> Array:
        dtype = DTYPES[self.dtype.data]
        return np.array([element(v, dtype) for v in self.values.data], dtype.numpy())


@irdl_op_definition
class IndexTileOp(TileOp):
    """Absolute coordinates along an axis: base + position. Causal masks, windows and biases are made of these."""

    name = "tile.index"
    base = operand_def(IndexType)
    axis = prop_def(Int)
    extents = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        check_axis(self, self.axis.data, len(self.extents.data))
        return [TileType.of(self.extents.data, I32)]

    def evaluate(self, base: int) -> Array:
        axis, extents = self.axis.data, self.extents.data
        along = np.arange(base, base + extents[axis]).astype(np.int32)
        return np.broadcast_to(along.reshape([-1 if a == axis else 1 for a in range(len(extents))]), extents)


@irdl_op_definition
class SplatOp(TileOp):
    """A tile filled with one run-time index, as i32 or, where values may be larger, i64."""

    name = "tile.splat"
    source = operand_def(IndexType)
    extents = prop_def(Ints)
    dtype = prop_def(Str, default_value=Str("i32"))
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if self.dtype.data not in ("i32", "i64"):
            raise self.malformed(f"an index is i32 or i64, not {self.dtype.data!r}")
        return [TileType.of(self.extents.data, DTYPES[self.dtype.data])]

    def evaluate(self, source: int) -> Array:
        wide = np.asarray(source, np.int64)
        return np.broadcast_to(wide.astype(DTYPES[self.dtype.data].numpy()), self.extents.data)


@irdl_op_definition
class MapOp(TileOp):
    """An elementwise function of the scalar table on tiles of equal rank; extents of 1 stretch."""

    name = "tile.map"
    args = var_operand_def(TileType)
    fn = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        function = SCALARS.get(self.fn.data)
        if function is None:
            near = get_close_matches(self.fn.data, SCALARS, n=1)
            raise self.malformed(
                f"no scalar function is called {self.fn.data!r}",
                f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(SCALARS))}",
            )
        dtypes = [tile(a).dtype for a in self.args]
        result = function.result(dtypes)
        if result is None:
            raise self.malformed(
                f"{function.name} does not take ({', '.join(map(str, dtypes))})",
                "cast the operands to one dtype that it takes: b.cast(tile, dtype)",
            )
        return [TileType.of(broadcast_extents(self, extents_of(self.args)), result)]

    def evaluate(self, *args: Array) -> Array:
        with np.errstate(all="ignore"):
            return SCALARS[self.fn.data].numpy(*args)

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array:
        match self.fn.data:
            case "select":
                (condition, _, _), (unsure, first, second) = operands, poisoned
                return np.asarray(unsure | np.where(condition, first, second))
            case "and" | "or" if tile(self.out).dtype == I1:
                # a mask that is certain on one side settles the other: false and anything is false
                settling = self.fn.data == "or"
                settled = np.zeros((), bool)
                for operand, mask in zip(operands, poisoned, strict=True):
                    settled = settled | ((operand == settling) & ~mask)
                return np.asarray((poisoned[0] | poisoned[1]) & ~settled)
            case _:
                return np.asarray(super().spread(operands, poisoned))

    def cost(self) -> Cost:
        return Cost.of(vector=SCALARS[self.fn.data].flops * prod(tile(self.out).extents))


def convert(values: Array, source: DType, target: DType) -> Array:
    """An array in another dtype, exactly as the loop IR's Cast converts."""
    if source == target:
        return values
    # the loop IR keeps bf16 as its bits
    result = cast_lanes(values.view(np.uint16) if source == BF16 else values, BF16 if source == BF16 else None, target)
    return result.view(BF16.numpy()) if target == BF16 else result


@irdl_op_definition
class CastOp(TileOp):
    """Elements converted to another dtype, rounding to nearest even; floats to integers truncate.

    As torch on a CPU: out of range or NaN gives the least i32 or i64, narrower integers take its low bits, i1 is "not
    0".
    """

    name = "tile.cast"
    source = operand_def(TileType)
    dtype = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if self.dtype.data not in DTYPES:
            raise self.malformed(f"no dtype is called {self.dtype.data!r}")
        return [TileType.of(tile(self.source).extents, DTYPES[self.dtype.data])]

    def evaluate(self, source: Array) -> Array:
        with np.errstate(all="ignore"):
            return convert(source, tile(self.source).dtype, DTYPES[self.dtype.data])


@irdl_op_definition
class BroadcastOp(TileOp):
    """Axes of extent 1 repeated to the given extents."""

    name = "tile.broadcast"
    source = operand_def(TileType)
    extents = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        if broadcast_extents(self, [source.extents, self.extents.data]) != self.extents.data:
            raise self.malformed(f"{source} does not broadcast to {list(self.extents.data)}")
        return [TileType.of(self.extents.data, source.dtype)]

    def evaluate(self, source: Array) -> Array:
        return np.broadcast_to(source, self.extents.data)

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array:
        return np.broadcast_to(poisoned[0], self.extents.data)


ELEMENTWISE: list[type[Any]] = [ConstantOp, ElementsOp, IndexTileOp, SplatOp, MapOp, CastOp, BroadcastOp]
