"""Tile kernels that the tests lower: the shapes that the compiler's skeletons produce, built by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, minimum
from tilewright.ir.dtypes import F32, DType
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp

Tiles = Sequence[SSAValue]
Shape = tuple[int, ...]


def on_tiles(
    inputs: Sequence[tuple[Shape, DType]],
    results: Sequence[tuple[Shape, DType]],
    body: Callable[..., Tiles],
) -> KernelOp:
    """One program for each of n slices: loads a whole tile of every input, stores a whole tile of every result."""
    b = KernelBuilder("on_tiles", ["n"])
    sources = [b.buffer(["n", *shape], dtype) for shape, dtype in inputs]
    targets = [b.output(["n", *shape], dtype) for shape, dtype in results]
    (i,) = b.grid(["n"], [1])
    loaded = [
        b.reshape(b.load(b.dense(x), [i] + [0] * len(shape), [1, *shape]), shape)
        for x, (shape, _) in zip(sources, inputs, strict=True)
    ]
    for value, target, (shape, _) in zip(body(b, *loaded), targets, results, strict=True):
        b.store(b.reshape(value, [1, *shape]), b.dense(target), [i] + [0] * len(shape))
    return b.finish()


def matmul(
    depth: int,
    columns: int,
    rows: int,
    panel: int,
    *,
    step: int | None = None,
    chunk: int | None = None,
    activation: str | None = None,
    residual: bool = False,
    order: Sequence[tuple[int, int]] = ((1, 1), (0, 1)),
    dtype: DType = F32,
) -> KernelOp:
    """x [m, depth] times packed panels [panels, depth, panel], plus a bias, as the matmul skeleton tiles it."""
    panels = -(-columns // panel)
    b = KernelBuilder("matmul", ["m"])
    x, w = b.buffer(["m", depth], dtype), b.buffer([panels, depth, panel], dtype)
    bias = b.buffer([columns], F32)
    added = b.buffer(["m", columns], F32) if residual else None
    y = b.output(["m", columns], F32)
    i, p = b.grid(["m", panels], [rows, 1], order)
    j = b.index(Expr.of("a0") * panel, p)
    fill = 0.0 if step is not None and depth % step else None

    def product(k: SSAValue | int, extent: int, acc: SSAValue) -> SSAValue:
        a = b.load(b.dense(x), [i, k], [rows, extent], fill)
        right = b.load(b.dense(w), [p, k, 0], [1, extent, panel], fill)
        return b.dot(a, b.reshape(right, [extent, panel]), acc)

    zero = b.constant(0.0, (rows, panel))
    if step is None:
        total = product(0, depth, zero)
    elif chunk is None:
        with b.loop(0, depth, step, [zero]) as loop:
            loop.give(product(loop.at, step, loop.carried[0]))
        (total,) = loop.out
    else:
        with b.loop(0, depth, chunk, [zero]) as outer:
            end = b.index(minimum(Expr.of("a0") + chunk, depth), outer.at)
            with b.loop(outer.at, end, step, [zero]) as loop:
                loop.give(product(loop.at, step, loop.carried[0]))
            outer.give(b.map("add", outer.carried[0], loop.out[0]))
        (total,) = outer.out
    total = b.map("add", total, b.reshape(b.load(b.dense(bias), [j], [panel]), [1, panel]))
    if activation is not None:
        total = b.map(activation, total)
    if added is not None:
        total = b.map("add", total, b.load(b.dense(added), [i, j], [rows, panel]))
    b.store(total, b.dense(y), [i, j])
    return b.finish()


def attention(
    heads: int, width: int, queries: int, *, keys: int = 64, causal: bool = True, dtype: DType = F32
) -> KernelOp:
    """Flash attention on [t, heads, width] tensors: a running maximum, denominator and weighted sum over key blocks."""
    b = KernelBuilder("attention", ["t"])
    q, k, v = (b.buffer(["t", heads, width], dtype) for _ in range(3))
    out = b.output(["t", heads, width], dtype)
    i, h = b.grid(["t", heads], [queries, 1], [(1, 1), (0, 1)])

    def by_head(buffer: SSAValue) -> SSAValue:
        return b.view(buffer, [heads, "t", width], [width, heads * width, 1])

    def rows(buffer: SSAValue, at: SSAValue, count: int, fill: float | None = None) -> SSAValue:
        loaded = b.load(by_head(buffer), [h, at, 0], [1, count, width], fill)
        return b.cast(b.reshape(loaded, [count, width]), F32)

    query = b.map("mul", rows(q, i, queries), b.constant(width**-0.5, (1, 1)))
    end = b.index(minimum(Expr.of("a0") + queries, "t"), i) if causal else b.index("t")
    nothing, zero = b.constant(-np.inf, (1, 1)), b.constant(0.0, (1, 1))
    starts = [b.constant(-np.inf, (queries, 1)), b.constant(0.0, (queries, 1)), b.constant(0.0, (queries, width))]
    with b.loop(0, end, keys, starts) as loop:
        most, total, acc = loop.carried
        scores = b.dot(query, b.transpose(rows(k, loop.at, keys, 0.0), (1, 0)), b.constant(0.0, (queries, keys)))
        at = b.coordinates(loop.at, 1, (1, keys))
        seen = b.map("lt", at, b.splat("t", (1, 1)))
        if causal:
            seen = b.map("and", seen, b.map("le", at, b.coordinates(i, 0, (queries, 1))))
        scores = b.map("select", seen, scores, nothing)
        more = b.map("max", most, b.reduce("max", scores))
        safe = b.map("select", b.map("eq", more, nothing), zero, more)
        decay, weights = (b.map("exp", b.map("sub", x, safe)) for x in (most, scores))
        total = b.map("add", b.map("mul", total, decay), b.reduce("sum", weights))
        loop.give(more, total, b.dot(weights, rows(v, loop.at, keys, 0.0), b.map("mul", acc, decay)))
    result = b.map("div", loop.out[2], loop.out[1])
    b.store(b.reshape(b.cast(result, dtype), [1, queries, width]), by_head(out), [h, i, 0])
    return b.finish()


def layer_norm(rows: int, columns: int) -> KernelOp:
    """Mean, variance and normalisation of rows that one tile holds."""
    b = KernelBuilder("layer_norm", ["n"])
    x, weight, y = b.buffer(["n", columns], F32), b.buffer([columns], F32), b.output(["n", columns], F32)
    (i,) = b.grid(["n"], [rows])
    tile, count = b.load(b.dense(x), [i, 0], [rows, columns]), b.constant(float(columns), (1, 1))
    mean = b.map("div", b.reduce("sum", tile), count)
    centred = b.map("sub", tile, mean)
    variance = b.map("div", b.reduce("sum", b.map("mul", centred, centred)), count)
    scale = b.map("rsqrt", b.map("add", variance, b.constant(1e-5, (1, 1))))
    gain = b.reshape(b.load(b.dense(weight), [0], [columns]), [1, columns])
    b.store(b.map("mul", b.map("mul", centred, scale), gain), b.dense(y), [i, 0])
    return b.finish()


def softmax(rows: int, columns: int) -> KernelOp:
    """Softmax of rows of any length, in three passes over tiles of columns."""
    b = KernelBuilder("softmax", ["n", "m"])
    x, y = b.buffer(["n", "m"], F32), b.output(["n", "m"], F32)
    (i,) = b.grid(["n"], [rows])

    def masked(j: SSAValue) -> SSAValue:
        inside = b.map("lt", b.coordinates(j, 1, (1, columns)), b.splat("m", (1, 1)))
        return b.map("select", inside, b.load(b.dense(x), [i, j], [rows, columns]), b.constant(-np.inf, (1, 1)))

    with b.loop(0, "m", columns, [b.constant(-np.inf, (rows, 16))]) as loop:
        loop.give(b.accumulate("max", masked(loop.at), loop.carried[0]))
    most = b.reduce("max", loop.out[0])
    with b.loop(0, "m", columns, [b.constant(0.0, (rows, 16))]) as loop:
        weights = b.map("exp", b.map("sub", masked(loop.at), most))
        loop.give(b.accumulate("sum", weights, loop.carried[0]))
    total = b.reduce("sum", loop.out[0])
    with b.loop(0, "m", columns) as loop:
        shifted = b.map("sub", b.load(b.dense(x), [i, loop.at], [rows, columns]), most)
        b.store(b.map("div", b.map("exp", shifted), total), b.dense(y), [i, loop.at])
    return b.finish()
