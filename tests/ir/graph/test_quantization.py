"""Quantize and dequantize: torch's own numbers, groups, and scales that must fit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, run, value
from tilewright.ir.dims import parse_expr
from tilewright.ir.dtypes import I8, U8
from tilewright.ir.graph.quantization import DequantizeOp, QuantizeOp


@pytest.mark.parametrize(("name", "low", "high"), [("i8", -128, 127), ("u8", 0, 255)])
def test_one_scale_for_all_is_torchs(name: str, low: int, high: int) -> None:
    # a power of two, because torch multiplies by the reciprocal of the scale
    x, step, zero = torch.randn(50, 7) * 9, 0.0625, 3
    theirs = torch.fake_quantize_per_tensor_affine(x, step, zero, low, high)
    # an axis of one group: the scale has one entry there, and the other axis stretches
    scale, point = torch.tensor([[step]]), torch.tensor([[zero]], dtype=torch.int8 if low else torch.uint8)
    ours = apply(QuantizeOp, x, scale, point, dtype=name, axis=1)
    assert torch.equal(apply(DequantizeOp, ours, scale, point, axis=1), theirs)


@given(st.integers(0, 3), st.integers(1, 9), st.integers(0, 4), st.booleans())
def test_each_group_has_its_scale(rows: int, columns: int, group: int, pointed: bool) -> None:
    x = torch.randn(rows, columns).double()
    groups = math.ceil(columns / group) if group else 1
    scale = torch.rand(rows, groups).double() + 0.01
    point = torch.randint(-5, 5, (rows, groups), dtype=torch.int8) if pointed else None
    q = apply(QuantizeOp, x, scale, point, axis=1, group=group)
    back = apply(DequantizeOp, q, scale, point, axis=1, group=group, dtype="f64")
    for r in range(rows):
        for c in range(columns):
            own = c // group if group else 0
            zero = int(point[r, own]) if point is not None else 0
            step = float(scale[r, own])
            expected = min(127, max(-128, round(float(x[r, c]) / step) + zero))
            assert int(q[r, c]) == expected
            assert float(back[r, c]) == pytest.approx((expected - zero) * step)


def test_halves_go_to_even_and_the_range_saturates() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, 1e9, -1e9])
    assert apply(QuantizeOp, x, torch.ones(1), axis=0).tolist() == [0, 2, 0, 127, -128]
    assert apply(QuantizeOp, x, torch.ones(1), axis=0, dtype="u8").tolist() == [0, 2, 0, 255, 0]


def test_dequantize_subtracts_in_integers() -> None:
    q, point = torch.tensor([250], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)
    assert apply(DequantizeOp, q, torch.tensor([2.0]), point, axis=0).tolist() == [-10.0]
    assert apply(DequantizeOp, q, torch.tensor([2.0]), axis=0, dtype="bf16").dtype == torch.bfloat16


def test_symbols_along_the_group_axis() -> None:
    scale = value([4, parse_expr("floordiv(k + 31, 32)")])
    op = DequantizeOp.make(value([4, "k"], I8), scale, axis=1, group=32)
    run(op, torch.zeros(4, 40, dtype=torch.int8), torch.ones(4, 2), None, sizes={"k": 40})
    assert op.cost().at({"k": 40})["vector"] == 2 * 160


def test_scales_that_do_not_fit_are_named() -> None:
    x, q = value([4, 64]), value([4, 64], I8)
    assert "3 entries along axis 1 of f32[4, 64], 2 are needed" in complaint(
        QuantizeOp, x, value([4, 3]), axis=1, group=32
    )
    assert "2 entries along axis 0" in complaint(QuantizeOp, x, value([2, 1]), axis=1)
    assert "floats of rank 2" in complaint(QuantizeOp, x, value([4]), axis=1)
    assert "zero_point must be i8[4, 1], got u8[4, 1]" in complaint(
        QuantizeOp, x, value([4, 1]), value([4, 1], U8), axis=1
    )
    assert "group -1 is negative" in complaint(QuantizeOp, x, value([4, 1]), axis=1, group=-1)
    assert "integer dtype" in complaint(QuantizeOp, x, value([4, 1]), axis=1, dtype="f16")
    assert "float dtype" in complaint(DequantizeOp, q, value([4, 1]), axis=1, dtype="i8")
    assert "takes integers" in complaint(DequantizeOp, x, value([4, 1]), axis=1)
    assert "axis 2 is not one" in complaint(QuantizeOp, x, value([4, 1]), axis=2)
