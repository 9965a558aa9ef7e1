"""Sorting inside a tile: stable, with torch's place for NaN."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2, prod
from typing import Any

import numpy as np
from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def

from tilewright.ir.attributes import Bool, Int
from tilewright.ir.cost import Cost
from tilewright.ir.dtypes import BF16, I32
from tilewright.ir.tile.base import Array, TileOp, check_axis, tile
from tilewright.ir.types import TileType


def stable_order(keys: Array, axis: int, *, descending: bool) -> Array:
    """The positions along the axis in sorted order; equals keep their order, NaN counts as greater than everything."""
    # NumPy sorts NaN last, but knows no stable order for bf16; f32 holds every bf16
    plain = keys.astype(np.float32) if keys.dtype == BF16.numpy() else keys
    if not descending:
        return np.argsort(plain, axis=axis, kind="stable")
    reverse = np.argsort(np.flip(plain, axis), axis=axis, kind="stable")
    return np.flip(keys.shape[axis] - 1 - reverse, axis)


def _comparisons(source: TileType, axis: int) -> Cost:
    """One comparison an element and level of a merge sort."""
    return Cost.of(vector=prod(source.extents) * ceil(log2(max(source.extents[axis], 1))))


@irdl_op_definition
class SortOp(TileOp):
    """Sorts keys along an axis, stably, NaN above everything as in torch, and carries a payload tile along."""

    name = "tile.sort"
    keys = operand_def(TileType)
    payload = operand_def(TileType)
    axis = prop_def(Int)
    descending = prop_def(Bool)
    sorted = result_def(TileType)
    carried = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if tile(self.keys).extents != tile(self.payload).extents:
            raise self.malformed("keys and payload must have equal extents")
        check_axis(self, self.axis.data, tile(self.keys).rank)
        return [self.keys.type, self.payload.type]

    def evaluate(self, keys: Array, payload: Array) -> tuple[Array, Array]:
        axis = self.axis.data
        order = stable_order(keys, axis, descending=self.descending.data)
        return np.take_along_axis(keys, order, axis), np.take_along_axis(payload, order, axis)

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> tuple[Array, Array]:
        axis, (keys, payload) = self.axis.data, poisoned
        unsure = np.broadcast_to(keys.any(axis=axis, keepdims=True), keys.shape)
        order = stable_order(operands[0], axis, descending=self.descending.data)
        return unsure, unsure | np.take_along_axis(payload, order, axis)

    def cost(self) -> Cost:
        return _comparisons(tile(self.keys), self.axis.data)


@irdl_op_definition
class TopkOp(TileOp):
    """The k largest along an axis, in order, with their positions (i32); the lowest position wins among equals."""

    name = "tile.topk"
    source = operand_def(TileType)
    k = prop_def(Int)
    axis = prop_def(Int)
    values = result_def(TileType)
    positions = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        axis = check_axis(self, self.axis.data, source.rank)
        extents = list(source.extents)
        if not 0 < self.k.data <= extents[axis]:
            raise self.malformed(f"k = {self.k.data} is not in 1..{extents[axis]}, the extent of axis {axis}")
        extents[axis] = self.k.data
        return [TileType.of(extents, source.dtype), TileType.of(extents, I32)]

    def evaluate(self, source: Array) -> tuple[Array, Array]:
        axis = self.axis.data
        order = stable_order(source, axis, descending=True).take(range(self.k.data), axis)
        return np.take_along_axis(source, order, axis), order.astype(np.int32)

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> tuple[Array, Array]:
        axis = self.axis.data
        unsure = np.repeat(poisoned[0].any(axis=axis, keepdims=True), self.k.data, axis)
        return unsure, unsure

    def cost(self) -> Cost:
        return _comparisons(tile(self.source), self.axis.data)


ORDERING: list[type[Any]] = [SortOp, TopkOp]
