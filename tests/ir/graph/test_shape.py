"""Ops that rearrange: the elements torch gives, the dims that follow, and refusals that name the axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, run, value
from tilewright.errors import IRError
from tilewright.ir.dims import Expr, parse_expr
from tilewright.ir.dtypes import I64
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp

shapes = st.lists(st.sampled_from([0, 1, 2, 3, 5]), min_size=1, max_size=4)


@given(shapes, st.randoms())
def test_transpose_is_permute(shape: list[int], random: object) -> None:
    x = torch.randn(shape)
    order = list(range(x.ndim))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert torch.equal(apply(TransposeOp, x, permutation=order), x.permute(order))


@given(shapes)
def test_reshape_keeps_row_major_order(shape: list[int]) -> None:
    x = torch.randn(shape)
    for dims in ([x.numel()], [1, *shape, 1], shape[::-1]):
        assert torch.equal(apply(ReshapeOp, x, dims=dims), x.reshape(dims))


def test_reshape_follows_symbols() -> None:
    op = ReshapeOp.make(value(["batch", "tokens", 384]), dims=["batch", "tokens", 12, 32])
    run(op, torch.randn(2, 5, 384), sizes={"batch": 2, "tokens": 5})
    merged = ReshapeOp.make(value(["batch", "tokens", 8]), dims=[Expr.of("batch") * "tokens", 8])
    run(merged, torch.randn(2, 5, 8), sizes={"batch": 2, "tokens": 5})
    # whether 4 divides the tokens shows when it runs
    assert ReshapeOp.make(value(["tokens"]), dims=[parse_expr("floordiv(tokens, 4)"), 4])


def test_reshape_refuses_another_number_of_elements() -> None:
    says = complaint(ReshapeOp, value([2, 3]), dims=[7])
    assert "6 elements, [7] has 7" in says
    assert "tokens + 1" in complaint(ReshapeOp, value(["tokens"]), dims=[Expr.of("tokens") + 1])


def test_transpose_refuses_what_is_no_permutation() -> None:
    for order in ([0], [0, 0], [0, 2], [-1, 0]):
        assert "not a permutation of the 2 axes" in complaint(TransposeOp, value([2, 3]), permutation=order)


@given(shapes, st.lists(st.sampled_from([1, 2]), max_size=2))
def test_broadcast_is_expand(shape: list[int], lead: list[int]) -> None:
    x = torch.randn([1 if i % 2 else n for i, n in enumerate(shape)])
    assert torch.equal(apply(BroadcastOp, x, dims=[*lead, *shape]), x.expand(*lead, *shape))


def test_broadcast_refuses_to_shrink_or_to_guess() -> None:
    assert "does not broadcast to [3]" in complaint(BroadcastOp, value([2, 3]), dims=[3])
    assert "does not broadcast to [2, 4]" in complaint(BroadcastOp, value([3]), dims=[2, 4])
    assert "does not broadcast to [b]" in complaint(BroadcastOp, value(["a"]), dims=["b"])


@given(shapes, st.data())
def test_slice_is_python_slicing(shape: list[int], data: st.DataObject) -> None:
    x = torch.randn(shape)
    stops = [data.draw(st.integers(0, n)) for n in shape]
    starts = [data.draw(st.integers(0, n)) for n in stops]
    steps = [data.draw(st.integers(1, 4)) for _ in shape]
    expected = x[tuple(slice(*bounds) for bounds in zip(starts, stops, steps, strict=True))]
    assert torch.equal(apply(SliceOp, x, starts=starts, stops=stops, steps=steps), expected)


def test_slice_follows_symbols_and_moves_only_what_it_takes() -> None:
    op = SliceOp.make(value(["tokens", 8]), starts=[1, 0], stops=["tokens", 8], steps=[2, 1])
    assert op.out.type.dims[0] == parse_expr("floordiv(tokens, 2)")
    for tokens in (1, 2, 7, 8):
        run(op, torch.randn(tokens, 8), sizes={"tokens": tokens})
    assert SliceOp.make(value([100, 4]), starts=[0, 0], stops=[1, 4]).cost().read.constant == 16


@pytest.mark.parametrize(
    ("starts", "stops", "steps", "says"),
    [
        ([0], [2], [1], "needs 2 starts"),
        ([0, 0], [4, 3], [1, 1], "axis 0 of f32[2, 3]: 0..4"),
        ([-1, 0], [2, 3], [1, 1], "-1..2"),
        ([0, 2], [2, 1], [1, 1], "axis 1"),
        ([0, 0], [2, 3], [1, 0], "by 0"),
    ],
)
def test_slice_refuses_ranges_outside(starts: list[int], stops: list[int], steps: list[int], says: str) -> None:
    assert says in complaint(SliceOp, value([2, 3]), starts=starts, stops=stops, steps=steps)


def test_a_symbolic_slice_is_checked_when_it_runs() -> None:
    op = SliceOp.make(value([8]), starts=[0], stops=["n"])
    with pytest.raises(IRError, match=r"0\.\.9 is not a range inside its 8"):
        run(op, torch.randn(8), sizes={"n": 9})


@given(shapes, st.data())
def test_concat_is_cat(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    parts = []
    for length in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)):
        parts.append(torch.randn([length if i == axis else n for i, n in enumerate(shape)]))
    assert torch.equal(apply(ConcatOp, *parts, axis=axis), torch.cat(parts, axis))


def test_concat_adds_symbols_and_names_the_odd_one() -> None:
    joined = ConcatOp.make(value(["a", 3]), value(["b", 3]), value([1, 3]), axis=0)
    assert str(joined.out.type) == "f32[a + b + 1, 3]"
    assert "f32[2, 4] does not continue f32[2, 3]" in complaint(ConcatOp, value([2, 3]), value([2, 4]), axis=0)
    assert "i64[2, 3]" in complaint(ConcatOp, value([2, 3]), value([2, 3], I64), axis=0)
    assert "f32[2]" in complaint(ConcatOp, value([2, 3]), value([2]), axis=0)
    assert "axis 2 is not one of the 2" in complaint(ConcatOp, value([2, 3]), axis=2)
    assert "one operand" in complaint(ConcatOp, [], axis=0)


@given(shapes, st.data())
def test_pad_surrounds(shape: list[int], data: st.DataObject) -> None:
    x = torch.randn(shape)
    low = [data.draw(st.integers(0, 3)) for _ in shape]
    high = [data.draw(st.integers(0, 3)) for _ in shape]
    flat = [n for pair in zip(low[::-1], high[::-1], strict=True) for n in pair]
    expected = torch.nn.functional.pad(x, flat, value=-1.5)
    assert torch.equal(apply(PadOp, x, low=low, high=high, value=-1.5), expected)


def test_pad_pads_integers_and_truth_values_and_refuses_to_cut() -> None:
    assert apply(PadOp, torch.tensor([3]), low=[1], high=[0], value=7).tolist() == [7, 3]
    assert apply(PadOp, torch.tensor([False]), low=[0], high=[2], value=1).tolist() == [False, True, True]
    assert "pad by -1" in complaint(PadOp, value([3]), low=[-1], high=[0])
    assert "needs 2 amounts" in complaint(PadOp, value([3, 3]), low=[1], high=[1])
