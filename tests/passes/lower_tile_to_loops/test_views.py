"""Views compose: windows, rows, pages and segments address, clip and count as the interpreter does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.lower_tile_to_loops.running import (
    CLASSES,
    check,
    check_counts,
    inputs,
    interpreted,
    reference,
    same,
)
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, F32, I32, I64, DType
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewPagesOp, ViewSegmentOp, ViewWindowOp
from tilewright.ir.tile.structure import KernelOp


def both(kernel: KernelOp, dims: dict[str, int], given: list[np.ndarray], rng: np.random.Generator) -> None:
    check(kernel, dims, rng, given=given)
    check_counts(kernel, dims, given)


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "index"), [(1, 64, F32, I64), (4, 20, BF16, I32), (3, 1, F32, I32), (1, 130, F32, I32)]
)
@pytest.mark.parametrize("n", [1, 7, 0])
def test_rows_are_gathered(rows: int, width: int, dtype: DType, index: DType, n: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("gathered", ["n"])
    table, ids, y = b.buffer([50, width], dtype), b.buffer(["n"], index), b.output(["n", width], dtype)
    (i,) = b.grid(["n"], [rows])
    b.store(b.load(b.rows(b.dense(table), b.dense(ids)), [i, 0], [rows, width]), b.dense(y), [i, 0])
    kernel = b.finish()
    given = inputs(kernel, {"n": n}, rng)
    given[1] = rng.integers(0, 50, n).astype(given[1].dtype)
    both(kernel, {"n": n}, given, rng)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (4, 20)])
def test_rows_are_scattered(rows: int, width: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("scattered", ["n"])
    x, ids, y = b.buffer(["n", width], F32), b.buffer(["n"], I32), b.output(["n", width], F32)
    (i,) = b.grid(["n"], [rows])
    b.store(b.load(b.dense(x), [i, 0], [rows, width]), b.rows(b.dense(y), b.dense(ids)), [i, 0])
    kernel = b.finish()
    for n in (1, 7):
        given = inputs(kernel, {"n": n}, rng)
        given[1] = rng.permutation(n).astype(np.int32)
        both(kernel, {"n": n}, given, rng)


def test_columns_are_gathered(rng: np.random.Generator) -> None:
    b = KernelBuilder("columns", ["n"])
    x, ids, y = b.buffer(["n", 50], F32), b.buffer([20], I32), b.output(["n", 20], F32)
    (i,) = b.grid(["n"], [1])
    b.store(b.load(b.rows(b.dense(x), b.dense(ids), 1), [i, 0], [1, 20]), b.dense(y), [i, 0])
    kernel = b.finish()
    given = inputs(kernel, {"n": 5}, rng)
    given[1] = rng.integers(0, 50, 20).astype(np.int32)
    both(kernel, {"n": 5}, given, rng)


@pytest.mark.parametrize("tile", [16, 20, 1])
@pytest.mark.parametrize("t", [1, 9, 40])
def test_a_convolution_reads_through_windows(tile: int, t: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("convolution", ["t", "u"])
    x, w, y = b.buffer([3, "t"], F32), b.buffer([3, 3], F32), b.output([3, "u"], F32)
    h, i = b.grid([3, "u"], [1, tile])
    with b.loop(0, 3, 1, [b.constant(0.0, (1, tile))]) as loop:
        offsets = [b.index(0), b.index(Expr.of("a0") - 1, loop.at)]
        window = b.add(ViewWindowOp.make(b.dense(x), offsets, extents=[3, "u"], steps=[1, 2]))
        seen = b.load(window, [h, i], [1, tile], 0.0)
        loop.give(b.map("add", loop.carried[0], b.map("mul", seen, b.load(b.dense(w), [h, loop.at], [1, 1]))))
    b.store(loop.out[0], b.dense(y), [h, i])
    kernel = b.finish()
    dims = {"t": t, "u": (t - 1) // 2 + 1}
    both(kernel, dims, inputs(kernel, dims, rng), rng)


@pytest.mark.parametrize(("rows", "width"), [(1, 20), (6, 16), (8, 1)])
@pytest.mark.parametrize("length", [1, 7, 32])
def test_pages(rows: int, width: int, length: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("paged", ["pages", "length"])
    cache, table = b.buffer(["pages", 4, width], F32), b.buffer([8], I32)
    y = b.output(["length", width], F32)
    (i,) = b.grid(["length"], [rows])
    paged = b.add(ViewPagesOp.make(b.dense(cache), b.dense(table), b.index("length"), page=4, extent=[32]))
    b.store(b.map("neg", b.load(paged, [i, 0], [rows, width], 0.0)), b.dense(y), [i, 0])
    kernel = b.finish()
    dims = {"pages": 10, "length": length}
    given = inputs(kernel, dims, rng)
    given[1] = rng.permutation(10)[:8].astype(np.int32)
    both(kernel, dims, given, rng)


def test_segments_of_any_length(rng: np.random.Generator) -> None:
    b = KernelBuilder("segments", ["n"])
    x, offsets, y = b.buffer(["n", 20], F32), b.buffer([5], I32), b.output([4, 1], F32)
    (e,) = b.grid([4], [1])
    segment = b.add(ViewSegmentOp.make(b.dense(x), b.dense(offsets), e, axis=0, extent=["n"]))
    ends = [b.scalar(b.dense(offsets), [e]), b.scalar(b.dense(offsets), [b.index(Expr.of("a0") + 1, e)])]
    with b.loop(0, b.index(Expr.of("a1") - "a0", *ends), 4, [b.constant(0.0, (1, 1))]) as loop:
        rows = b.load(segment, [loop.at, 0], [4, 20], 0.0)
        loop.give(b.map("add", loop.carried[0], b.reduce("sum", b.reduce("sum", rows, 1), 0)))
    b.store(loop.out[0], b.dense(y), [e, 0])
    kernel = b.finish()
    given = inputs(kernel, {"n": 17}, rng)
    given[1] = np.array([0, 3, 3, 11, 17], np.int32)
    both(kernel, {"n": 17}, given, rng)


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (16, 16), (4, 32)])
@pytest.mark.parametrize("sizes", [(5, 70), (33, 1), (16, 16)])
def test_a_permuted_view_is_read_column_by_column(
    rows: int, columns: int, sizes: tuple[int, int], rng: np.random.Generator
) -> None:
    b = KernelBuilder("permuted", ["n", "m"])
    x, y = b.buffer(["n", "m"], F32), b.output(["m", "n"], F32)
    i, j = b.grid(["m", "n"], [rows, columns])
    b.store(b.load(b.view(x, ["m", "n"], [1, "m"]), [i, j], [rows, columns]), b.dense(y), [i, j])
    kernel = b.finish()
    dims = dict(zip(("n", "m"), sizes, strict=True))
    both(kernel, dims, inputs(kernel, dims, rng), rng)


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (5, 16)])
def test_stride_zero_repeats(rows: int, columns: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("repeated", ["n", "m"])
    x, z, y = b.buffer(["m"], F32), b.buffer(["n"], F32), b.output(["n", "m"], F32)
    i, j = b.grid(["n", "m"], [rows, columns])
    across = b.load(b.view(x, ["n", "m"], [0, 1]), [i, j], [rows, columns])
    down = b.load(b.view(z, ["n", "m"], [1, 0]), [i, j], [rows, columns], 0.0)
    b.store(b.map("add", across, down), b.dense(y), [i, j])
    kernel = b.finish()
    for dims in ({"n": 5, "m": 70}, {"n": 33, "m": 1}):
        both(kernel, dims, inputs(kernel, dims, rng), rng)


def test_a_negative_stride_reverses(rng: np.random.Generator) -> None:
    b = KernelBuilder("reversed", ["n"])
    x, y = b.buffer(["n"], F32), b.output(["n"], F32)
    (i,) = b.grid(["n"], [32])
    b.store(b.load(b.view(x, ["n"], [-1], Expr.of("n") - 1), [i], [32]), b.dense(y), [i])
    kernel = b.finish()
    for n in (1, 70):
        both(kernel, {"n": n}, inputs(kernel, {"n": n}, rng), rng)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("wild", [-1, 50, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, -(2**63)])
def test_an_index_that_points_nowhere_touches_nothing(wild: int, name: str, rng: np.random.Generator) -> None:
    """Rows, pages, segments and scalars from memory: the loops' interpreter checks every access."""
    n, sources = 6, []
    for kind in ("rows", "scatter", "pages", "segment", "scalar"):
        b = KernelBuilder(kind, ["n"])
        x, ids, y = b.buffer([48, 8], F32), b.buffer(["n"], I64), b.output([48, 8], F32)
        (i,) = b.grid(["n"], [1])
        dense = b.dense(x)
        if kind == "rows":
            b.store(b.load(b.rows(dense, b.dense(ids)), [i, 0], [4, 8], 0.0), b.dense(y), [i, 0])
        elif kind == "scatter":
            b.store(b.load(dense, [i, 0], [4, 8], 0.0), b.rows(b.dense(y), b.dense(ids)), [i, 0])
        elif kind == "pages":
            paged = b.view(x, [12, 4, 8], [32, 8, 1])
            length = b.index("4*n")
            pages = b.add(ViewPagesOp.make(paged, b.dense(ids), length, page=4, extent=("4*n",)))
            b.store(b.load(pages, [b.index("4*a0", i), 0], [4, 8], 0.0), b.dense(y), [i, 0])
        elif kind == "segment":
            part = b.add(ViewSegmentOp.make(dense, b.dense(ids), i, axis=0, extent=(48,)))
            b.store(b.load(part, [0, 0], [16, 8], 0.0), b.dense(y), [i, 0])
        else:
            at = b.scalar(b.dense(ids), [i])
            far = b.index("max(a0 + 1, 0) - a0", at)
            b.store(b.load(dense, [far, 0], [4, 8], 0.0), b.dense(y), [b.index("a0*3", at), 0])
        sources.append(b.finish())
    for kernel in sources:
        given = inputs(kernel, {"n": n}, rng)
        given[1] = rng.integers(0, 12, n)
        given[1][rng.random(n) < 0.5] = wild
        interpreted(kernel, given, {"n": n}, name)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("start", ["k", "-k", "2*k"])
def test_a_region_beyond_its_view_is_not_written(start: str, name: str, rng: np.random.Generator) -> None:
    b = KernelBuilder("beyond", ["n", "k"])
    x, y = b.buffer(["n", 70], F32), b.output(["n", 70], F32)
    (i,) = b.grid(["n"], [3])
    total = b.reduce("sum", b.load(b.dense(x), [i, 0], [3, 70], 0.0))
    b.store(b.map("add", b.load(b.dense(x), [i, 0], [3, 70], 0.0), total), b.dense(y), [i, b.index(start)])
    kernel = b.finish()
    for k in (69, 70, 71, 200):
        dims = {"n": 5, "k": k}
        given = inputs(kernel, dims, rng)
        wanted = reference(kernel, given, dims, complete=False)
        same(interpreted(kernel, given, dims, name)[0], wanted[0], 1e-5, f"{start} {k}")
