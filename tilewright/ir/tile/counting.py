"""What is counted of a kernel, and by which key: the same for the tile interpreter, the closed forms and other
executors.

Program traffic: elements that tile loads, stores and stages name, clipped to bounds, and the integers read to index
with. A load through `rows` reads one index a lane inside along that axis, through `pages` one table entry a page
touched, a `scalar` one integer, a `segment` two offsets. A stage of a loaded tile moves the lanes that were inside,
of any other tile all its lanes. Work is FLOPs issued on static extents, masked lanes included.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

from xdsl.ir import Operation, SSAValue

from tilewright.ir.tile.structure import KernelOp

Kind = Literal["read", "write", "stage", "matrix", "vector"]

MEMORY = "memory"  # the level that buffers live in


class Quantity(NamedTuple):
    """One thing counted: by which op (its number in the kernel's walk), what, and of which buffer (its number) or
    level."""

    op: int
    kind: Kind
    buffer: int | None = None
    level: str = ""


class Counts(Counter[Quantity]):
    """Bytes or elements by quantity, and FLOPs; a missing quantity is 0, so two executors compare with `==`."""

    def of(self, kind: Kind) -> int:
        """The sum over all quantities of a kind."""
        return sum(n for quantity, n in self.items() if quantity.kind == kind)

    @property
    def read(self) -> int:
        return self.of("read")

    @property
    def write(self) -> int:
        return self.of("write")

    @property
    def matrix(self) -> int:
        return self.of("matrix")

    @property
    def vector(self) -> int:
        return self.of("vector")

    @property
    def buffers(self) -> dict[int, dict[Kind, int]]:
        """Reads and writes of each buffer, by its number."""
        found: dict[int, dict[Kind, int]] = {}
        for quantity, n in self.items():
            if quantity.buffer is not None:
                sums = found.setdefault(quantity.buffer, {"read": 0, "write": 0})
                sums[quantity.kind] += n
        return dict(sorted(found.items()))

    @property
    def levels(self) -> dict[str, int]:
        """Everything moved at each level: buffers at "memory", stages at theirs."""
        found: Counter[str] = Counter()
        for quantity, n in self.items():
            if quantity.level:
                found[quantity.level] += n
        return dict(found)


class Counters:
    """What one or more runs of a kernel moved and did: in elements, and in bytes of storage (FLOPs are in both)."""

    def __init__(self) -> None:
        self.elements = Counts()
        self.bytes = Counts()

    def add(self, quantity: Quantity, elements: int, size: int = 1) -> None:
        """Counts elements of `size` bytes each."""
        self.elements[quantity] += elements
        self.bytes[quantity] += elements * size


def op_numbers(kernel: KernelOp) -> dict[Operation, int]:
    """The number of each op: its position in the kernel's walk, the kernel itself being 0."""
    return {op: number for number, op in enumerate(kernel.walk())}


def buffer_numbers(kernel: KernelOp) -> dict[SSAValue, int]:
    """The number of each buffer: inputs first, then outputs."""
    return {value: number for number, value in enumerate(kernel.buffers)}
