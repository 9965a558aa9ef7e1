"""The one reference table of packed storage: how elements sit in a storage word; and the ops that pack and unpack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def

from tilewright.ir.attributes import Int, Str
from tilewright.ir.dtypes import I8, U8, DType
from tilewright.ir.tile.base import Array, TileOp, check_axis, tile
from tilewright.ir.types import TileType


@dataclass(frozen=True, slots=True)
class Format:
    """`per_storage` elements of `bits` bits in one storage word, lowest bits first, decoded to `element`."""

    name: str
    storage: DType
    element: DType
    bits: int

    @property
    def per_storage(self) -> int:
        return self.storage.bits // self.bits

    def decode(self, words: Array, axis: int) -> Array:
        """Storage words to elements, interleaved along the axis (word 0's elements first)."""
        mask, signed = (1 << self.bits) - 1, self.element.kind == "int"
        parts = []
        for i in range(self.per_storage):
            field = (words.astype(np.int64) >> (i * self.bits)) & mask
            if signed:
                field = np.where(field >= 1 << (self.bits - 1), field - (1 << self.bits), field)
            parts.append(field.astype(self.element.numpy()))
        stacked = np.stack(parts, axis=axis + 1)
        shape = list(words.shape)
        shape[axis] *= self.per_storage
        return np.asarray(stacked.reshape(shape))

    def encode(self, elements: Array, axis: int) -> Array:
        """The inverse of decode; elements outside the format's range wrap."""
        shape = list(elements.shape)
        shape[axis : axis + 1] = [shape[axis] // self.per_storage, self.per_storage]
        fields = elements.astype(np.int64).reshape(shape) & ((1 << self.bits) - 1)
        shifts = (
            np.arange(self.per_storage).reshape([-1 if a == axis + 1 else 1 for a in range(len(shape))]) * self.bits
        )
        words: Array = np.bitwise_or.reduce(fields << shifts, axis=axis + 1)
        return words.astype(self.storage.numpy())


FORMATS: Final[dict[str, Format]] = {
    f.name: f
    for f in (
        Format("int4", U8, I8, 4),
        Format("uint4", U8, U8, 4),
        Format("int2", U8, I8, 2),
        Format("uint2", U8, U8, 2),
    )
}


@irdl_op_definition
class UnpackOp(TileOp):
    """Packed storage to elements along an axis, by the reference table of the format ("int4", "int2", ...)."""

    name = "tile.unpack"
    source = operand_def(TileType)
    format = prop_def(Str)
    axis = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source, entry = tile(self.source), FORMATS.get(self.format.data)
        if entry is None or source.dtype != entry.storage:
            raise self.malformed(f"format {self.format.data!r} does not unpack {source.dtype}")
        extents = list(source.extents)
        extents[check_axis(self, self.axis.data, source.rank)] *= entry.per_storage
        return [TileType.of(extents, entry.element)]

    def evaluate(self, source: Array) -> Array:
        return FORMATS[self.format.data].decode(source, self.axis.data)

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array:
        return np.repeat(poisoned[0], FORMATS[self.format.data].per_storage, axis=self.axis.data)


@irdl_op_definition
class PackOp(TileOp):
    """Elements to packed storage along an axis; the inverse of tile.unpack. Elements beyond the format's range wrap."""

    name = "tile.pack"
    source = operand_def(TileType)
    format = prop_def(Str)
    axis = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source, entry = tile(self.source), FORMATS.get(self.format.data)
        axis = check_axis(self, self.axis.data, source.rank)
        if entry is None or source.dtype != entry.element or source.extents[axis] % entry.per_storage:
            raise self.malformed(f"format {self.format.data!r} does not pack {source}")
        extents = list(source.extents)
        extents[axis] //= entry.per_storage
        return [TileType.of(extents, entry.storage)]

    def evaluate(self, source: Array) -> Array:
        return FORMATS[self.format.data].encode(source, self.axis.data)

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array:
        axis, per_word, mask = self.axis.data, FORMATS[self.format.data].per_storage, poisoned[0]
        words = (*mask.shape[:axis], mask.shape[axis] // per_word, per_word, *mask.shape[axis + 1 :])
        return np.asarray(mask.reshape(words).any(axis=axis + 1))


PACKING: list[type[Any]] = [UnpackOp, PackOp]
