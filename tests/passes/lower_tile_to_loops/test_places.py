"""Lookups, updates and lines of memory do as loops and natively what the tile interpreter says, and count the same."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.utils.exceptions import VerifyException

from tests.backends.cpu.native_kernel import host_classes
from tests.passes.lower_tile_to_loops.running import check, check_counts, inputs, interpreted, native, reference, same
from tilewright.errors import IRError, KernelStoreError, PoisonError
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, I8, I16, I32, I64, U8, DType
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp, spare_words
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.tile_interpreter import run_kernel

Arrays = list[np.ndarray]
DTYPES = [F32, F64, BF16, F16, I64, I32, I16, I8, U8, I1]


def looked_up(rows: int, columns: int, dtype: DType, index: DType) -> KernelOp:
    """y[i, j] = table[places[i, j] - 2, j]: indices that this kernel computes, along the outer axis."""
    b = KernelBuilder("looked_up", ["m", "n", "s"])
    table, places, y = b.buffer(["s", "n"], dtype), b.buffer(["m", "n"], index), b.output(["m", "n"], dtype)
    i, j = b.grid(["m", "n"], [rows, columns])
    given = b.load(b.dense(places), [i, j], [rows, columns])
    moved = b.map("sub", given, b.constant(2, (1, 1), index))
    source = b.view(table, ["m", "n", "s"], [0, 1, "n"])
    b.store(b.lookup(source, moved, [i, j], [rows, columns], 2), b.dense(y), [i, j])
    return b.finish()


@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (4, 20), (3, 1)])
@pytest.mark.parametrize(("dtype", "index"), [(F32, I64), (BF16, I32)])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 37), (0, 3)])
def test_indices_are_computed_and_looked_up(
    rows: int, columns: int, dtype: DType, index: DType, m: int, n: int, rng: np.random.Generator
) -> None:
    kernel, dims = looked_up(rows, columns, dtype, index), {"m": m, "n": n, "s": 9}
    given = inputs(kernel, dims, rng)
    given[1] = rng.integers(2, 11, m * n).astype(given[1].dtype)
    (y,) = check(kernel, dims, rng, given=given)
    table, places = given[0].reshape(9, n), given[1].reshape(m, n)
    assert np.array_equal(y.reshape(m, n), np.take_along_axis(table, places.astype(np.int64) - 2, 0))
    counts = check_counts(kernel, dims, given)
    formulas = kernel_traffic(kernel).at(dims)
    assert formulas["read"] == m * n * (dtype.bytes + index.bytes)
    assert counts.write == m * n


def test_an_index_that_points_nowhere_is_poison(rng: np.random.Generator) -> None:
    kernel, dims = looked_up(1, 16, F32, I64), {"m": 1, "n": 3, "s": 9}
    given = inputs(kernel, dims, rng)
    for bad in (1, 11):
        given[1] = np.array([2, bad, 3])
        with pytest.raises(PoisonError):
            run_kernel(kernel, [*given, np.zeros(3, np.float32)], dims)


@pytest.mark.parametrize("bad", [-(2**62), -1, 9, 2**62])
def test_native_lookups_stay_inside_the_table(bad: int, rng: np.random.Generator) -> None:
    kernel, dims = looked_up(1, 16, F32, I64), {"m": 1, "n": 33, "s": 9}
    given = inputs(kernel, dims, rng)
    given[1] = rng.integers(2, 11, 33)
    (wanted,) = reference(kernel, given, dims)
    given[1][[4, 32]] = bad + 2
    (got,) = native(kernel, given, dims, host_classes()[-1])
    kept = np.delete(np.arange(33), [4, 32])
    assert np.array_equal(got[kept], wanted[kept])


def updated(columns: int, dtype: DType, mode: str) -> KernelOp:
    """y = x with u[k, :] set or added in row places[k]."""
    b = KernelBuilder("updated", ["m", "n", "k"])
    x, places, u = b.buffer(["m", "n"], dtype), b.buffer(["k"], I64), b.buffer(["k", "n"], dtype)
    y = b.output(["m", "n"], dtype)
    (j,) = b.grid(["n"], [columns])
    with b.loop(0, "m", 1) as loop:
        b.store(b.load(b.dense(x), [loop.at, j], [1, columns]), b.dense(y), [loop.at, j])
    with b.loop(0, "k", 1) as loop:
        given = b.reshape(b.load(b.dense(u), [loop.at, j], [1, columns]), [columns])
        b.update(given, b.load(b.dense(places), [loop.at], [1]), b.dense(y), [j], 0, mode)
    return b.finish()


@pytest.mark.parametrize("columns", [1, 16, 20])
@pytest.mark.parametrize("dtype", [F32, BF16, I64, U8])
@pytest.mark.parametrize("mode", ["set", "add"])
def test_rows_are_updated_in_order(columns: int, dtype: DType, mode: str, rng: np.random.Generator) -> None:
    kernel, dims = updated(columns, dtype, mode), {"m": 5, "n": 37, "k": 11}
    given = inputs(kernel, dims, rng)
    given[1] = rng.integers(0, 5, 11)
    (y,) = check(kernel, dims, rng, given=given)
    x, u = given[0].reshape(5, 37).copy(), given[2].reshape(11, 37)
    for row, place in zip(u, given[1], strict=True):
        x[place] = row if mode == "set" else x[place] + row
    assert np.array_equal(y.reshape(5, 37), x)
    counts = check_counts(kernel, dims, given)
    traffic = kernel_traffic(kernel).at(dims)
    again = 11 * 37 if mode == "add" else 0
    assert counts.write == 5 * 37 + 11 * 37
    assert counts.vector == traffic["vector"]
    assert traffic["read"] == (5 * 37 + 11 * 37 + again) * dtype.bytes + 11 * -(-37 // columns) * 8


def test_only_what_this_program_stored_is_updated() -> None:
    b = KernelBuilder("early", [])
    y = b.output([4], F32)
    b.grid([], [])
    target = b.view(y, [1, 4], [0, 1])
    b.update(b.constant(1.0, [1]), b.elements([2], I64), target, [0], 1, "add")
    with pytest.raises(KernelStoreError, match="not written yet"):
        run_kernel(b.finish(), [np.zeros(4, np.float32)], {})


def test_the_lanes_of_an_update_are_distinct() -> None:
    b = KernelBuilder("twice", [])
    y = b.output([4], F32)
    b.grid([], [])
    b.store(b.constant(0.0, [4]), b.dense(y), [0])
    target = b.view(y, [2, 4], [0, 1])
    b.update(b.constant(1.0, [2]), b.elements([2, 2], I64), target, [0], 1, "add")
    with pytest.raises(KernelStoreError, match="twice in one store"):
        run_kernel(b.finish(), [np.zeros(4, np.float32)], {})


def test_what_does_not_fit_is_refused() -> None:
    b = KernelBuilder("wrong", ["n"])
    x, y = b.buffer(["n", 4], F32), b.output(["n", 4], F32)
    b.grid([], [])
    with pytest.raises(IRError, match="needs integers and 1 coordinates"):
        b.lookup(b.dense(x), b.constant(0.0, [4]), [0], [4], 0)
    with pytest.raises(IRError, match="do not stretch"):
        b.lookup(b.dense(x), b.elements([0, 1], I64), [0], [4], 0)
    b.update(b.constant(0.0, [4]), b.elements([0], I64), b.dense(y), [0], 0, "mean")
    with pytest.raises((IRError, VerifyException), match="mode 'mean'"):
        b.finish().verify()


# --- lines ----------------------------------------------------------------------------------------------------------


def awkward(dtype: DType, size: int, rng: np.random.Generator) -> np.ndarray:
    """Ties, the dtype's extremes, NaN, infinities and both zeros."""
    kind = dtype.numpy()
    if dtype is I1:
        return rng.random(size) < 0.5
    if not dtype.is_float:
        limits = np.iinfo(kind)
        drawn = rng.integers(limits.min, limits.max, size, dtype=np.int64 if dtype is not U8 else np.uint8)
        few = rng.integers(max(limits.min, -3), 4, size)
        return np.where(rng.random(size) < 0.5, drawn, few).astype(kind)
    drawn = np.round(rng.standard_normal(size) * 3) / rng.choice([1, 7], size)
    drawn = np.where(rng.random(size) < 0.1, np.nan, drawn)
    drawn = np.where(rng.random(size) < 0.1, np.inf * rng.choice([1, -1], size), drawn)
    return (drawn * rng.choice([1, -1], size)).astype(np.float32).astype(kind)


def ordered(given: np.ndarray, axis: int, *, descending: bool) -> np.ndarray:
    """The stable order by torch's rules, by comparing integers or (is NaN, value)."""
    plain = given.astype(np.float64) if given.dtype.kind in "fV" else given
    flipped = np.flip(plain, axis) if descending else plain
    order = np.argsort(flipped, axis=axis, kind="stable")
    return np.flip(given.shape[axis] - 1 - order, axis) if descending else order


def sorted_lines(dtype: DType, inner: int, *, descending: bool) -> KernelOp:
    b = KernelBuilder("sorted", ["m", "n"])
    x = b.buffer(["m", "n", inner], dtype)
    values, places = b.output(["m", "n", inner], dtype), b.output(["m", "n", inner], I64)
    spare = b.output([f"m*{inner}", f"{2 * spare_words(dtype)}*n"], I64)
    i, j = b.grid(["m", inner], [1, 1])
    line = b.index(f"a0*{inner} + a1", i, j)
    views = [b.dense(v) for v in (x, values, places, spare)]
    b.add(SortLineOp.make(*views, [i, j, line], axis=1, descending=descending, result_types=[]))
    return b.finish()


def line_results(kernel: KernelOp, given: Arrays, dims: dict[str, int]) -> list[Arrays]:
    """Values and places by the tile interpreter, the loops' interpreter and natively; nothing of the spare memory."""
    best = host_classes()[-1]
    runs = [
        reference(kernel, given, dims),
        interpreted(kernel, given, dims, "generic", nthreads=2),
        native(kernel, given, dims, best, nthreads=3),
    ]
    return [run[:2] for run in runs]


@pytest.mark.parametrize(
    ("dtype", "descending", "m", "n", "inner"),
    [
        *((dtype, number % 2 == 1, 2, 41, 1) for number, dtype in enumerate(DTYPES)),
        *((dtype, True, 1, 17, 3) for dtype in (F32, I64)),
        *((F32, False, m, n, 1) for m, n in ((3, 1), (2, 0))),
    ],
)
def test_lines_are_sorted_stably(
    dtype: DType, descending: bool, m: int, n: int, inner: int, rng: np.random.Generator
) -> None:
    kernel, dims = sorted_lines(dtype, inner, descending=descending), {"m": m, "n": n}
    given = awkward(dtype, m * n * inner, rng).reshape(m, n, inner)
    order = ordered(given, 1, descending=descending)
    for values, places in line_results(kernel, [given.reshape(-1)], dims):
        assert np.array_equal(places.reshape(given.shape), order)
        same(values, np.take_along_axis(given, order, 1).reshape(-1), 0.0, "values")
    check_counts(kernel, dims, [given.reshape(-1)])
    traffic = kernel_traffic(kernel).at(dims)
    assert (traffic["read"], traffic["write"]) == (given.size * dtype.bytes, given.size * (dtype.bytes + 8))


def test_a_long_line_of_few_keys_keeps_their_order(rng: np.random.Generator) -> None:
    kernel, dims = sorted_lines(I64, 1, descending=False), {"m": 1, "n": 70_001}
    given = rng.integers(-2, 300, 70_001)
    values, places = native(kernel, [given], dims, host_classes()[-1])[:2]
    assert np.array_equal(places, np.argsort(given, kind="stable"))
    assert np.array_equal(values, np.sort(given))


@pytest.mark.parametrize(
    ("dtype", "m", "n", "inner", "k"),
    [*((d, 2, 41, 1, 5) for d in DTYPES), (F32, 1, 37, 3, 37), (F32, 3, 1, 1, 1), (I64, 1, 300, 1, 20)],
)
def test_the_k_largest_of_a_line(dtype: DType, m: int, n: int, inner: int, k: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("largest", ["m", "n"])
    x = b.buffer(["m", "n", inner], dtype)
    values, places = b.output(["m", k, inner], dtype), b.output(["m", k, inner], I64)
    i, j = b.grid(["m", inner], [1, 1])
    views = [b.dense(v) for v in (x, values, places)]
    b.add(TopkLineOp.make(*views, [i, j], axis=1, k=k, result_types=[]))
    kernel, dims = b.finish(), {"m": m, "n": n}
    given = awkward(dtype, m * n * inner, rng).reshape(m, n, inner)
    order = ordered(given, 1, descending=True)[:, :k]
    for found, at in line_results(kernel, [given.reshape(-1)], dims):
        assert np.array_equal(at.reshape(order.shape), order)
        same(found, np.take_along_axis(given, order, 1).reshape(-1), 0.0, "values")
    check_counts(kernel, dims, [given.reshape(-1)])
    assert kernel_traffic(kernel).at(dims)["write"] == m * k * inner * (dtype.bytes + 8)
