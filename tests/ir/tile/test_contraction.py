"""Dots: exact order and rounding, and the right value."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.ir.tile.single_op import make, poison_is_honest, run, spread
from tests.ir.tile.test_reduction import nearest_f32
from tilewright.errors import IRError
from tilewright.ir.tile.compute import DotOp, DotScaledOp

BF16 = np.dtype(ml_dtypes.bfloat16)
SIZES = [(1, 1, 1), (1, 7, 3), (6, 64, 5), (4, 33, 17)]


def fused_dot(a: Any, b: Any, acc: Any) -> Any:
    """acc + a b in rational arithmetic, rounded to f32 once a step."""
    result = acc.copy()
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                exact = Fraction(float(a[i, k])) * Fraction(float(b[k, j])) + Fraction(float(result[i, j]))
                result[i, j] = nearest_f32(exact)
    return result


class TestDot:
    @pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BF16], ids=str)
    @pytest.mark.parametrize(("m", "k", "n"), SIZES)
    def test_every_step_rounds_once(self, dtype: Any, m: int, k: int, n: int, rng: Any) -> None:
        a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        acc = rng.standard_normal((m, n)).astype(np.float32)
        assert run(DotOp, a, b, acc).tobytes() == fused_dot(a, b, acc).tobytes()

    @pytest.mark.parametrize("chain", [0, 1, 5, 16, 40])
    def test_chains_start_from_zero_and_their_sums_are_added_in_order(self, chain: int, rng: Any) -> None:
        a, b = rng.standard_normal((3, 33)).astype(np.float32), rng.standard_normal((33, 4)).astype(np.float32)
        acc = rng.standard_normal((3, 4)).astype(np.float32)
        step = chain or 33
        want = fused_dot(a[:, :step], b[:step], acc)
        for first in range(step, 33, step):
            want = want + fused_dot(a[:, first : first + step], b[first : first + step], np.zeros_like(acc))
        assert run(DotOp, a, b, acc, chain=chain).tobytes() == want.tobytes()

    def test_a_chain_of_fewer_than_no_k_is_malformed(self) -> None:
        with pytest.raises(IRError, match="a chain has 0"):
            make(DotOp, np.ones((2, 3), np.float32), np.ones((3, 2), np.float32), np.ones((2, 2), np.float32), chain=-1)

    def test_a_sum_halfway_between_two_floats_is_not_rounded_twice(self) -> None:
        # the square is 1 + 2^-11 + 2^-24, a tie; 2^-70 more lies above it, but f64 cannot tell
        a, tiny = np.array([[1 + 2.0**-12]], np.float32), np.array([[2.0**-70]], np.float32)
        assert run(DotOp, a, a, tiny)[0, 0] == np.nextafter(np.float32(1 + 2.0**-11), np.float32(2))
        assert run(DotOp, a, a, -tiny)[0, 0] == np.float32(1 + 2.0**-11)

    def test_subnormal_sums_round_once(self, rng: Any) -> None:
        a = (rng.standard_normal((4, 6)) * 2.0**-75).astype(np.float32)
        b = (rng.standard_normal((6, 4)) * 2.0**-70).astype(np.float32)
        acc = (rng.standard_normal((4, 4)) * 2.0**-140).astype(np.float32)
        assert run(DotOp, a, b, acc).tobytes() == fused_dot(a, b, acc).tobytes()

    def test_a_subnormal_sum_just_below_a_tie_stays_below(self) -> None:
        unit = 2.0**-149
        a, b = np.array([[2.0**-75 * (1 + 2.0**-23)]], np.float32), np.array([[2.0**-75 * (1 - 2.0**-23)]], np.float32)
        acc = np.array([[2.0**-130 + unit]], np.float32)
        assert run(DotOp, a, b, acc)[0, 0] == acc[0, 0]

    def test_infinities_and_nan_pass_through(self) -> None:
        a = np.array([[np.inf, 1.0], [np.inf, -np.inf], [np.nan, 0.0], [1e38, 1e38]], np.float32)
        found = run(DotOp, a, np.array([[10.0], [10.0]], np.float32), np.zeros((4, 1), np.float32))[:, 0]
        assert found[0] == np.inf
        assert np.isnan(found[1:3]).all()
        assert found[3] == np.inf

    def test_doubles_accumulate_in_doubles(self, rng: Any) -> None:
        a, b, acc = rng.standard_normal((3, 20)), rng.standard_normal((20, 2)), rng.standard_normal((3, 2))
        found = run(DotOp, a, b, acc)
        for i in range(3):
            for j in range(2):
                total = acc[i, j]
                for k in range(20):
                    total = float(Fraction(a[i, k]) * Fraction(b[k, j]) + Fraction(total))
                assert found[i, j] == total

    @pytest.mark.parametrize("dtypes", [("int8", "int8"), ("uint8", "int8"), ("int16", "int16")])
    def test_integers_are_exact_and_wrap(self, dtypes: tuple[str, str], rng: Any) -> None:
        a, b = (
            rng.integers(np.iinfo(t).min, np.iinfo(t).max, s).astype(t)
            for t, s in zip(dtypes, [(3, 50), (50, 4)], strict=True)
        )
        acc = rng.integers(-(2**31), 2**31 - 1, (3, 4)).astype(np.int32)
        expected = [
            [int(acc[i, j]) + sum(int(a[i, k]) * int(b[k, j]) for k in range(50)) for j in range(4)] for i in range(3)
        ]
        assert run(DotOp, a, b, acc).tolist() == [[(v + 2**31) % 2**32 - 2**31 for v in row] for row in expected]

    def test_poison_fills_its_row_or_column(self) -> None:
        a, b, acc = np.zeros((3, 4), np.float32), np.zeros((4, 5), np.float32), np.zeros((3, 5), np.float32)
        in_a, in_b = np.zeros(a.shape, bool), np.zeros(b.shape, bool)
        in_a[1, 2] = in_b[0, 3] = True
        found = spread(DotOp, [a, b, acc], [in_a, in_b, None])
        expected = np.zeros((3, 5), bool)
        expected[1] = expected[:, 3] = True
        np.testing.assert_array_equal(found, expected)

    def test_poison_covers_all_that_it_can_change(self, rng: Any) -> None:
        values = [rng.standard_normal(s).astype(np.float32) for s in [(5, 4), (4, 6), (5, 6)]]
        poison_is_honest(DotOp, values, [rng.random(v.shape) < 0.08 for v in values], rng)

    def test_the_cost_is_two_flops_a_step(self) -> None:
        cost = make(
            DotOp, np.zeros((3, 4), np.float32), np.zeros((4, 5), np.float32), np.zeros((3, 5), np.float32)
        ).cost()
        assert (cost.matrix.constant, cost.vector.constant) == (2 * 3 * 4 * 5, 0)

    @pytest.mark.parametrize(
        ("types", "message"),
        [
            (("float32", "float64", "float32"), "operand dtypes differ"),
            (("float32", "float32", "float64"), "accumulates in f32, got f64"),
            ((BF16, BF16, BF16), "accumulates in f32, got bf16"),
            (("int8", "int8", "float32"), "accumulates in i32, got f32"),
            (("int32", "int32", "int32"), "accumulates in"),
        ],
    )
    def test_other_dtypes_are_refused(self, types: Any, message: str) -> None:
        with pytest.raises(IRError, match=message):
            make(DotOp, np.zeros((2, 3), types[0]), np.zeros((3, 2), types[1]), np.zeros((2, 2), types[2]))


class TestDotScaled:
    @pytest.mark.parametrize("group", [4, 32])
    @pytest.mark.parametrize("dtypes", [("int8", "int8"), ("uint8", "int8"), ("bfloat16", "bfloat16")])
    def test_each_group_is_exact_and_scaled_in_order(self, group: int, dtypes: tuple[str, str], rng: Any) -> None:
        a, b = (
            rng.integers(-8 if t != "uint8" else 0, 8, s).astype(t)
            for t, s in zip(dtypes, [(3, 64), (64, 2)], strict=True)
        )
        sa = rng.random((3, 64 // group)).astype(np.float16)
        sb = rng.random((64 // group, 2)).astype(np.float32)
        acc = rng.standard_normal((3, 2)).astype(np.float32)
        found = run(DotScaledOp, a, sa, b, sb, acc, group=group)
        for i in range(3):
            for j in range(2):
                total = acc[i, j]
                for g in range(64 // group):
                    dot = sum(int(a[i, k]) * int(b[k, j]) for k in range(g * group, (g + 1) * group))
                    scale = np.float32(np.float32(sa[i, g]) * sb[g, j])
                    total = nearest_f32(Fraction(dot) * Fraction(float(scale)) + Fraction(float(total)))
                assert found[i, j] == total

    def test_poison_covers_all_that_it_can_change(self, rng: Any) -> None:
        values = [
            rng.integers(-8, 8, (5, 8)).astype(np.int8),
            rng.random((5, 2)).astype(np.float32),
            rng.integers(-8, 8, (8, 6)).astype(np.int8),
            rng.random((2, 6)).astype(np.float32),
            rng.random((5, 6)).astype(np.float32),
        ]
        poison_is_honest(DotScaledOp, values, [rng.random(v.shape) < 0.04 for v in values], rng, group=4)

    def test_the_cost_counts_the_scaling_apart(self) -> None:
        f32 = np.float32
        op = make(
            DotScaledOp,
            np.zeros((3, 8), np.int8),
            np.zeros((3, 2), f32),
            np.zeros((8, 5), np.int8),
            np.zeros((2, 5), f32),
            np.zeros((3, 5), f32),
            group=4,
        )
        assert (op.cost().matrix.constant, op.cost().vector.constant) == (2 * 3 * 8 * 5, 3 * 3 * 5 * 2)

    def test_scales_must_cover_the_groups(self) -> None:
        f32 = np.float32
        with pytest.raises(IRError, match=r"scales must be \[3, 2\] and \[2, 5\]"):
            make(
                DotScaledOp,
                np.zeros((3, 8), np.int8),
                np.zeros((3, 1), f32),
                np.zeros((8, 5), np.int8),
                np.zeros((2, 5), f32),
                np.zeros((3, 5), f32),
                group=4,
            )
