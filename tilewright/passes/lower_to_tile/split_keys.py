"""Keys cut into parts (split-kv, key-outer): a kernel leaves the sums of every part in memory, and one merges them.

Parts begin at absolute keys and are merged from left to right, so that a row has the bits that it has where one program
walks all of its keys (`online_softmax.py`): how many programs share a head, and in which order they run, is no question
of numbers. Of parts that a mask hides from a tile of queries empty sums are left, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, ceildiv, floordiv, maximum, minimum, product
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.passes.lower_to_tile.frame import begin, dims_of
from tilewright.passes.lower_to_tile.online_softmax import OnlineSoftmax

Buffers = Mapping[SSAValue, SSAValue]


@dataclass(frozen=True)
class Parts:
    """The parts of an attention's keys, `keys` each. merging: whether a kernel merges their sums or leaves them. outer:
    whether the programs of one part follow one another (key-outer), or those of one tile of queries (split-kv).

    Sums are three buffers of f32 [parts, rows, n]: maxima and denominators with n = 1, unnormalised results.
    """

    op: AttentionOp
    keys: int
    merging: bool
    outer: bool

    @property
    def count(self) -> Expr:
        """How many there are."""
        return ceildiv(tensor(self.op.k).dims[-2], self.keys)

    def begin(
        self, group: GroupOp, name: str, more: Callable[[KernelBuilder], None]
    ) -> tuple[KernelBuilder, Buffers, list[SSAValue], list[SSAValue]]:
        """A builder with the group's arguments, its results (none where sums are left), and the sums' buffers. more:
        declares further inputs of the kernel that leaves them."""
        wide = tensor(self.op.v).dims[-1]
        dims = [[self.count, product(tensor(self.op.out).dims[:-1]), n] for n in (Expr.of(1), Expr.of(1), wide)]
        if self.merging:
            sums: list[SSAValue] = []
            b, buffers, outputs = begin(group, name, lambda b: sums.extend(b.buffer(d, F32) for d in dims))
            return b, buffers, outputs, sums
        b = KernelBuilder(name, dims_of(group), like=group)
        buffers = {arg: b.buffer(tensor(arg).dims, tensor(arg).dtype) for arg in group.block.args}
        more(b)
        return b, buffers, [], [b.output(d, F32) for d in dims]

    def order(self, axes: int, keyed: frozenset[int]) -> list[tuple[int, int]] | None:
        """The order of the programs that leave sums, on a grid of so many axes of rows and then one of parts; None for
        the axes' own. keyed: the axes along which keys differ."""
        if not self.outer:
            return None
        rows = range(axes)
        return [(i, 1) for i in (*(i for i in rows if i in keyed), axes, *(i for i in rows if i not in keyed))]

    def bounds(self, b: KernelBuilder, part: SSAValue, lo: SSAValue, hi: SSAValue) -> tuple[SSAValue, SSAValue]:
        """What a part has of the keys lo..hi."""
        first = b.index(maximum(Expr.of("a0") * self.keys, "a1"), part, lo)
        end = minimum((Expr.of("a1") + 1) * self.keys, "a2")
        return first, b.index(maximum("a0", end), first, part, hi)

    def seen(self, b: KernelBuilder, lo: SSAValue, hi: SSAValue) -> tuple[SSAValue, SSAValue]:
        """The first and one past the last of the parts that have any of the keys lo..hi."""
        some = minimum(1, maximum(0, Expr.of("a1") - "a0"))
        return b.index(floordiv("a0", self.keys), lo), b.index(ceildiv("a1", self.keys) * some, lo, hi)


@dataclass(frozen=True)
class Sums:
    """The sums' buffers as a kernel's rows address them. extents: of the axes of rows, in the grid's order."""

    b: KernelBuilder
    buffers: Sequence[SSAValue]
    extents: Sequence[Expr]

    def _view(self, buffer: SSAValue, count: Expr, size: int) -> SSAValue:
        dims = [count, *self.extents, Expr.of(size)]
        return self.b.view(buffer, dims, [product(dims[axis + 1 :]) for axis in range(len(dims))])

    def store(
        self, parts: Parts, part: SSAValue, rows: Sequence[SSAValue], tile: Sequence[int], state: Sequence[SSAValue]
    ) -> None:
        """A part's m, l and o. rows, tile: where the tile of rows begins along each axis, and its extents."""
        for buffer, value, size in zip(self.buffers, state, self._sizes(parts), strict=True):
            shaped = self.b.reshape(value, (1, *tile, size))
            self.b.store(shaped, self._view(buffer, parts.count, size), [part, *rows, 0])

    def merged(
        self,
        parts: Parts,
        softmax: OnlineSoftmax,
        rows: Sequence[SSAValue],
        tile: Sequence[int],
        sinks: SSAValue | None,
        seen: tuple[SSAValue, SSAValue],
    ) -> list[SSAValue]:
        """m, l and o of the parts that a tile sees, and of sinks before them."""
        b = self.b
        views = [
            (self._view(buffer, parts.count, size), size)
            for buffer, size in zip(self.buffers, self._sizes(parts), strict=True)
        ]
        with b.loop(*seen, 1, softmax.start(sinks)) as loop:
            brought = [
                b.reshape(b.load(view, [loop.at, *rows, 0], [1, *tile, size], 0.0), (softmax.rows, size))
                for view, size in views
            ]
            loop.give(*softmax.merged(loop.carried, brought))
        return loop.out

    def _sizes(self, parts: Parts) -> tuple[int, int, int]:
        return 1, 1, tensor(parts.op.v).dims[-1].constant or 0
