"""What a loop kernel reads and writes: buffers handed in by the caller and scratch of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tilewright.ir.dtypes import DType


@dataclass(slots=True, eq=False)
class BufferArg:
    """A flat buffer of the caller, in the order of the ABI's `buffers` array.

    A read-only buffer is not written by anyone while the kernel runs: in-place use takes one writable buffer.
    """

    name: str
    dtype: DType
    writable: bool = False


@dataclass(slots=True, eq=False)
class Scratch:
    """Memory private to a thread while the kernel runs; elements and alignment (bytes) are static.

    zeroed: all its bytes are 0 when the kernel starts, otherwise they may be anything.
    """

    name: str
    dtype: DType
    elements: int
    align: int = 64
    zeroed: bool = False

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes


Memory: TypeAlias = BufferArg | Scratch
