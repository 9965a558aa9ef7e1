"""Reductions and scans of tiles: the documented order, bit for bit, and the right value."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.tile.single_op import make, poison_is_honest, run, spread
from tilewright.errors import IRError
from tilewright.ir.tile.compute import LANES, AccumulateOp, ReduceOp, ScanOp

BF16 = np.dtype(ml_dtypes.bfloat16)
EXTENTS = [1, 2, 7, 15, 16, 17, 31, 48, 101]
Combine = Callable[[Any, Any], Any]


def rounded(dtype: np.dtype[Any], function: Combine) -> Combine:
    """One operation on two numbers, rounded to the dtype."""
    return lambda a, b: dtype.type(function(a, b))


def in_lanes(values: list[Any], combine: Combine) -> Any:
    """The canonical order, written out for a list of numbers."""
    lanes: list[Any] = [None] * LANES
    for position, value in enumerate(values):
        lane = position % LANES
        lanes[lane] = value if lanes[lane] is None else combine(lanes[lane], value)
    for width in (8, 4, 2, 1):
        for lane in range(width):
            if lanes[lane + width] is not None:
                lanes[lane] = combine(lanes[lane], lanes[lane + width])
    return lanes[0]


class TestReduce:
    @pytest.mark.parametrize("extent", EXTENTS)
    @pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64), BF16], ids=str)
    def test_a_sum_has_the_bits_of_the_canonical_order(self, extent: int, dtype: np.dtype[Any], rng: Any) -> None:
        values = rng.standard_normal((3, extent)).astype(dtype)
        found = run(ReduceOp, values, fn="sum", axis=1)
        expected = [in_lanes(list(row), rounded(dtype, lambda a, b: a + b)) for row in values]
        assert found[:, 0].tolist() == expected

    @pytest.mark.parametrize("extent", EXTENTS)
    def test_a_product_has_the_bits_of_the_canonical_order(self, extent: int, rng: Any) -> None:
        values = (1 + rng.standard_normal((extent, 2)) / 10).astype(np.float32)
        found = run(ReduceOp, values, fn="prod", axis=0)
        expected = [in_lanes(list(column), rounded(values.dtype, lambda a, b: a * b)) for column in values.T]
        assert found[0].tolist() == expected

    @pytest.mark.parametrize("extent", EXTENTS)
    def test_sums_are_right(self, extent: int, rng: Any) -> None:
        values = rng.standard_normal((2, extent, 3)).astype(np.float32)
        found = run(ReduceOp, values, fn="sum", axis=1)
        np.testing.assert_allclose(found, values.astype(np.float64).sum(1, keepdims=True), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("fn", ["max", "min"])
    @pytest.mark.parametrize("dtype", ["float32", "int8", "int64"])
    @pytest.mark.parametrize("extent", EXTENTS)
    def test_extremes_are_right(self, fn: str, dtype: str, extent: int, rng: Any) -> None:
        values = rng.integers(-100, 100, (4, extent)).astype(dtype)
        assert run(ReduceOp, values, fn=fn, axis=1)[:, 0].tolist() == getattr(values, fn)(1).tolist()

    def test_nan_wins_an_extreme(self) -> None:
        values = np.array([[1.0, math.nan, 3.0]], np.float32)
        assert np.isnan(run(ReduceOp, values, fn="max", axis=1)).all()
        assert np.isnan(run(ReduceOp, values, fn="min", axis=1)).all()

    def test_integer_sums_wrap_in_their_dtype(self) -> None:
        assert run(ReduceOp, np.full((1, 40), 100, np.int8), fn="sum", axis=1)[0, 0] == np.int64(4000).astype(np.int8)

    @pytest.mark.parametrize("extent", EXTENTS)
    def test_any_and_all(self, extent: int, rng: Any) -> None:
        for share in (0.0, 0.1, 0.9, 1.0):
            values = rng.random((5, extent)) < share
            assert run(ReduceOp, values, fn="any", axis=1)[:, 0].tolist() == values.any(1).tolist()
            assert run(ReduceOp, values, fn="all", axis=1)[:, 0].tolist() == values.all(1).tolist()

    @pytest.mark.parametrize("fn", ["argmax", "argmin"])
    @pytest.mark.parametrize("extent", EXTENTS)
    def test_the_best_key_comes_with_its_lowest_index_and_nan_first(self, fn: str, extent: int, rng: Any) -> None:
        keys = rng.integers(-3, 4, (6, extent)).astype(np.float32)
        keys[:3][rng.random((3, extent)) < 0.2] = math.nan
        at = np.broadcast_to(np.arange(extent, dtype=np.int32), keys.shape)
        best, index = run(ReduceOp, keys, at, fn=fn, axis=1)
        expected = getattr(torch.from_numpy(keys), fn)(1).numpy()
        # torch promises no index among equals; NumPy's is the lowest, and it puts NaN first, too
        assert index[:, 0].tolist() == getattr(np, fn)(keys, 1).tolist()
        np.testing.assert_array_equal(best[:, 0], np.take_along_axis(keys, expected[:, None], 1)[:, 0])

    @given(st.data())
    def test_the_lowest_index_wins_whatever_the_order_of_the_payload(self, data: st.DataObject) -> None:
        extent = data.draw(st.integers(1, 40))
        keys = np.array(
            [data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=extent, max_size=extent))], np.float32
        )
        at = np.array([data.draw(st.permutations(range(extent)))], np.int32)
        _, index = run(ReduceOp, keys, at, fn="argmax", axis=1)
        assert index[0, 0] == min(at[keys == keys.max()])

    @pytest.mark.parametrize("extent", [1, 2, 5, 33])
    def test_attention_merges_to_the_softmax_of_all_keys(self, extent: int, rng: Any) -> None:
        scores, values = rng.standard_normal((4, extent)) * 20, rng.standard_normal((extent, 3))
        m = scores[..., None].astype(np.float32)
        wide = np.broadcast_to(values, (4, extent, 3)).astype(np.float32)
        top, total, out = run(ReduceOp, m, np.ones_like(m), wide, fn="attention", axis=1)
        weights = np.exp(m[..., 0].astype(np.float64) - top[..., 0])
        np.testing.assert_array_equal(top[:, 0, 0], m.max(1)[:, 0])
        np.testing.assert_allclose(total[:, 0, 0], weights.sum(1), rtol=1e-5)
        np.testing.assert_allclose(out[:, 0], weights @ values, rtol=1e-4, atol=1e-5)

    def test_attention_merges_left_to_right(self, rng: Any) -> None:
        m = (rng.standard_normal((1, 20)) * 5).astype(np.float32)
        one = np.ones_like(m)
        _, total, _ = run(ReduceOp, m, one, one, fn="attention", axis=1)
        top, expected = m[0, 0], np.float32(1)
        for value in m[0, 1:]:
            new = max(top, value)
            old_weight, weight = (np.float32(math.exp(float(np.float32(x - new)))) for x in (top, value))
            expected = np.float32(np.float32(expected * old_weight) + weight)
            top = new
        assert total[0, 0] == expected

    def test_keys_that_nobody_sees_weigh_nothing(self) -> None:
        m = np.full((1, 3, 1), -np.inf, np.float32)
        _, total, out = run(ReduceOp, m, np.zeros_like(m), np.zeros((1, 3, 2), np.float32), fn="attention", axis=1)
        assert (total == 0).all()
        assert (out == 0).all()

    @pytest.mark.parametrize("extent", EXTENTS)
    def test_welford_gives_mean_and_squares(self, extent: int, rng: Any) -> None:
        values = (rng.standard_normal((3, extent)) + 100).astype(np.float32)
        mean, squares, count = run(ReduceOp, values, np.zeros_like(values), np.ones_like(values), fn="welford", axis=1)
        wide = values.astype(np.float64)
        np.testing.assert_allclose(mean[:, 0], wide.mean(1), rtol=1e-6)
        np.testing.assert_allclose(squares[:, 0], wide.var(1) * extent, rtol=1e-4, atol=1e-4)
        assert (count == extent).all()

    def test_welford_takes_empty_parts(self) -> None:
        mean, squares, count = run(
            ReduceOp,
            np.array([[5.0, np.inf, 7.0]], np.float32),
            np.array([[0.0, np.nan, 0.0]], np.float32),
            np.array([[1.0, 0.0, 1.0]], np.float32),
            fn="welford",
            axis=1,
        )
        assert (mean[0, 0], squares[0, 0], count[0, 0]) == (6.0, 2.0, 2.0)

    def test_one_poison_lane_poisons_its_row_alone(self) -> None:
        mask = np.zeros((3, 20), bool)
        mask[1, 13] = True
        found = spread(ReduceOp, [np.ones((3, 20), np.float32)], [mask], fn="sum", axis=1)
        assert found[:, 0].tolist() == [False, True, False]

    @pytest.mark.parametrize("fn", ["sum", "max", "argmax", "argmin", "attention", "welford"])
    def test_poison_covers_all_that_it_can_change(self, fn: str, rng: Any) -> None:
        arity = {"argmax": 2, "argmin": 2, "attention": 3, "welford": 3}.get(fn, 1)
        values = [rng.standard_normal((8, 20)).astype(np.float32) for _ in range(arity)]
        if fn.startswith("arg"):
            values[1] = np.broadcast_to(np.arange(20, dtype=np.int32), (8, 20))
        masks = [rng.random((8, 20)) < 0.05 for _ in values]
        poison_is_honest(ReduceOp, values, masks, rng, fn=fn, axis=1)

    def test_the_cost_is_one_flop_an_element_combined(self) -> None:
        assert make(ReduceOp, np.zeros((3, 20), np.float32), fn="sum", axis=1).cost().vector.constant == 60

    @pytest.mark.parametrize(
        ("operands", "properties", "message"),
        [
            ([np.float32], {"fn": "sum", "axis": 2}, "axis 2"),
            ([np.float32], {"fn": "median", "axis": 0}, "no combine is called 'median'"),
            ([np.float32], {"fn": "argmax", "axis": 0}, "combines 2 tiles, got 1"),
            ([np.float32, np.float32], {"fn": "argmax", "axis": 0}, "integer indices"),
            ([np.float32], {"fn": "any", "axis": 0}, "any does not reduce f32"),
            ([bool], {"fn": "sum", "axis": 0}, "sum does not reduce i1"),
            ([np.int32] * 3, {"fn": "welford", "axis": 0}, "combines floats of one dtype"),
        ],
    )
    def test_what_does_not_combine_is_refused(self, operands: list[Any], properties: Any, message: str) -> None:
        with pytest.raises(IRError, match=message):
            make(ReduceOp, *(np.zeros((2, 3), t) for t in operands), **properties)


class TestAccumulate:
    @pytest.mark.parametrize("fn", ["sum", "prod", "max", "min"])
    @pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16, np.dtype(np.int32)], ids=str)
    @pytest.mark.parametrize("extent", [16, 32, 112])
    def test_each_lane_folds_its_elements_in_order(self, fn: str, dtype: np.dtype[Any], extent: int, rng: Any) -> None:
        values = (rng.standard_normal((2, extent)) * 3).astype(dtype)
        acc = (rng.standard_normal((2, LANES)) * 3).astype(dtype)
        combine = {"sum": lambda a, b: a + b, "prod": lambda a, b: a * b, "max": max, "min": min}[fn]
        expected = acc.copy()
        for row in range(2):
            for position in range(extent):
                lane = position % LANES
                expected[row, lane] = rounded(dtype, combine)(expected[row, lane], values[row, position])
        found = run(AccumulateOp, values, acc, fn=fn)
        assert found.tobytes() == expected.tobytes()

    def test_accumulating_and_reducing_is_the_order_of_one_long_reduce(self, rng: Any) -> None:
        values = rng.standard_normal((1, 96)).astype(np.float32)
        acc = values[:, :LANES]
        for start in range(LANES, 96, 2 * LANES):
            acc = run(AccumulateOp, values[:, start : min(start + 2 * LANES, 96)], acc, fn="sum")
        assert run(ReduceOp, acc, fn="sum", axis=1) == run(ReduceOp, values, fn="sum", axis=1)

    def test_poison_stays_in_its_lane(self) -> None:
        mask = np.zeros((1, 32), bool)
        mask[0, 19] = True
        found = spread(
            AccumulateOp, [np.zeros((1, 32), np.float32), np.zeros((1, 16), np.float32)], [mask, None], fn="sum"
        )
        assert np.flatnonzero(found[0]).tolist() == [3]

    def test_a_ragged_extent_is_refused(self) -> None:
        with pytest.raises(IRError, match="must be a multiple of 16"):
            make(AccumulateOp, np.zeros((1, 20), np.float32), np.zeros((1, 16), np.float32), fn="sum")


class TestScan:
    @pytest.mark.parametrize("extent", EXTENTS)
    def test_sums_run_in_order(self, extent: int, rng: Any) -> None:
        values = rng.standard_normal((2, extent)).astype(np.float32)
        found = run(ScanOp, values, fn="sum", axis=1)
        for row in range(2):
            total = values[row, 0]
            for position in range(extent):
                total = total if position == 0 else np.float32(total + values[row, position])
                assert found[row, position] == total

    @pytest.mark.parametrize("fn", ["prod", "max", "min"])
    def test_other_scans_are_numpys(self, fn: str, rng: Any) -> None:
        values = rng.integers(-3, 4, (9, 2)).astype(np.int64)
        ufunc = {"prod": np.multiply, "max": np.maximum, "min": np.minimum}[fn]
        np.testing.assert_array_equal(run(ScanOp, values, fn=fn, axis=0), ufunc.accumulate(values, 0))

    def test_a_linear_recurrence_rounds_once_a_step(self, rng: Any) -> None:
        a, b = (rng.standard_normal((1, 40)).astype(np.float32) for _ in range(2))
        decay, h = run(ScanOp, a, b, fn="linear", axis=1)
        product, state = a[0, 0], b[0, 0]
        assert (decay[0, 0], h[0, 0]) == (product, state)
        for t in range(1, 40):
            exact = Fraction(float(a[0, t])) * Fraction(float(state)) + Fraction(float(b[0, t]))
            state, product = nearest_f32(exact), np.float32(product * a[0, t])
            assert h[0, t] == state
            assert decay[0, t] == product

    def test_a_linear_recurrence_continues_from_a_state(self, rng: Any) -> None:
        a, b = rng.random((3, 12)).astype(np.float32), rng.standard_normal((3, 12)).astype(np.float32)
        decay, h = run(ScanOp, a, b, fn="linear", axis=1)
        state = rng.standard_normal(3)
        expected = state.copy()
        for t in range(12):
            expected = a[:, t].astype(np.float64) * expected + b[:, t]
            np.testing.assert_allclose(h[:, t] + decay[:, t] * state, expected, rtol=1e-4, atol=1e-5)

    def test_poison_flows_onwards_only(self) -> None:
        mask = np.zeros((1, 5), bool)
        mask[0, 2] = True
        zeros = np.zeros((1, 5), np.float32)
        assert spread(ScanOp, [zeros], [mask], fn="sum", axis=1)[0].tolist() == [False, False, True, True, True]
        decay, h = spread(ScanOp, [zeros, zeros], [None, mask], fn="linear", axis=1)
        assert not decay.any()
        assert h[0].tolist() == [False, False, True, True, True]

    @pytest.mark.parametrize("fn", ["sum", "max", "linear"])
    def test_poison_covers_all_that_it_can_change(self, fn: str, rng: Any) -> None:
        values = [rng.standard_normal((6, 11)).astype(np.float32) for _ in range(2 if fn == "linear" else 1)]
        masks = [rng.random((6, 11)) < 0.1 for _ in values]
        poison_is_honest(ScanOp, values, masks, rng, fn=fn, axis=1)


def nearest_f32(exact: Fraction) -> np.float32:
    """A fraction rounded once, to nearest even."""
    guess = np.float32(float(exact))
    around = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    even = {float(x): int(x.view(np.int32)) & 1 for x in around}
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), even[float(x)]))
