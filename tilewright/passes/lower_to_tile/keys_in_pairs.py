"""Keys and values brought into pairs once a key head, by a launch before the attention whose matrix unit takes them so.

Every tile of queries of every query head would bring a segment's keys and values into pairs again. What it reads
instead lies segment after segment, each as the unit's right-hand sides: panels of pairs, keys beyond the last one zero.
The elements and the order of their products are the same, and so are all bits. One tile of queries gains nothing: where
there are no more queries than `least`, both launches' buffers are empty, and kernels of few queries read keys as they
lie.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr, ceildiv, floordiv, minimum, product
from tilewright.ir.dtypes import BF16
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import MatrixUnit
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.attention_tiling.sizes import hides_keys
from tilewright.passes.lower_to_tile.attention_axes import Walked, keys_or_values
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, dims_of
from tilewright.passes.lower_to_tile.packing import matrix_of_pairs, pairs_of, panels_of_pairs


@dataclass(frozen=True)
class KeysInPairs:
    """The pairs of an attention's keys and values, which a launch makes and kernels of more than `least` queries read.

    Each of the two buffers is [0 or 1, key heads of all batches, segments, panels, pairs, columns, 2]: the pairs are of
    features where it has keys, of keys where it has values. segment: keys of one, whole steps of the unit. fewest: the
    fewest queries that there can be.
    """

    op: AttentionOp
    unit: MatrixUnit
    segment: int
    least: int
    fewest: int

    @property
    def present(self) -> Expr:
        """1 where there are more queries than `least`, else 0."""
        queries = tensor(self.op.q).dims[-2]
        return Expr.of(1) if self.fewest > self.least else minimum(1, floordiv(queries, self.least + 1))

    @property
    def segments(self) -> Expr:
        """How many there are."""
        return ceildiv(tensor(self.op.k).dims[-2], self.segment)

    @property
    def _panels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The extents of a segment's keys and values."""
        size, value_size = (tensor(x).dims[-1].constant or 0 for x in (self.op.k, self.op.v))
        width = self.unit.columns
        return (
            (self.segment // width, size // 2, width, 2),
            (value_size // width, self.segment // 2, width, 2),
        )

    def axes(self, walked: Walked) -> list[int]:
        """The axes of the walk that key heads and batches are."""
        found = walked.along(self.op.k) | walked.along(self.op.v)
        if self.op.valid is not None and hides_keys(self.op):
            found |= walked.along(self.op.valid)
        return sorted(found.intersection(walked.grid) - {walked.t})

    def dims(self, walked: Walked) -> list[list[Expr]]:
        """Of the two buffers."""
        heads = product([walked.walk.extents[i] for i in self.axes(walked)])
        return [[self.present, heads, self.segments, *map(Expr.of, panels)] for panels in self._panels]

    def buffers(self, b: KernelBuilder, walked: Walked) -> list[SSAValue]:
        """The two as further inputs of a kernel."""
        return [b.buffer(dims, BF16) for dims in self.dims(walked)]

    def _view(self, b: KernelBuilder, walked: Walked, buffer: SSAValue, panels: tuple[int, ...]) -> SSAValue:
        heads = [walked.walk.extents[i] for i in self.axes(walked)]
        dims = [self.present, *heads, self.segments, *map(Expr.of, panels)]
        return b.view(buffer, dims, ViewOp.row_major(dims))

    def load(
        self, b: KernelBuilder, walked: Walked, buffers: list[SSAValue], at: dict[int, SSAValue], place: SSAValue,
        segment: SSAValue,
    ) -> tuple[SSAValue, SSAValue]:  # fmt: skip
        """A segment's keys [features, keys] and values [keys, features]. at: by axis of the walk; place: along the
        buffers' first axis."""
        heads = [at[i] for i in self.axes(walked)]
        found = []
        for buffer, panels in zip(buffers, self._panels, strict=True):
            view = self._view(b, walked, buffer, panels)
            loaded = b.load(view, [place, *heads, segment, 0, 0, 0, 0], [1] * (len(heads) + 2) + [*panels], 0.0)
            found.append(matrix_of_pairs(b, b.reshape(loaded, panels)))
        keys, values = found
        return keys, values

    def lower(self, group: GroupOp, name: str) -> Lowered:
        """The launch that makes them: a program for each segment of a key head."""
        op, walked = self.op, Walked.of(group, self.op)
        b = KernelBuilder(name, dims_of(group), like=group)
        buffers: dict[SSAValue, SSAValue] = {
            arg: b.buffer(tensor(arg).dims, tensor(arg).dtype) for arg in group.block.args
        }
        targets = [b.output(d, BF16) for d in self.dims(walked)]
        axes = self.axes(walked)
        sizes = [*(walked.walk.extents[i] for i in axes), self.segments, self.present]
        *heads, segment, place = b.grid(sizes, [1] * len(sizes))
        at = {i: b.index(0) for i in range(len(walked.walk.members))}
        at.update(zip(axes, heads, strict=True))
        at[walked.s] = b.index(Expr.of("a0") * self.segment, segment)
        extent = dict.fromkeys(at, 1)
        size, value_size = walked.features
        extent.update({walked.s: self.segment, walked.e: size, walked.d: value_size})
        of_keys = Emitter(b, walked.space, walked.walk, buffers, walked.strides, at, walked.s, walked.e, extent)
        of_values = replace(of_keys, column=walked.d)
        k = keys_or_values(of_keys, op.k, (self.segment, size))
        v = keys_or_values(of_values, op.v, (self.segment, value_size))
        if op.valid is not None and hides_keys(op):
            of_mask = replace(of_keys, row=None, column=walked.s)
            given = isinstance(op.valid, BlockArgument)
            v = without_hidden(b, v, of_mask.load(op.valid, 0.0) if given else of_mask.tile(op.valid))
        for target, panels, x, turned in zip(targets, self._panels, (k, v), (True, False), strict=True):
            made = panels_of_pairs(b, pairs_of(b, x, turned=turned), self.unit.columns)
            shaped = b.reshape(made, [1] * (len(heads) + 2) + [*panels])
            b.store(shaped, self._view(b, walked, target, panels), [place, *heads, segment, 0, 0, 0, 0])
        return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))


def without_hidden(b: KernelBuilder, v: SSAValue, seen: SSAValue) -> SSAValue:
    """v, but zero at keys that no query may see: those contribute nothing, not even 0 * NaN. seen: [1, keys]."""
    keys, _ = tile(v).extents
    seen = b.broadcast(seen, (1, keys))
    return b.map("select", b.reshape(seen, (keys, 1)), v, b.constant(0.0, (1, 1), tile(v).dtype))
