"""Which keys the queries of a block can meet where sequences lie packed in a row.

Two kernels find that out before attention. The first takes the least and the largest segment, and position, of every
block; the second gives each block of queries the first and the last block of keys whose numbers reach its own, and a
run of blocks that all of its queries see whole. Attention then walks these alone, and masks nothing in the run. Numbers
in order, as packed sequences have them, leave nothing between that is not met; others are walked as far as they may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import DimSpace, Expr, ceildiv, floordiv, maximum, minimum
from tilewright.ir.dtypes import I32, I64
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.attention_tiling.sizes import placed
from tilewright.passes.lower_to_tile.access import UNIT, Space
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, dims_of
from tilewright.passes.lower_to_tile.layout import Walk, strides_along

_LANES: Final = 64  # blocks of keys that are held against a block of queries at once
_ENDS: Final = (
    minimum,
    maximum,
    maximum,
    minimum,
)  # of several blocks' begins and ends: of keys met, of keys seen whole

Bounds = tuple[SSAValue, SSAValue]


@dataclass(frozen=True)
class KeyRanges:
    """The ranges of keys of an attention with segments. block: queries, and keys, of a block."""

    op: AttentionOp
    block: int

    @staticmethod
    def of(op: AttentionOp, block: int, dims: DimSpace) -> KeyRanges | None:
        """None where nothing is packed, or one block has all keys."""
        most = dims.interval(tensor(op.k).dims[-2])[1]
        packed = op.segments is not None and (most is None or most > block)
        return KeyRanges(op, block) if packed else None

    @property
    def numbers(self) -> list[SSAValue]:
        """Segments and, where the mask goes by positions in memory, those of queries and of keys."""
        op, found = self.op, [self.op.segments]
        positions = [op.q_positions, op.k_positions]
        if op.mask.data != "none" and all(isinstance(value, BlockArgument) for value in positions):
            found += positions
        return [value for value in found if value is not None]

    @property
    def tells_whole(self) -> bool:
        """Whether a run of keys that all see is one by the mask, too, or the mask's own rule says where that ends."""
        mask = self.op.mask.data
        return mask == "none" or len(self.numbers) > 1 or (mask == "causal" and placed(self.op) is not None)

    @property
    def count(self) -> Expr:
        """Blocks of a row of the batch."""
        return ceildiv(tensor(self.op.k).dims[-2], self.block)

    @property
    def leads(self) -> list[Expr]:
        """The leading dims of q, 1 where no number varies along one."""
        whole = tensor(self.op.q).dims[:-3]
        given = [[Expr.of(1)] * (len(whole) + 1 - tensor(x).rank) + list(tensor(x).dims[:-1]) for x in self.numbers]
        return [n if any(dims[i].constant != 1 for dims in given) else Expr.of(1) for i, n in enumerate(whole)]

    def lowered(self, group: GroupOp, name: str) -> Lowered:
        """The launches before the attention's, whose results are where the blocks' keys begin and end."""
        kernels = [self._bounds(group, f"{name}_bounds"), self._ranges(group, f"{name}_ranges")]
        made: Lowered | None = None
        for kernel in kernels:
            made = Lowered((Variant(kernel),), tuple(kernel.dims.data), Expr.of(0), first=made)
        assert made is not None
        return made

    def inputs(self, b: KernelBuilder) -> list[SSAValue]:
        """The buffers of where keys begin and end, as further inputs of a kernel."""
        return [b.buffer([*self.leads, self.count], I32) for _ in _ENDS]

    def at(
        self,
        b: KernelBuilder,
        ranges: Sequence[SSAValue],
        space: Space,
        walk: Walk,
        at: Mapping[int, SSAValue],
        queries: tuple[SSAValue, int],
    ) -> tuple[Bounds, Bounds]:
        """Where the keys of a tile of queries begin and end, and those that all of it sees. queries: its first, and
        how many it has."""
        dims = [*self.leads, self.count]
        axes = zip(space.maps[self.op.out][:-3], self.leads, strict=True)
        own = [UNIT if n.constant == 1 else axis for axis, n in axes]
        steps = strides_along(space, own, ViewOp.row_major(dims)[:-1])
        placed = {i: step for i, step in enumerate(walk.strides(steps)) if step is not None}
        first, rows = queries
        # tiles begin at multiples of their rows
        even = self.block % rows == 0 or rows % self.block == 0
        blocks = -(-rows // self.block) if even else (rows - 2) // self.block + 2
        numbers = [minimum(floordiv("a0", self.block) + i, self.count - 1) for i in range(blocks)]
        found = []
        for buffer in ranges:
            view = b.view(buffer, [*(walk.extents[i] for i in placed), self.count], [*placed.values(), Expr.of(1)])
            found.append([b.scalar(view, [*(at[i] for i in placed), b.index(n, first)]) for n in numbers])
        names = [Expr.of(f"a{i}") for i in range(blocks)]
        ends = [b.index(reduce(end, names), *of_blocks) for end, of_blocks in zip(_ENDS, found, strict=True)]
        return (ends[0], ends[1]), (ends[2], ends[3])

    def _begin(self, group: GroupOp, name: str) -> tuple[KernelBuilder, dict[SSAValue, SSAValue]]:
        b = KernelBuilder(name, dims_of(group), like=group)
        return b, {arg: b.buffer(tensor(arg).dims, tensor(arg).dtype) for arg in group.block.args}

    def _bounds(self, group: GroupOp, name: str) -> KernelOp:
        """The least and the largest of each of the numbers in a block."""
        b, buffers = self._begin(group, name)
        keys, dims = tensor(self.op.k).dims[-2], [*self.leads, self.count]
        outputs = [(b.output(dims, I64), b.output(dims, I64)) for _ in self.numbers]
        *lead, key = b.grid([*self.leads, keys], [*[1] * len(self.leads), self.block])
        inside = b.map("lt", b.coordinates(key, 1, (1, self.block)), b.splat(keys, (1, 1)))
        place = b.index(floordiv("a0", self.block), key)
        ones = [1] * len(lead)
        for value, both in zip(self.numbers, outputs, strict=True):
            own = [Expr.of(1)] * (len(lead) + 1 - tensor(value).rank) + list(tensor(value).dims)
            steps = [Expr.of(0) if n.constant == 1 else s for n, s in zip(own, ViewOp.row_major(own), strict=True)]
            view = b.view(buffers[value], [*self.leads, keys], [*steps[:-1], Expr.of(1)])
            loaded = b.cast(b.reshape(b.load(view, [*lead, key], [*ones, self.block], 0.0), (1, self.block)), I64)
            for kind, none, buffer in zip(("min", "max"), (float("inf"), float("-inf")), both, strict=True):
                kept = b.map("select", inside, loaded, b.constant(none, (1, 1), I64))
                b.store(b.reshape(b.reduce(kind, kept, 1), (*ones, 1)), b.dense(buffer), [*lead, place])
        return b.finish()

    def _ranges(self, group: GroupOp, name: str) -> KernelOp:
        """Where the first block of keys begins that a block of queries can meet, and where the last one ends."""
        b, _ = self._begin(group, name)
        dims = [*self.leads, self.count]
        views = [[b.dense(b.buffer(dims, I64)) for _ in range(2)] for _ in self.numbers]
        outputs = [b.output(dims, I32) for _ in _ENDS]
        *lead, place = b.grid(dims, [1] * len(dims))
        ones = [1] * len(lead)

        def taken(both: Sequence[SSAValue], first: SSAValue, count: int) -> Bounds:
            least, most = (b.reshape(b.load(view, [*lead, first], [*ones, count], 0.0), (1, count)) for view in both)
            return least, most

        own = [taken(both, place, 1) for both in views]
        count, none = b.splat(self.count, (1, 1)), b.constant(0, (1, 1), I32)
        # of a block of keys, how many there are when it ends, in whole blocks
        whole = b.splat(floordiv(tensor(self.op.k).dims[-2], self.block), (1, 1))

        def edge(kind: str, kept: SSAValue, at: SSAValue, otherwise: SSAValue, so_far: SSAValue) -> SSAValue:
            return b.map(kind, so_far, b.reduce(kind, b.map("select", kept, at, otherwise), 1))

        with b.loop(0, b.index(self.count), _LANES, [count, none, count]) as loop:
            at = b.coordinates(loop.at, 1, (1, _LANES))
            met, seen = self._met(b, own, [taken(both, loop.at, _LANES) for both in views])
            met, seen = b.map("and", met, b.map("lt", at, count)), b.map("and", seen, b.map("lt", at, whole))
            after = b.map("add", at, b.constant(1, (1, 1), I32))
            begin, end, run = loop.carried
            loop.give(edge("min", met, at, count, begin), edge("max", met, after, none, end),
                      edge("min", seen, at, count, run))  # fmt: skip
        begin, end, run = loop.out
        with b.loop(0, b.index(self.count), _LANES, [count]) as loop:
            at = b.coordinates(loop.at, 1, (1, _LANES))
            _, seen = self._met(b, own, [taken(both, loop.at, _LANES) for both in views])
            seen = b.map("or", b.map("and", seen, b.map("lt", at, whole)), b.map("lt", at, run))
            loop.give(edge("min", b.map("not", seen), at, count, loop.carried[0]))
        for value, buffer in zip((begin, end, run, loop.out[0]), outputs, strict=True):
            keys = b.map("mul", value, b.constant(self.block, (1, 1), I32))
            b.store(b.reshape(keys, (*ones, 1)), b.dense(buffer), [*lead, place])
        return b.finish()

    def _met(self, b: KernelBuilder, queries: Sequence[Bounds], keys: Sequence[Bounds]) -> Bounds:
        """Whether any pair may be seen of a block of queries and blocks of keys with such numbers, and whether all
        are."""

        def both(*parts: SSAValue) -> SSAValue:
            return reduce(lambda x, y: b.map("and", x, y), parts)

        def reach(x: Bounds, y: Bounds) -> SSAValue:
            return both(b.map("le", x[0], y[1]), b.map("le", y[0], x[1]))

        def equal(x: Bounds, y: Bounds) -> SSAValue:
            return both(b.map("eq", x[0], x[1]), b.map("eq", x[0], y[0]), b.map("eq", x[0], y[1]))

        met, seen = reach(queries[0], keys[0]), equal(queries[0], keys[0])
        if len(self.numbers) == 1:
            return met, seen
        of_queries, of_keys = queries[1], keys[2]
        (q_least, q_most), (k_least, k_most) = of_queries, of_keys
        met, seen = both(met, b.map("le", k_least, q_most)), both(seen, b.map("le", k_most, q_least))
        width = b.constant(self.op.window.data, (1, 1), I64)
        if self.op.mask.data == "sliding":
            met = both(met, b.map("lt", b.map("sub", q_least, k_most), width))
            seen = both(seen, b.map("lt", b.map("sub", q_most, k_least), width))
        elif self.op.mask.data == "chunked":
            q_chunks, k_chunks = (
                (b.map("floordiv", x[0], width), b.map("floordiv", x[1], width)) for x in (of_queries, of_keys)
            )
            met, seen = both(met, reach(q_chunks, k_chunks)), both(seen, equal(q_chunks, k_chunks))
        return met, seen
