"""Lines of memory: a tensor seen as [outer, line, inner] around the one axis that a skeleton works along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.tile.builder import KernelBuilder

COPIED = 256  # elements of a line of single elements that are copied at a time


@dataclass(frozen=True, slots=True)
class Lines:
    """The axes before a line taken together, its length, and the axes after it taken together."""

    outer: Expr
    length: Expr
    inner: Expr

    @staticmethod
    def of(dims: Sequence[Expr], axis: int) -> Lines:
        return Lines(product(dims[:axis]), dims[axis], product(dims[axis + 1 :]))

    def view(self, b: KernelBuilder, buffer: SSAValue, length: Expr | None = None) -> SSAValue:
        """A whole row-major buffer as lines, of this length or another."""
        long = self.length if length is None else length
        return b.view(buffer, [self.outer, long, self.inner], [long * self.inner, self.inner, 1])


def copy_lines(
    b: KernelBuilder,
    source: SSAValue,
    target: SSAValue,
    at: tuple[SSAValue, SSAValue],
    length: Expr | int,
    columns: int = 1,
) -> None:
    """Copies the first elements of the lines at (outer, inner) and the columns beside it."""
    outer, inner = at
    height = COPIED if columns == 1 else 1
    with b.loop(0, length, height) as loop:
        tile = b.load(source, [outer, loop.at, inner], [1, height, columns])
        b.store(tile, target, [outer, loop.at, inner])
