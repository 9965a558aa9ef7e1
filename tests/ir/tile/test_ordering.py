"""Sort and top-k of tiles."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.ir.tile.single_op import make, poison_is_honest, run
from tilewright.errors import IRError
from tilewright.ir.tile.compute import SortOp, TopkOp

DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.int32), np.dtype(np.uint8)]


def few_values(shape: tuple[int, ...], dtype: Any, rng: Any) -> Any:
    """Many equals, and NaN among floats."""
    values = rng.integers(0, 5, shape).astype(dtype)
    if dtype.kind in "fV":
        values[rng.random(shape) < 0.15] = math.nan
    return values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extent", [1, 2, 17, 64])
class TestOrder:
    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_sorting_is_torchs_stable_sort(
        self, dtype: Any, extent: int, descending: bool, axis: int, rng: Any
    ) -> None:
        shape = (extent, 3) if axis == 0 else (3, extent)
        keys = few_values(shape, dtype, rng)
        payload = np.broadcast_to(np.arange(extent, dtype=np.int32).reshape((-1, 1) if axis == 0 else (1, -1)), shape)
        found, carried = run(SortOp, keys, payload, axis=axis, descending=descending)
        wide = torch.from_numpy(keys.astype(np.float64))
        expected, order = torch.sort(wide, dim=axis, descending=descending, stable=True)
        np.testing.assert_array_equal(found.astype(np.float64), expected.numpy())
        np.testing.assert_array_equal(carried, order.numpy())

    def test_topk_takes_the_largest_and_the_lowest_of_equals(self, dtype: Any, extent: int, rng: Any) -> None:
        keys = few_values((5, extent), dtype, rng)
        for k in {1, extent // 2 or 1, extent}:
            values, positions = run(TopkOp, keys, k=k, axis=1)
            expected, order = torch.sort(torch.from_numpy(keys.astype(np.float64)), dim=1, descending=True, stable=True)
            np.testing.assert_array_equal(values.astype(np.float64), expected.numpy()[:, :k])
            np.testing.assert_array_equal(positions, order.numpy()[:, :k])


def test_poison_covers_all_that_it_can_change(rng: Any) -> None:
    keys, payload = rng.standard_normal((6, 9)).astype(np.float32), rng.integers(0, 99, (6, 9)).astype(np.int32)
    masks = [rng.random((6, 9)) < 0.04, rng.random((6, 9)) < 0.2]
    for descending in (False, True):
        poison_is_honest(SortOp, [keys, payload], masks, rng, axis=1, descending=descending)
    poison_is_honest(TopkOp, [keys], masks[:1], rng, k=3, axis=1)


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(IRError, match=r"k = 5 is not in 1\.\.4"):
        make(TopkOp, np.zeros((2, 4), np.float32), k=5, axis=1)


def test_the_cost_is_a_comparison_an_element_and_level() -> None:
    keys = np.zeros((3, 9), np.float32)
    assert make(SortOp, keys, keys, axis=1, descending=False).cost().vector.constant == 27 * 4
    assert make(SortOp, keys[:, :1], keys[:, :1], axis=1, descending=False).cost().vector.constant == 0
