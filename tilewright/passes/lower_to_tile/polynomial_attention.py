"""The polynomial attention skeleton: one program a key head keeps the sums of its blocks of features while keys and
values stream past, then queries, each once.

Without a mask all keys pass first. With a causal one, chunks of queries and keys pass together: a chunk meets itself by
its own products, and what came before it by the sums. A flag in memory sends the queries of a head to exact attention
instead, in the same kernel: of the two walks one has no iterations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import DimSpace, Expr, minimum
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.polynomial_attention import PolynomialAttentionOp, pairs
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import tile as tile_type
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import UNIT, Axis, Space, map_group, unsupported
from tilewright.passes.lower_to_tile.attention_axes import keys_or_values
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, all_strides, begin
from tilewright.passes.lower_to_tile.layout import Strides, Walk, merge_axes
from tilewright.passes.lower_to_tile.online_softmax import OnlineSoftmax, Segment


def lower_polynomial_attention(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """One kernel: tiles of the op's chunk, of queries and of keys alike."""
    op = next(op for op in group.block.ops if isinstance(op, PolynomialAttentionOp))
    kernel = _Kernel(group, op, name, machine).build(dims)
    return Lowered((Variant(kernel),), tuple(kernel.dims.data), Expr.of(0))


class _Axes:
    """The space's axes: query heads of a key head h, queries t, keys s, features of q and k (e), of v (d), of the
    result and of partial sums."""

    h: tuple[int, ...]
    t: tuple[int, ...]
    s: int
    e: int
    d: int
    out: int
    partial: int


def _seed(space: Space, op: PolynomialAttentionOp, axes: _Axes) -> None:
    q, k, v = tensor(op.q), tensor(op.k), tensor(op.v)
    heads = space.maps[op.out][-3]
    if op.group > 1 and heads.axes and k.dims[-3].constant != 1:
        space.split(heads.axes[0], k.dims[-3], Expr.of(op.group))
    out = space.maps[op.out]
    lead, heads, t, last = out[:-3], out[-3], out[-2], out[-1]
    kv_heads = UNIT if k.dims[-3].constant == 1 else Axis(heads.axes[:1])
    axes.h, axes.t = heads.axes[0 if kv_heads is UNIT else 1 :], t.axes
    fresh = {n: space.new(size) for n, size in (("s", k.dims[-2]), ("e", q.dims[-1]))}
    axes.s, axes.e = fresh["s"], fresh["e"]
    # of one column, or of one query, there is no axis
    axes.out = last.axes[0] if last.axes else space.new(Expr.of(1))
    axes.d = axes.out if op.ends else space.new(v.dims[-1])
    axes.partial = axes.out if not op.ends else space.new(v.dims[-1] + 1)

    def trimmed(value: SSAValue, full: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(UNIT if n.constant == 1 else a for n, a in zip(tensor(value).dims, full, strict=True))

    keys = Axis((axes.s,))
    space.maps[op.q] = trimmed(op.q, (*lead, heads, t, Axis((axes.e,))))
    space.maps[op.k] = trimmed(op.k, (*lead, kv_heads, keys, Axis((axes.e,))))
    space.maps[op.v] = trimmed(op.v, (*lead, kv_heads, keys, Axis((axes.d,))))
    space.maps[op.exact] = trimmed(op.exact, (*lead, kv_heads))
    if op.partial is not None:
        space.maps[op.partial] = trimmed(op.partial, (*lead, heads, t, Axis((axes.partial,))))


@dataclass
class _Sums:
    """Sums over keys: for each block of features those of features times values [features, value features], and those
    of features [features, 1]; of block 0 also of values alone [1, value features]."""

    values: SSAValue | None
    weighted: list[SSAValue]
    plain: list[SSAValue]

    def flat(self) -> list[SSAValue]:
        return [*([self.values] if self.values is not None else []), *self.weighted, *self.plain]

    def of(self, flat: Sequence[SSAValue]) -> _Sums:
        """Other tiles in the places of these."""
        rest = list(flat)
        values = rest.pop(0) if self.values is not None else None
        return _Sums(values, rest[: len(self.weighted)], rest[len(self.weighted) :])


class _Kernel:
    def __init__(self, group: GroupOp, op: PolynomialAttentionOp, name: str, machine: Machine) -> None:
        self.group, self.op, self.name, self.machine = group, op, name, machine
        self.block = op.chunk.data
        self.features = op.features
        self.value_features = tensor(op.v).dims[-1].constant or 0
        chosen = range(op.first.data, op.last.data)
        self.begins = 0 in chosen
        # the pairs of parts of each block; None for block 0
        self.blocks = [pairs(self.features)[n - 1] if n else None for n in chosen]
        self.causal = op.mask.data == "causal"

    def build(self, dims: DimSpace) -> KernelOp:
        op, axes = self.op, _Axes()
        self.space = map_group(self.group, op, lambda s: None if op.q in s.maps else _seed(s, op, axes))
        strides = all_strides(self.space, self.group)
        if len(axes.t) > 1 or len(axes.h) > 1:
            raise unsupported(op, "the queries or their heads are split into several axes")
        inner = dict.fromkeys([*axes.h, *axes.t, axes.s, axes.e, axes.d, axes.out, axes.partial])
        walk = merge_axes(
            self.space, [*(a for a in self.space.order if a not in inner), *inner], strides, frozenset(inner)
        )
        place = {members[0]: i for i, members in enumerate(walk.members) if len(members) == 1}
        self.h = place[axes.h[0]] if axes.h else None
        self.t = place[axes.t[0]] if axes.t else None
        self.s, self.e, self.d = place[axes.s], place[axes.e], place[axes.d]
        self.out, self.partial = place[axes.out], place[axes.partial]
        self.b, self.buffers, self.outputs = begin(self.group, self.name)
        self.walk, self.strides = walk, strides
        self.extent = dict.fromkeys(range(len(walk.members)), 1)
        self.extent |= {self.s: self.block, self.e: self.features, self.d: self.value_features}
        self.extent[self.out] = self.value_features if op.ends else self.value_features + 1
        self.extent[self.partial] = self.extent[self.out] if not op.ends else self.value_features + 1
        if self.t is not None:
            self.extent[self.t] = self.block
        within = {self.h, self.t, self.s, self.e, self.d, self.out, self.partial}
        grid = [i for i in range(len(walk.members)) if i not in within]
        coordinates = self.b.grid([walk.extents[i] for i in grid] or [1], [1] * max(1, len(grid)))
        zero = self.b.index(0)
        self.at: dict[int, SSAValue] = dict.fromkeys(range(len(walk.members)), zero)
        self.at.update(zip(grid, coordinates, strict=False))
        self._walks(dims)
        return self.b.finish()

    def _walks(self, dims: DimSpace) -> None:
        b = self.b
        queries, keys = tensor(self.op.q).dims[-2], tensor(self.op.k).dims[-2]
        flag = b.scalar(*self._scalar(self.strides[self.op.exact], self.walk))
        self._approximate(b.index(queries - queries * Expr.of("a0"), flag), b.index(keys - keys * Expr.of("a0"), flag))
        with self._queries(b.index(queries * Expr.of("a0"), flag)):
            rows = self._rows
            if not self.op.ends:
                self._store(b.constant(0.0, (rows, self.value_features + 1)))
            else:
                self._store(self._exactly(keys, dims))

    def _scalar(self, strides: Strides, walk: Walk) -> tuple[SSAValue, list[SSAValue]]:
        """A view of one integer, and where it is read."""
        steps = walk.strides(strides)
        found = [(i, step) for i, step in enumerate(steps) if step is not None]
        extents, places = [walk.extents[i] for i, _ in found], [self.at[i] for i, _ in found]
        buffer = self.buffers[self.op.exact]
        if not found:
            return self.b.view(buffer, [1], [1], strides.offset), [self.b.index(0)]
        return self.b.view(buffer, extents, [step for _, step in found], strides.offset), places

    # --- tiles --------------------------------------------------------------------------------------------------------

    @property
    def _rows(self) -> int:
        """Of a tile of queries."""
        return self.block if self.t is not None else 1

    def _emitter(self, row: int | None, column: int) -> Emitter:
        return Emitter(
            self.b, self.space, self.walk, self.buffers, self.strides, dict(self.at), row, column, self.extent
        )

    def _query_tile(self) -> SSAValue:
        """Scaled queries [rows, features] in f32."""
        wide = self.b.cast(keys_or_values(self._emitter(self.t, self.e), self.op.q, (self._rows, self.features)), F32)
        return self.b.map("mul", wide, self.b.constant(self.op.scale.data, (1, 1)))

    def _keys(self) -> tuple[SSAValue, SSAValue]:
        """A tile of keys, features first, and of values, in f32; zeros past the last key."""
        b, op = self.b, self.op
        k = keys_or_values(self._emitter(self.s, self.e), op.k, (self.block, self.features))
        v = keys_or_values(self._emitter(self.s, self.d), op.v, (self.block, self.value_features))
        return b.transpose(b.cast(k, F32), (1, 0)), b.cast(v, F32)

    def _store(self, tile: SSAValue) -> None:
        result = self._emitter(self.t, self.out)
        result.set(self.op.out, tile)
        for value, output in zip(self.group.yielded, self.outputs, strict=True):
            result.store(value, output, result.tile(value))

    @contextmanager
    def _queries(self, end: SSAValue) -> Iterator[None]:
        """Every tile of queries before an end, of every query head."""
        with self._heads(), self.b.loop(0, end, self._rows) as loop:
            if self.t is not None:
                self.at[self.t] = loop.at
            yield

    @contextmanager
    def _heads(self) -> Iterator[None]:
        if self.h is None:
            yield
            return
        with self.b.loop(0, self.op.group, 1) as loop:
            self.at[self.h] = loop.at
            yield

    # --- the polynomial -----------------------------------------------------------------------------------------------

    def _approximate(self, queries: SSAValue, keys: SSAValue) -> None:
        b = self.b
        sums = self._zeros()
        if not self.causal:
            with b.loop(0, keys, self.block, sums.flat()) as loop:
                self.at[self.s] = loop.at
                loop.give(*self._added(sums.of(loop.carried), *self._keys()).flat())
            sums = sums.of(loop.out)
            with self._queries(queries):
                count = b.splat(tensor(self.op.k).dims[-2], (1, 1))
                self._finish(sums, b.cast(count, F32), None)
            return
        with b.loop(0, queries, self.block, sums.flat()) as loop:
            self.at[self.s] = loop.at
            before = sums.of(loop.carried)
            turned, values = self._keys()
            with self._heads():
                if self.t is not None:
                    self.at[self.t] = loop.at
                self._finish(before, b.cast(b.splat(loop.at, (1, 1)), F32), (turned, values))
            loop.give(*self._added(before, turned, values).flat())

    def _zeros(self) -> _Sums:
        b, wide = self.b, self.value_features
        sizes = [
            self.features if pair is None else (pair[0][1] - pair[0][0]) * (pair[1][1] - pair[1][0])
            for pair in self.blocks
        ]
        return _Sums(
            b.constant(0.0, (1, wide)) if self.begins else None,
            [b.constant(0.0, (n, wide)) for n in sizes],
            [b.constant(0.0, (n, 1)) for n in sizes],
        )

    def _added(self, sums: _Sums, turned: SSAValue, values: SSAValue) -> _Sums:
        """The sums with a tile of keys, features first, and their values."""
        b = self.b
        total = sums.values
        if total is not None:
            total = b.map("add", total, b.reduce("sum", values, 0))
        added = _Sums(total, [], [])
        # one block after the other, so that the features of one are near at a time
        for pair, weighted, plain in zip(self.blocks, sums.weighted, sums.plain, strict=True):
            features = turned if pair is None else self._products(turned, *pair)
            added.weighted.append(b.dot(features, values, weighted))
            added.plain.append(b.map("add", plain, b.reduce("sum", features, 1)))
        return added

    def _products(self, turned: SSAValue, first: tuple[int, int], second: tuple[int, int]) -> SSAValue:
        """Products of two parts of the features of keys, [features, keys]."""
        b, n = self.b, self.block
        wide, narrow = first[1] - first[0], second[1] - second[0]
        x = b.reshape(b.slice(turned, [first[0], 0], [first[1], n]), (wide, 1, n))
        y = b.reshape(b.slice(turned, [second[0], 0], [second[1], n]), (1, narrow, n))
        extents = (wide, narrow, n)
        return b.reshape(b.map("mul", b.broadcast(x, extents), b.broadcast(y, extents)), (wide * narrow, n))

    def _finish(self, sums: _Sums, count: SSAValue, own: tuple[SSAValue, SSAValue] | None) -> None:
        """Numerators and denominators of a tile of queries, and what is stored of them. own: keys and values of the
        tile's own chunk, of which a query sees those up to itself."""
        b, op, rows, wide = self.b, self.op, self._rows, self.value_features
        q = self._query_tile()
        c0, c1 = (b.constant(c, (1, 1)) for c in (op.c0.data, op.c1.data))
        if op.partial is not None:
            held = self._emitter(self.t, self.partial).load(op.partial, 0.0)
            held = b.broadcast(held, (rows, wide + 1))
            over, under = b.slice(held, [0, 0], [rows, wide]), b.slice(held, [0, wide], [rows, wide + 1])
        else:
            assert sums.values is not None
            over = b.broadcast(b.map("mul", sums.values, c0), (rows, wide))
            under = b.broadcast(b.map("mul", count, c0), (rows, 1))
        for pair, weighted, plain in zip(self.blocks, sums.weighted, sums.plain, strict=True):
            features = b.map("mul", q, c1) if pair is None else self._query_products(q, *pair)
            over = b.dot(features, weighted, over)
            row = b.reshape(plain, (1, tile_type(plain).extents[0]))
            under = b.map("add", under, b.reduce("sum", b.map("mul", features, row), 1))
        if own is not None and self.begins:
            turned, values = own
            x = b.dot(q, turned, b.constant(0.0, (rows, self.block)))
            p = b.map("add", c0, b.map("mul", x, b.map("add", c1, b.map("mul", b.constant(op.c2.data, (1, 1)), x))))
            seen = b.map("le", b.coordinates(0, 1, (1, self.block)), b.coordinates(0, 0, (rows, 1)))
            p = b.map("select", seen, p, b.constant(0.0, (1, 1)))
            over, under = b.dot(p, values, over), b.map("add", under, b.reduce("sum", p, 1))
        if not op.ends:
            self._store(b.concat([over, under], 1))
            return
        nothing = b.map("eq", under, b.constant(0.0, (1, 1)))
        self._store(b.map("select", nothing, b.constant(0.0, (1, 1)), b.map("div", over, under)))

    def _query_products(self, q: SSAValue, first: tuple[int, int], second: tuple[int, int]) -> SSAValue:
        """Weighted products of two parts of the features of queries, [rows, features]."""
        b, rows = self.b, self._rows
        wide, narrow = first[1] - first[0], second[1] - second[0]
        weight = b.constant(self.op.c2.data * (1 if first == second else 2), (1, 1))
        x = b.reshape(b.map("mul", b.slice(q, [0, first[0]], [rows, first[1]]), weight), (rows, wide, 1))
        y = b.reshape(b.slice(q, [0, second[0]], [rows, second[1]]), (rows, 1, narrow))
        extents = (rows, wide, narrow)
        return b.reshape(b.map("mul", b.broadcast(x, extents), b.broadcast(y, extents)), (rows, wide * narrow))

    # --- exactly ------------------------------------------------------------------------------------------------------

    def _exactly(self, keys: Expr, dims: DimSpace) -> SSAValue:
        """Attention's results for a tile of queries."""
        b, op, rows = self.b, self.op, self._rows
        plain = AttentionOp.make(op.q, op.k, op.v, scale=op.scale.data, mask=op.mask.data)
        softmax = OnlineSoftmax.of(
            b, plain, self.machine, (rows, self.block), (self.features, self.value_features)
        )  # fmt: skip
        scaled = softmax.queries(keys_or_values(self._emitter(self.t, self.e), op.q, (rows, self.features)))
        begin = self.at[self.t] if self.t is not None else b.index(0)
        end = b.index(minimum(keys, Expr.of("a0") + rows) if self.causal else keys, begin)

        def segment_at(key: SSAValue) -> Segment:
            self.at[self.s] = key
            k = keys_or_values(self._emitter(self.s, self.e), op.k, (self.block, self.features))
            v = keys_or_values(self._emitter(self.s, self.d), op.v, (self.block, self.value_features))
            k_at = b.coordinates(key, 1, (1, self.block))
            seen = b.map("lt", k_at, b.splat(keys, (1, 1)))
            if self.causal:
                seen = b.map("and", seen, softmax.visible(b.coordinates(begin, 0, (rows, 1)), k_at))
            return Segment(softmax.logits(scaled, k), seen, v)

        state = softmax.over(b.index(0), end, None, segment_at, dims.interval(keys)[1])
        found = softmax.result(state)
        plain.erase()
        return found
