"""Tile kernels of every shape that the compiler makes, each with inputs to run it on and what it must give.

A case's `expected` computes the outputs in float64 from the inputs, by other means than the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from xdsl.ir import Block, Region, SSAValue

from tilewright.ir.dtypes import BF16, F32, I32, I64, DType
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import StageOp, ViewPagesOp, ViewSegmentOp, ViewWindowOp
from tilewright.ir.tile.structure import IfOp, KernelOp, YieldOp

Dims = Mapping[str, int]
Arrays = list[Any]


@dataclass(frozen=True)
class Case:
    """A kernel; sizes to draw its dims from; its inputs and expected outputs at given dims."""

    name: str
    kernel: KernelOp
    sizes: Mapping[str, Sequence[int]]
    inputs: Callable[[Dims, np.random.Generator], Arrays]
    expected: Callable[..., Arrays]
    data_dependent: bool = False
    has_formula: bool = True

    def dims(self, rng: np.random.Generator) -> list[dict[str, int]]:
        """The smallest dims, all 1, the largest, and some in between."""
        low = {name: min(sizes) for name, sizes in self.sizes.items()}
        high = {name: max(sizes) for name, sizes in self.sizes.items()}
        between = [{name: int(rng.choice(sizes)) for name, sizes in self.sizes.items()} for _ in range(3)]
        return [low, dict.fromkeys(self.sizes, 1), high, *between]

    def buffers(self, dims: Dims, rng: np.random.Generator) -> tuple[Arrays, Arrays, Arrays]:
        """Inputs, outputs to be written, and the expected outputs."""
        given = self.inputs(dims, rng)
        with np.errstate(all="ignore"):
            wanted = self.expected(*given)
        outputs = [
            np.full(w.shape, -77, v.type.dtype.numpy())  # type: ignore[attr-defined]
            for w, v in zip(wanted, self.kernel.buffers[len(given) :], strict=True)
        ]
        return given, outputs, wanted


def normal(*shape: int, rng: np.random.Generator, dtype: DType = F32) -> Any:
    return rng.standard_normal(shape).astype(dtype.numpy())


def branch(
    b: KernelBuilder,
    condition: SSAValue,
    then: Callable[[], Sequence[SSAValue]],
    otherwise: Callable[[], Sequence[SSAValue]] = tuple,
) -> list[SSAValue]:
    """A `tile.if` whose sides are built by two functions."""
    regions: list[Region] = []
    types: list[Any] = []
    for side in (then, otherwise):
        block = Block()
        b._blocks.append(block)
        values = side()
        b._blocks.pop()
        block.add_op(YieldOp.make(list(values), result_types=[]))
        regions.append(Region(block))
        types = [v.type for v in values]
    op = IfOp.make(condition, regions=regions, result_types=[types])
    b.add(op)
    return list(op.results)


def matmul(m: int, n: int, k: int, *, chunk: int = 0, dtype: DType = F32, stage: bool = False) -> Case:
    """x @ w in tiles of m by n by k, over K in one loop or in chunks, with tails on every axis."""
    b = KernelBuilder("matmul", ["m", "n", "k"])
    x, w = b.buffer(["m", "k"], dtype), b.buffer(["k", "n"], dtype)
    y = b.output(["m", "n"], F32)
    i, j = b.grid(["m", "n"], [m, n], [(1, 1), (0, 4), (0, 1)])

    def step(at: SSAValue, acc: SSAValue) -> SSAValue:
        left, right = b.load(b.dense(x), [i, at], [m, k], 0.0), b.load(b.dense(w), [at, j], [k, n], 0.0)
        if stage:
            left, right = b.add(StageOp.make(left, level="l1")), b.add(StageOp.make(right, level="l1"))
            acc = b.add(StageOp.make(acc, level="l0"))
        return b.dot(left, right, acc)

    acc = b.constant(0.0, [m, n])
    if chunk:
        with b.loop(0, "k", chunk, [acc]) as outer:
            hi = b.index(f"min(a0 + {chunk}, k)", outer.at)
            with b.loop(outer.at, hi, k, [outer.carried[0]]) as inner:
                inner.give(step(inner.at, inner.carried[0]))
            outer.give(inner.out[0])
        total = outer.out[0]
    else:
        with b.loop(0, "k", k, [acc]) as loop:
            loop.give(step(loop.at, loop.carried[0]))
        total = loop.out[0]
    b.store(total, b.dense(y), [i, j])
    name = f"matmul {m}x{n}x{k}" + (f" chunk {chunk}" if chunk else "") + (" staged" if stage else "") + f" {dtype}"
    return Case(
        name,
        b.finish(),
        {"m": range(20), "n": range(30), "k": range(40)},
        lambda d, rng: [normal(d["m"], d["k"], rng=rng, dtype=dtype), normal(d["k"], d["n"], rng=rng, dtype=dtype)],
        lambda x, w: [x.astype(np.float64) @ w.astype(np.float64)],
    )


def softmax(rows: int) -> Case:
    """Softmax over rows in three passes of 32 columns, maxima and sums in canonical lanes."""
    b = KernelBuilder("softmax", ["r", "n"])
    x, y = b.buffer(["r", "n"], F32), b.output(["r", "n"], F32)
    (i,) = b.grid(["r"], [rows])
    view = b.dense(x)
    with b.loop(0, "n", 32, [b.constant(-np.inf, [rows, 16])]) as loop:
        loop.give(b.accumulate("max", b.load(view, [i, loop.at], [rows, 32], -np.inf), loop.carried[0]))
    top = b.reduce("max", loop.out[0])
    with b.loop(0, "n", 32, [b.constant(0.0, [rows, 16])]) as loop:
        shifted = b.map("sub", b.load(view, [i, loop.at], [rows, 32], -np.inf), top)
        loop.give(b.accumulate("sum", b.map("exp", shifted), loop.carried[0]))
    total = b.reduce("sum", loop.out[0])
    with b.loop(0, "n", 32) as loop:
        shifted = b.map("sub", b.load(b.dense(x), [i, loop.at], [rows, 32]), top)
        b.store(b.map("div", b.map("exp", shifted), total), b.dense(y), [i, loop.at])

    def expected(x: Any) -> Arrays:
        wide = x.astype(np.float64)
        if not wide.size:
            return [wide]
        e = np.exp(wide - wide.max(1, keepdims=True))
        return [e / e.sum(1, keepdims=True)]

    return Case(
        f"softmax {rows}",
        b.finish(),
        {"r": range(12), "n": range(80)},
        lambda d, rng: [normal(d["r"], d["n"], rng=rng) * 10],
        expected,
    )


def causal_attention(bq: int, bk: int, depth: int = 8) -> Case:
    """softmax(q k^T) v where query t sees keys 0..t: the loop over keys ends with the query block."""
    b = KernelBuilder("attention", ["h", "t"])
    q, k, v = (b.buffer(["h", "t", depth], F32) for _ in range(3))
    o = b.output(["h", "t", depth], F32)
    h, i = b.grid(["h", "t"], [1, bq])

    def block(buffer: SSAValue, at: SSAValue, rows: int, fill: float | None) -> SSAValue:
        return b.reshape(b.load(b.dense(buffer), [h, at, 0], [1, rows, depth], fill), [rows, depth])

    queries = block(q, i, bq, None)
    start = [b.constant(-np.inf, [bq, 1]), b.constant(0.0, [bq, 1]), b.constant(0.0, [bq, depth])]
    with b.loop(0, b.index(f"min(a0 + {bq}, t)", i), bk, start) as loop:
        m, total, out = loop.carried
        keys = b.transpose(block(k, loop.at, bk, 0.0), [1, 0])
        scores = b.dot(queries, keys, b.constant(0.0, [bq, bk]))
        seen = b.map("le", b.coordinates(loop.at, 1, [1, bk]), b.coordinates(i, 0, [bq, 1]))
        scores = b.map("select", seen, scores, b.constant(-np.inf, [1, 1]))
        new = b.map("max", m, b.reduce("max", scores))
        weight = b.map("exp", b.map("sub", m, new))
        p = b.map("exp", b.map("sub", scores, new))
        loop.give(
            new,
            b.map("add", b.map("mul", total, weight), b.reduce("sum", p)),
            b.dot(p, block(v, loop.at, bk, 0.0), b.map("mul", out, weight)),
        )
    b.store(b.reshape(b.map("div", loop.out[2], loop.out[1]), [1, bq, depth]), b.dense(o), [h, i, 0])

    def expected(q: Any, k: Any, v: Any) -> Arrays:
        scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(1, 2)
        t = q.shape[1]
        scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
        e = np.exp(scores - scores.max(2, keepdims=True, initial=-1e30))
        return [(e / e.sum(2, keepdims=True)) @ v]

    return Case(
        f"causal attention {bq}x{bk}",
        b.finish(),
        {"h": range(4), "t": range(50)},
        lambda d, rng: [normal(d["h"], d["t"], depth, rng=rng) for _ in range(3)],
        expected,
        has_formula=False,
    )


def map_3d() -> Case:
    """x * 2 + bias on three axes, the bias along the last."""
    b = KernelBuilder("map", ["a", "b", "c"])
    x, bias = b.buffer(["a", "b", "c"], F32), b.buffer(["c"], F32)
    y = b.output(["a", "b", "c"], F32)
    at = b.grid(["a", "b", "c"], [1, 3, 16])
    doubled = b.map("mul", b.load(b.dense(x), at, [1, 3, 16]), b.constant(2.0, [1, 1, 1]))
    along = b.reshape(b.load(b.dense(bias), at[2:], [16]), [1, 1, 16])
    b.store(b.map("add", doubled, along), b.dense(y), at)
    return Case(
        "map on 3 axes",
        b.finish(),
        {"a": range(4), "b": range(9), "c": range(40)},
        lambda d, rng: [normal(d["a"], d["b"], d["c"], rng=rng), normal(d["c"], rng=rng)],
        lambda x, bias: [x.astype(np.float64) * 2 + bias],
    )


def split_heads() -> Case:
    """[t, h * 8] to [h, t, 8] through a strided view, one grid axis for tokens and one for batch and head together."""
    b = KernelBuilder("split_heads", ["b", "t"])
    x, y = b.buffer(["b", "t", 32], BF16), b.output(["b", 4, "t", 8], BF16)
    bh, t = b.grid(["4*b", "t"], [1, 5])
    batch, head = b.index("floordiv(a0, 4)", bh), b.index("mod(a0, 4)", bh)
    source = b.view(x, ["b", "t", 4, 8], ["32*t", 32, 8, 1])
    tile = b.load(source, [batch, t, head, 0], [1, 5, 1, 8])
    b.store(b.transpose(tile, [0, 2, 1, 3]), b.dense(y), [batch, head, t, 0])
    return Case(
        "split heads",
        b.finish(),
        {"b": range(4), "t": range(23)},
        lambda d, rng: [normal(d["b"], d["t"], 32, rng=rng, dtype=BF16)],
        lambda x: [x.astype(np.float64).reshape(*x.shape[:2], 4, 8).swapaxes(1, 2)],
    )


def gather_rows() -> Case:
    """table[ids], the ids from a flattened [b, t]."""
    b = KernelBuilder("gather", ["b", "t"])
    table, ids = b.buffer([11, 24], F32), b.buffer(["b", "t"], I64)
    y = b.output(["b", "t", 24], F32)
    i, c = b.grid(["b*t", 24], [4, 16])
    rows = b.rows(b.dense(table), b.view(ids, ["b*t"], [1]))
    b.store(b.load(rows, [i, c], [4, 16]), b.view(y, ["b*t", 24], [24, 1]), [i, c])
    return Case(
        "gather rows",
        b.finish(),
        {"b": range(4), "t": range(20)},
        lambda d, rng: [normal(11, 24, rng=rng), rng.integers(0, 11, (d["b"], d["t"]))],
        lambda table, ids: [table.astype(np.float64)[ids]],
    )


def look_up(rows: int, columns: int, *, alike: bool) -> Case:
    """table[places - 2, j]: places that the kernel computes, one an element or (alike) one a row."""
    b = KernelBuilder("look_up", ["m", "n"])
    width = 1 if alike else "n"
    table, places, y = b.buffer([9, "n"], F32), b.buffer(["m", width], I64), b.output(["m", "n"], F32)
    i, j = b.grid(["m", "n"], [rows, columns])
    at, extents = ([i, 0], [rows, 1]) if alike else ([i, j], [rows, columns])
    moved = b.map("sub", b.load(b.dense(places), at, extents), b.constant(2, [1, 1], I64))
    found = b.lookup(b.view(table, [9, "m", "n"], ["n", 0, 1]), moved, [i, j], [rows, columns], 0)
    b.store(b.map("add", found, found), b.dense(y), [i, j])
    return Case(
        f"look up {rows}x{columns}" + (" by row" if alike else ""),
        b.finish(),
        {"m": range(9), "n": range(40)},
        lambda d, rng: [normal(9, d["n"], rng=rng), rng.integers(2, 11, (d["m"], 1 if alike else d["n"]))],
        lambda table, places: [2 * table.astype(np.float64)[places - 2, np.arange(table.shape[1])]],
    )


def gather_window() -> Case:
    """table[ids] for ids 1, 3, 5, ... through a window of the rows, then zeros."""
    b = KernelBuilder("window_of_rows", ["n"])
    table, ids = b.buffer([11, 8], F32), b.buffer(["n"], I64)
    y = b.output(["n", 8], F32)
    (i,) = b.grid(["n"], [4])
    rows = b.rows(b.dense(table), b.dense(ids))
    window = ViewWindowOp.make(rows, [b.index(1), b.index(0)], extents=["floordiv(n, 2)", 8], steps=[2, 1])
    b.store(b.load(b.add(window), [i, 0], [4, 8], 0.0), b.dense(y), [i, 0])

    def expected(table: Any, ids: Any) -> Arrays:
        picked = table.astype(np.float64)[ids[1::2][: len(ids) // 2]]
        return [np.concatenate([picked, np.zeros((len(ids) - len(picked), 8))])]

    return Case(
        "window of rows",
        b.finish(),
        {"n": range(24)},
        lambda d, rng: [normal(11, 8, rng=rng), rng.integers(0, 11, d["n"])],
        expected,
    )


def segment_sums() -> Case:
    """The sum of each of e ragged segments of rows; the loop ends with the segment."""
    b = KernelBuilder("segments", ["e", "n"])
    x, offsets = b.buffer(["n", 20], F32), b.buffer(["e + 1"], I32)
    y = b.output(["e", 20], F32)
    e, c = b.grid(["e", 20], [1, 16])
    bounds = b.dense(offsets)
    lo, hi = b.scalar(bounds, [e]), b.scalar(bounds, [b.index("a0 + 1", e)])
    rows = b.add(ViewSegmentOp.make(b.dense(x), bounds, e, axis=0, extent=["n"]))
    with b.loop(0, b.index("a1 - a0", lo, hi), 4, [b.constant(0.0, [1, 16])]) as loop:
        loop.give(b.map("add", loop.carried[0], b.reduce("sum", b.load(rows, [loop.at, c], [4, 16], 0.0), 0)))
    b.store(loop.out[0], b.dense(y), [e, c])

    def inputs(d: Dims, rng: np.random.Generator) -> Arrays:
        cuts = np.sort(rng.integers(0, d["n"] + 1, max(d["e"] - 1, 0)))
        ends = [d["n"]] if d["e"] else []
        return [normal(d["n"], 20, rng=rng), np.array([0, *cuts, *ends], np.int32)]

    def expected(x: Any, offsets: Any) -> Arrays:
        parts = [x.astype(np.float64)[lo:hi].sum(0) for lo, hi in pairwise(offsets)]
        return [np.array(parts).reshape(len(offsets) - 1, 20)]

    return Case("segment sums", b.finish(), {"e": range(6), "n": range(40)}, inputs, expected, True, has_formula=True)


def paged_read(block: int, page: int, shift: int = 0) -> Case:
    """A paged sequence from position `shift` on made contiguous, zero from its length on."""
    b = KernelBuilder("pages", ["p", "s"])
    cache, table, length = b.buffer(["p", page, 8], F32), b.buffer(["s"], I32), b.buffer([1], I64)
    y = b.output([f"{page}*s", 8], F32)
    (i,) = b.grid([f"{page}*s"], [block])
    size = b.scalar(b.dense(length), [0])
    paged = b.add(ViewPagesOp.make(b.dense(cache), b.dense(table), size, page=page, extent=[f"{page}*s"]))
    b.store(b.load(paged, [b.index(f"a0 + {shift}", i), 0], [block, 8], 0.0), b.dense(y), [i, 0])

    def inputs(d: Dims, rng: np.random.Generator) -> Arrays:
        length = int(rng.integers(0, page * d["s"] + 1)) if d["p"] else 0
        used = -(-length // page)
        table = rng.integers(0, max(d["p"], 1), d["s"]).astype(np.int32)
        table[used:] = -1  # entries of unused pages may hold anything
        return [normal(d["p"], page, 8, rng=rng), table, np.array([length])]

    def expected(cache: Any, table: Any, length: Any) -> Arrays:
        out = np.zeros((page * len(table), 8))
        for s in range(shift, int(length[0])):
            out[s - shift] = cache[table[s // page], s % page]
        return [out]

    return Case(
        f"paged read {block} of {page} from {shift}",
        b.finish(),
        {"p": range(1, 6), "s": range(8)},
        inputs,
        expected,
        data_dependent=True,
        has_formula=not shift and (block % page == 0 or page % block == 0),
    )


def convolution(stride: int, dilation: int, padding: int) -> Case:
    """A 1-D convolution of 3 taps with 4 channels in and 6 out, its input read through windows."""
    b = KernelBuilder("convolution", ["n"])
    x, w = b.buffer(["n", 4], F32), b.buffer([3, 4, 6], F32)
    length = f"floordiv(n + {2 * padding - 2 * dilation - 1}, {stride}) + 1"
    y = b.output([f"max({length}, 0)", 6], F32)
    (i,) = b.grid([f"max({length}, 0)"], [5])
    acc = b.constant(0.0, [5, 6])
    with b.loop(0, 3, 1, [acc]) as loop:
        begin = b.index(f"{dilation}*a0 - {padding}", loop.at)
        taps = b.add(
            ViewWindowOp.make(b.dense(x), [begin, b.index(0)], extents=[f"max({length}, 0)", 4], steps=[stride, 1])
        )
        weights = b.reshape(b.load(b.dense(w), [loop.at, 0, 0], [1, 4, 6]), [4, 6])
        loop.give(b.dot(b.load(taps, [i, 0], [5, 4], 0.0), weights, loop.carried[0]))
    b.store(loop.out[0], b.dense(y), [i, 0])

    def expected(x: Any, w: Any) -> Arrays:
        padded = np.pad(x.astype(np.float64), ((padding, padding), (0, 0)))
        count = max((len(x) + 2 * padding - 2 * dilation - 1) // stride + 1, 0)
        rows = [sum(padded[o * stride + k * dilation] @ w[k] for k in range(3)) for o in range(count)]
        return [np.array(rows).reshape(count, 6)]

    return Case(
        f"convolution {stride} {dilation} {padding}",
        b.finish(),
        {"n": range(30)},
        lambda d, rng: [normal(d["n"], 4, rng=rng), normal(3, 4, 6, rng=rng)],
        expected,
        has_formula=False,
    )


def branches() -> Case:
    """The first n - n // 2 rows are doubled, the others negated, a third of their columns in an inner branch."""
    b = KernelBuilder("branches", ["n"])
    x, y = b.buffer(["n", 24], F32), b.output(["n", 24], F32)
    i, c = b.grid(["n", 24], [1, 8])
    tile = b.load(b.dense(x), [i, c], [1, 8])
    inner = b.compare(c, "==", 8)

    def first() -> list[SSAValue]:
        return [b.map("add", tile, b.load(b.dense(x), [i, c], [1, 8]))]

    def second() -> list[SSAValue]:
        return branch(b, inner, lambda: [b.map("neg", tile)], lambda: [b.map("sub", b.constant(0.0, [1, 8]), tile)])

    (result,) = branch(b, b.compare(b.index("2*a0", i), "<", "n"), first, second)
    b.store(result, b.dense(y), [i, c])

    def expected(x: Any) -> Arrays:
        doubled = 2 * np.arange(len(x)) < len(x)
        return [np.where(doubled[:, None], x * 2.0, -x.astype(np.float64))]

    return Case(
        "branches",
        b.finish(),
        {"n": range(20)},
        lambda d, rng: [normal(d["n"], 24, rng=rng)],
        expected,
        has_formula=False,
    )


def carried_index() -> Case:
    """Every second row summed from the end through an index that the loop carries, and the last of them once more."""
    b = KernelBuilder("carried", ["n"])
    x, y = b.buffer(["n", 8], F32), b.output([1, 8], F32)
    (c,) = b.grid([8], [8])
    with b.loop(0, "n", 2, [b.index("n - 1"), b.constant(0.0, [1, 8])]) as loop:
        at, total = loop.carried
        loop.give(b.index("a0 - 2", at), b.map("add", total, b.load(b.dense(x), [at, c], [1, 8], 0.0)))
    again = b.load(b.dense(x), [b.index("a0 + 2", loop.out[0]), c], [1, 8], 0.0)
    b.store(b.map("add", loop.out[1], again), b.dense(y), [0, c])
    return Case(
        "carried index",
        b.finish(),
        {"n": range(12)},
        lambda d, rng: [normal(d["n"], 8, rng=rng)],
        lambda x: [x[::-1][::2].sum(0, keepdims=True, dtype=np.float64) + (x[::-1][::2][-1] if len(x) else 0)],
        has_formula=False,
    )


CASES = [
    matmul(6, 16, 8),
    matmul(1, 5, 7, dtype=BF16),
    matmul(4, 16, 4, chunk=16),
    matmul(3, 8, 5, stage=True),
    softmax(1),
    softmax(5),
    causal_attention(6, 4),
    causal_attention(4, 16),
    map_3d(),
    split_heads(),
    gather_rows(),
    look_up(1, 16, alike=False),
    look_up(4, 16, alike=True),
    look_up(3, 8, alike=False),
    gather_window(),
    segment_sums(),
    paged_read(4, 4),
    paged_read(8, 4),
    paged_read(2, 6),
    paged_read(5, 4),
    paged_read(4, 4, shift=3),
    convolution(1, 1, 1),
    convolution(2, 3, 2),
    branches(),
    carried_index(),
]
