"""Reductions, accumulations and scans keep the documented order on every vector width."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.ir import SSAValue

from tests.passes.lower_tile_to_loops.kernels import layer_norm, on_tiles, softmax
from tests.passes.lower_tile_to_loops.running import check, check_counts, inputs
from tilewright.ir.dtypes import BF16, F32, I32, DType
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import ReduceOp, ScanOp

SHAPES = [((5,), 0), ((3, 7), 0), ((3, 7), 1), ((20, 40), 0), ((20, 40), 1), ((2, 40, 5), 1), ((40, 1), 0), ((2, 16),
1),
          ((20, 16), 0), ((1, 1), 1), ((2, 333), 1)]  # fmt: skip


def reduced(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(1 if a == axis else n for a, n in enumerate(shape))


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("fn", ["sum", "prod", "max", "maxnum", "min"])
@pytest.mark.parametrize("dtype", [F32, BF16, I32], ids=str)
def test_reductions_give_the_interpreter_s_bits(
    fn: str, shape: tuple[int, ...], axis: int, dtype: DType, rng: np.random.Generator
) -> None:
    kernel = on_tiles([(shape, dtype)], [(reduced(shape, axis), dtype)], lambda b, x: [b.reduce(fn, x, axis)])
    check(kernel, {"n": 2}, rng, classes=["avx512", "generic"], compiled=fn == "sum" and dtype is F32)


@pytest.mark.parametrize("fn", ["argmax", "argmin"])
@pytest.mark.parametrize(("shape", "axis"), [((5,), 0), ((3, 7), 0), ((6, 33), 1), ((1, 40), 1)])
@pytest.mark.parametrize("dtype", [F32, I32, BF16], ids=str)
def test_the_best_element_s_index(
    fn: str, shape: tuple[int, ...], axis: int, dtype: DType, rng: np.random.Generator
) -> None:
    def body(b: KernelBuilder, x: SSAValue) -> list[SSAValue]:
        op = ReduceOp.make([x, b.coordinates(3, axis, shape)], fn=fn, axis=axis)
        b.add(op)
        return list(op.results)

    result = reduced(shape, axis)
    kernel = on_tiles([(shape, dtype)], [(result, dtype), (result, I32)], body)
    given = inputs(kernel, {"n": 3}, rng)
    if dtype.is_float:  # ties and NaN
        given[0] = np.round(given[0].astype(np.float32)).astype(given[0].dtype)
        given[0][rng.random(given[0].size) < 0.05] = np.nan
    check(kernel, {"n": 3}, rng, given=given, compiled=dtype is F32)


@pytest.mark.parametrize(("shape", "axis"), [((5,), 0), ((3, 7), 0), ((2, 33), 1), ((20, 5), 0)])
def test_welford_merges_means_and_squares(shape: tuple[int, ...], axis: int, rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, mean: SSAValue, squares: SSAValue, count: SSAValue) -> list[SSAValue]:
        # some are 0, but not all: the mean of nothing is whatever it was
        first = b.map("eq", b.coordinates(0, axis, shape), b.splat(0, [1] * len(shape)))
        counts = b.map("max", b.map("floor", b.map("mul", count, count)), b.cast(first, F32))
        op = ReduceOp.make([mean, b.map("mul", squares, squares), counts], fn="welford", axis=axis)
        b.add(op)
        return list(op.results)

    kernel = on_tiles([(shape, F32)] * 3, [(reduced(shape, axis), F32)] * 3, body)
    check(kernel, {"n": 2}, rng)


@pytest.mark.parametrize(("parts", "width"), [(5, 20), (3, 1), (1, 16), (7, 40)])
def test_attention_parts_merge_left_to_right(parts: int, width: int, rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, most: SSAValue, total: SSAValue, acc: SSAValue) -> list[SSAValue]:
        empty = b.map("lt", most, b.constant(-0.5, (1, 1)))
        most = b.map("select", empty, b.constant(-np.inf, (1, 1)), most)
        op = ReduceOp.make([most, total, acc], fn="attention", axis=0)
        b.add(op)
        return list(op.results)

    shapes = [(parts, 1), (parts, 1), (parts, width)]
    kernel = on_tiles([(s, F32) for s in shapes], [((1, s[1]), F32) for s in shapes], body)
    check(kernel, {"n": 3}, rng, tolerance=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((5,), 0), ((3, 7), 0), ((20, 40), 0), ((6, 33), 1), ((2, 3, 18), 1)])
@pytest.mark.parametrize("fn", ["sum", "prod", "max", "linear"])
def test_scans_go_in_order(fn: str, shape: tuple[int, ...], axis: int, rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, *args: SSAValue) -> list[SSAValue]:
        op = ScanOp.make(list(args), fn=fn, axis=axis)
        b.add(op)
        return list(op.results)

    count = 2 if fn == "linear" else 1
    # The generic class has no fused multiply-add, which the linear scan's bits need.
    classes = ["avx512"] if fn == "linear" else ["avx512", "generic"]
    check(on_tiles([(shape, F32)] * count, [(shape, F32)] * count, body), {"n": 2}, rng, classes=classes)


@pytest.mark.parametrize(("rows", "columns"), [(1, 384), (2, 100), (4, 16), (7, 33)])
def test_layer_norm(rows: int, columns: int, rng: np.random.Generator) -> None:
    kernel = layer_norm(rows, columns)
    for n in (5, 8, 1):
        check(kernel, {"n": n}, rng, tolerance=1e-6, classes=["avx512", "avx2", "generic"], compiled=n == 5)
    check_counts(kernel, {"n": 5}, inputs(kernel, {"n": 5}, rng))


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (2, 32), (6, 48)])
def test_softmax_of_rows_of_any_length(rows: int, columns: int, rng: np.random.Generator) -> None:
    kernel = softmax(rows, columns)
    for n, m in ((5, 100), (8, 64), (1, 1), (2, 333)):
        dims = {"n": n, "m": m}
        check(kernel, dims, rng, tolerance=1e-6, classes=["avx512", "avx2"], compiled=n == 5)
    check_counts(kernel, {"n": 3, "m": 70}, inputs(kernel, {"n": 3, "m": 70}, rng))
