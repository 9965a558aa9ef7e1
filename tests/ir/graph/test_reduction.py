"""Reductions, softmax, norms, running sums and sorting against torch, with ties, NaN and nothing to reduce."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import FLOATS, apply, complaint, run, value
from tilewright.ir.dtypes import F64, I1, I64, DType, torch_name
from tilewright.ir.graph.reduction import CumulativeOp, NormOp, ReduceOp, SoftmaxOp, SortOp, TopkOp

shapes = st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=3)
TORCH = {
    "sum": torch.sum,
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
    "any": torch.any,
    "all": torch.all,
}


@given(shapes, st.data(), st.sampled_from(sorted(TORCH)), st.booleans())
def test_reductions_are_torchs(shape: list[int], data: st.DataObject, fn: str, keep: bool) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    x = torch.randn(shape, dtype=torch.float64)
    x = x > 0 if fn in ("any", "all") else x
    torch.testing.assert_close(
        apply(ReduceOp, x, fn=fn, axes=axes, keepdims=keep), TORCH[fn](x, tuple(axes), keepdim=keep)
    )


@given(shapes, st.data(), st.sampled_from(["prod", "argmax", "argmin"]), st.booleans())
def test_reductions_of_one_axis_are_torchs(shape: list[int], data: st.DataObject, fn: str, keep: bool) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(
        apply(ReduceOp, x, fn=fn, axes=[axis], keepdims=keep), getattr(torch, fn)(x, axis, keepdim=keep)
    )


def test_reducing_no_axis_changes_nothing() -> None:
    x = torch.randn(2, 3)
    for fn in ("sum", "max", "mean", "prod"):
        assert torch.equal(apply(ReduceOp, x, fn=fn, axes=[]), x)


@pytest.mark.parametrize(
    ("fn", "identity"), [("sum", 0), ("prod", 1), ("max", -math.inf), ("min", math.inf), ("mean", math.nan)]
)
def test_nothing_reduces_to_the_identity(fn: str, identity: float) -> None:
    found = apply(ReduceOp, torch.zeros(2, 0), fn=fn, axes=[1])
    torch.testing.assert_close(found, torch.full([2], float(identity)), equal_nan=True)


def test_nothing_of_integers_and_truth_values_reduces_to_the_identity() -> None:
    empty = torch.zeros(0, dtype=torch.int8)
    assert [int(apply(ReduceOp, empty, fn=fn, axes=[0])) for fn in ("sum", "prod", "max", "min")] == [0, 1, -128, 127]
    none = torch.zeros(0, dtype=torch.bool)
    assert [bool(apply(ReduceOp, none, fn=fn, axes=[0])) for fn in ("any", "all")] == [False, True]


def test_the_lowest_index_wins_and_nan_is_the_extreme() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0, 0.0], [1.0, math.nan, 5.0, math.nan, -9.0]])
    assert apply(ReduceOp, x, fn="argmax", axes=[1]).tolist() == [1, 1]
    assert apply(ReduceOp, x, fn="argmin", axes=[1]).tolist() == [3, 1]
    assert apply(ReduceOp, x, fn="max", axes=[1]).isnan().tolist() == [False, True]


def test_integers_keep_their_dtype_and_wrap() -> None:
    x = torch.tensor([100, 100], dtype=torch.int8)
    assert apply(ReduceOp, x, fn="sum", axes=[0]).item() == -56
    big = torch.tensor([2**53, 1])
    assert apply(ReduceOp, big, fn="sum", axes=[0]).item() == 2**53 + 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_narrow_floats_accumulate_in_f32(dtype: DType) -> None:
    x = torch.full([4096], 1.0).to(getattr(torch, torch_name(dtype)))
    assert apply(ReduceOp, x, fn="sum", axes=[0]).item() == 4096
    assert apply(CumulativeOp, x, fn="sum", axis=0)[-1].item() == 4096


def test_reduce_refusals() -> None:
    x = value([2, 3])
    assert "axis 2 is not one of the 2" in complaint(ReduceOp, x, fn="sum", axes=[2])
    assert "axis -1" in complaint(ReduceOp, x, fn="sum", axes=[-1])
    assert "twice" in complaint(ReduceOp, x, fn="sum", axes=[1, 1])
    assert "'median' is not one of" in complaint(ReduceOp, x, fn="median", axes=[1])
    assert "takes one axis" in complaint(ReduceOp, x, fn="argmax", axes=[0, 1])
    assert "does not take i1" in complaint(ReduceOp, value([2], I1), fn="sum", axes=[0])
    assert "does not take f32" in complaint(ReduceOp, x, fn="any", axes=[0])
    assert "does not take i64" in complaint(ReduceOp, value([2], I64), fn="mean", axes=[0])


@given(shapes, st.data(), st.booleans())
def test_softmax_is_torchs(shape: list[int], data: st.DataObject, log: bool) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = torch.randn(shape, dtype=torch.float64) * 30
    expected = x.log_softmax(axis) if log else x.softmax(axis)
    torch.testing.assert_close(apply(SoftmaxOp, x, axis=axis, log=log), expected)


def test_softmax_of_hidden_rows_and_of_nothing() -> None:
    x = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    assert apply(SoftmaxOp, x, axis=1).isnan().tolist() == [[False, False], [True, True]]
    assert apply(SoftmaxOp, torch.zeros(2, 0), axis=1).shape == (2, 0)
    assert "takes floats" in complaint(SoftmaxOp, value([2], I64), axis=0)


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 7), (1, 1), (0, 4)])
@pytest.mark.parametrize("given", ["none", "weight", "both"])
def test_norms_are_torchs(shape: tuple[int, ...], given: str) -> None:
    x = torch.randn(shape, dtype=torch.float64) + 2
    weight = torch.randn(shape[-1:], dtype=torch.float64) if given != "none" else None
    bias = torch.randn(shape[-1:], dtype=torch.float64) if given == "both" else None
    torch.testing.assert_close(
        apply(NormOp, x, weight, bias, kind="layer", eps=1e-5),
        torch.nn.functional.layer_norm(x, shape[-1:], weight, bias, 1e-5),
    )
    rms = torch.nn.functional.rms_norm(x, shape[-1:], weight, 1e-6)
    torch.testing.assert_close(
        apply(NormOp, x, weight, bias, kind="rms", eps=1e-6), rms if bias is None else rms + bias
    )


def test_a_narrow_norm_is_the_wide_one_rounded() -> None:
    x, weight = (torch.randn(4, 33) * 3).bfloat16(), torch.randn(33).bfloat16()
    wide = apply(NormOp, x.double(), weight.double(), kind="layer", eps=1e-5)
    torch.testing.assert_close(apply(NormOp, x, weight, kind="layer", eps=1e-5), wide.bfloat16())


def test_norm_refusals_and_cost() -> None:
    assert "weight must be f32[3], got f32[4]" in complaint(NormOp, value([2, 3]), value([4]), kind="rms", eps=1e-6)
    assert "bias must be f32[3]" in complaint(NormOp, value([2, 3]), None, value([3], F64), kind="layer", eps=1e-6)
    assert "'batch' is not one of" in complaint(NormOp, value([2, 3]), kind="batch", eps=1e-6)
    assert "takes floats" in complaint(NormOp, value([2], I64), kind="rms", eps=1e-6)
    op = NormOp.make(value(["tokens", 8]), value([8]), kind="rms", eps=1e-6)
    assert op.cost().at({"tokens": 3}) == {"matrix": 0, "vector": 24 * 4 + 12, "read": 96 + 32, "write": 96}
    run(op, torch.randn(3, 8), torch.randn(8), None, sizes={"tokens": 3})


@given(shapes, st.data(), st.sampled_from(["sum", "prod", "max"]))
def test_cumulative_is_torchs(shape: list[int], data: st.DataObject, fn: str) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = torch.randn(shape, dtype=torch.float64)
    expected = x.cummax(axis).values if fn == "max" else getattr(x, f"cum{fn}")(axis)
    torch.testing.assert_close(apply(CumulativeOp, x, fn=fn, axis=axis), expected)


def test_cumulative_keeps_integers_and_refuses_truth_values() -> None:
    assert apply(CumulativeOp, torch.tensor([1, 2, 3], dtype=torch.int32), fn="sum", axis=0).tolist() == [1, 3, 6]
    assert "does not take i1" in complaint(CumulativeOp, value([2], I1), fn="sum", axis=0)
    assert "'min' is not one of" in complaint(CumulativeOp, value([2]), fn="min", axis=0)


@given(shapes, st.data(), st.booleans())
def test_sort_is_stable_with_nan_largest(shape: list[int], data: st.DataObject, descending: bool) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    # few distinct values, so that there are ties
    x = torch.randint(-1, 2, shape).double()
    x[torch.rand(shape) < 0.2] = math.nan
    values, indices = apply(SortOp, x, axis=axis, descending=descending)
    sign = -1 if descending else 1
    for lane, order in zip(
        x.movedim(axis, -1).reshape(-1, shape[axis]), indices.movedim(axis, -1).reshape(-1, shape[axis]), strict=True
    ):
        listed = lane.tolist()
        keys = [(sign * (math.inf if math.isnan(v) else v), i) for i, v in enumerate(listed)]
        assert order.tolist() == [i for _, i in sorted(keys)]
    torch.testing.assert_close(values, x.gather(axis, indices), equal_nan=True)


def test_topk_takes_the_lowest_of_equals_and_counts_nan_as_largest() -> None:
    x = torch.tensor([2.0, 5.0, 5.0, math.nan, 5.0])
    values, indices = apply(TopkOp, x, k=3, axis=0)
    assert indices.tolist() == [3, 1, 2]
    assert values[1:].tolist() == [5, 5]
    values, indices = apply(TopkOp, torch.randn(3, 0, 4), k=0, axis=1)
    assert values.shape == indices.shape == (3, 0, 4)


@given(st.integers(1, 6), st.data())
def test_topk_is_torchs_where_nothing_ties(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    x = torch.randperm(n * 3).reshape(3, n).float()
    values, indices = apply(TopkOp, x, k=k, axis=1)
    expected = x.topk(k, 1)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)


def test_topk_refuses_more_than_there_is() -> None:
    assert "k = 4 of 3" in complaint(TopkOp, value([3]), k=4, axis=0)
    assert "k = -1" in complaint(TopkOp, value(["n"]), k=-1, axis=0)
