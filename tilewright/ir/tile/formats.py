"""The one reference table of packed storage: how elements sit in a storage word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tilewright.ir.dtypes import I8, U8, DType

Array = np.ndarray[Any, np.dtype[Any]]


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
        return stacked.reshape(shape)

    def encode(self, elements: Array, axis: int) -> Array:
        """The inverse of decode; elements outside the format's range wrap."""
        shape = list(elements.shape)
        shape[axis : axis + 1] = [shape[axis] // self.per_storage, self.per_storage]
        fields = elements.astype(np.int64).reshape(shape) & ((1 << self.bits) - 1)
        shifts = np.arange(self.per_storage).reshape([-1 if a == axis + 1 else 1 for a in range(len(shape))]) * self.bits
        return np.bitwise_or.reduce(fields << shifts, axis=axis + 1).astype(self.storage.numpy())


FORMATS: Final[dict[str, Format]] = {
    f.name: f
    for f in (
        Format("int4", U8, I8, 4),
        Format("uint4", U8, U8, 4),
        Format("int2", U8, I8, 2),
        Format("uint2", U8, U8, 2),
    )
}
