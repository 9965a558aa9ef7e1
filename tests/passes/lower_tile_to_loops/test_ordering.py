"""Sorting and selection: stable, NaN above everything, the lowest position among equals."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.ir import SSAValue

from tests.passes.lower_tile_to_loops.kernels import on_tiles
from tests.passes.lower_tile_to_loops.running import check, inputs
from tilewright.ir.dtypes import BF16, F32, F64, I32, I64, U8, DType
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import SortOp, TopkOp
from tilewright.ir.tile.structure import KernelOp

SHAPES = [((5,), 0), ((3, 7), 1), ((20, 4), 0), ((2, 33), 1), ((1, 1), 0)]
DTYPES = [F32, BF16, F64, I32, I64, U8]


def awkward(kernel: KernelOp, dtype: DType, rng: np.random.Generator) -> list[np.ndarray]:
    """Inputs with ties, NaN and both zeros."""
    given = inputs(kernel, {"n": 2}, rng)
    if dtype.is_float:
        given[0] = np.round(given[0].astype(np.float32) * 2).astype(given[0].dtype)
        given[0][rng.random(given[0].size) < 0.2] *= -1
        given[0][rng.random(given[0].size) < 0.2] = np.nan
    return given


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("descending", [False, True])
def test_sorts_are_stable(
    shape: tuple[int, ...], axis: int, dtype: DType, descending: bool, rng: np.random.Generator
) -> None:
    def body(b: KernelBuilder, keys: SSAValue, payload: SSAValue) -> list[SSAValue]:
        op = SortOp.make(keys, payload, axis=axis, descending=descending)
        b.add(op)
        return list(op.results)

    kernel = on_tiles([(shape, dtype), (shape, I32)], [(shape, dtype), (shape, I32)], body)
    check(kernel, {"n": 2}, rng, given=awkward(kernel, dtype, rng), classes=["avx512"], compiled=dtype is F32)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_k_largest_in_order(shape: tuple[int, ...], axis: int, dtype: DType, rng: np.random.Generator) -> None:
    count = min(3, shape[axis])
    result = tuple(count if a == axis else n for a, n in enumerate(shape))

    def body(b: KernelBuilder, x: SSAValue) -> list[SSAValue]:
        op = TopkOp.make(x, k=count, axis=axis)
        b.add(op)
        return list(op.results)

    kernel = on_tiles([(shape, dtype)], [(result, dtype), (result, I32)], body)
    check(kernel, {"n": 2}, rng, given=awkward(kernel, dtype, rng), compiled=dtype in (F32, I32))


def test_selecting_from_computed_elements_and_ignoring_their_values(rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, x: SSAValue) -> list[SSAValue]:
        op = TopkOp.make(b.map("mul", x, x), k=4, axis=1)
        b.add(op)
        return [op.positions]

    check(on_tiles([((3, 50), F32)], [((3, 4), I32)], body), {"n": 2}, rng)
