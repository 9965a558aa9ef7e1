"""Convolutions and pools against torch, in both layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, run, value
from tilewright.ir.dtypes import BF16, F32, I64
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp


@given(st.integers(1, 3), st.data())
def test_convolution_is_torchs(spatial: int, data: st.DataObject) -> None:
    def each(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(spatial)]

    groups, window, strides, dilation, padding = (
        data.draw(st.integers(1, 3)),
        each(1, 3),
        each(1, 3),
        each(1, 2),
        each(0, 2),
    )
    sides = [d * (w - 1) + 1 + data.draw(st.integers(0, 4)) for d, w in zip(dilation, window, strict=True)]
    x = torch.randn(data.draw(st.sampled_from([0, 1, 2])), 2 * groups, *sides, dtype=torch.float64)
    w = torch.randn(groups * data.draw(st.integers(1, 2)), 2, *window, dtype=torch.float64)
    bias = torch.randn(w.shape[0], dtype=torch.float64) if data.draw(st.booleans()) else None
    theirs = getattr(torch.nn.functional, f"conv{spatial}d")(x, w, bias, strides, padding, dilation, groups)
    ours = apply(
        ConvolutionOp,
        x,
        w,
        bias,
        strides=strides,
        padding_low=padding,
        padding_high=padding,
        dilation=dilation,
        groups=groups,
    )
    torch.testing.assert_close(ours, theirs)
    last = apply(
        ConvolutionOp,
        x.movedim(1, -1).contiguous(),
        w.movedim((0, 1), (-1, -2)).contiguous(),
        bias,
        strides=strides,
        padding_low=padding,
        padding_high=padding,
        dilation=dilation,
        groups=groups,
        channels_last=True,
    )
    torch.testing.assert_close(last, theirs.movedim(1, -1))


def test_convolution_pads_each_side_on_its_own() -> None:
    x, w = torch.randn(1, 2, 5), torch.randn(3, 2, 2)
    ours = apply(ConvolutionOp, x, w, strides=[1], padding_low=[1], padding_high=[0], dilation=[1])
    torch.testing.assert_close(ours, torch.nn.functional.conv1d(torch.nn.functional.pad(x, (1, 0)), w))


def test_convolution_follows_symbols() -> None:
    op = ConvolutionOp.make(
        value(["batch", 3, "h"]), value([8, 3, 4]), strides=[4], padding_low=[0], padding_high=[0], dilation=[1]
    )
    assert str(op.out.type) == "f32[batch, 8, floordiv(h, 4)]"
    run(op, torch.randn(2, 3, 19), torch.randn(8, 3, 4), None, sizes={"batch": 2, "h": 19})


@pytest.mark.parametrize(
    ("x", "w", "change", "says"),
    [
        ([1, 2], [1, 2], {}, "do not fit"),
        ([1, 2, 5], [3, 2, 2], {"strides": [1, 1]}, "needs 1 windows, strides"),
        ([1, 2, 5], [3, 2, 2], {"strides": [0]}, "1 or more"),
        ([1, 2, 5], [3, 2, 2], {"padding_low": [-1]}, "0 or more"),
        ([1, 2, 5], [3, 3, 2], {}, "2 channels and 3 filters"),
        ([1, 4, 5], [3, 2, 2], {"groups": 2}, "2 groups"),
        ([1, 2, 5], [3, 2, 6], {}, "does not fit into"),
    ],
)
def test_convolution_names_what_does_not_fit(x: list[int], w: list[int], change: dict[str, object], says: str) -> None:
    properties = {"strides": [1], "padding_low": [0], "padding_high": [0], "dilation": [1], **change}
    assert says in complaint(ConvolutionOp, value(x), value(w), **properties)


def test_convolution_takes_floats_and_a_fitting_bias() -> None:
    properties = {"strides": [1], "padding_low": [0], "padding_high": [0], "dilation": [1]}
    assert "do not fit" in complaint(ConvolutionOp, value([1, 2, 5], I64), value([3, 2, 2], I64), **properties)
    assert "bias must be f32[3]" in complaint(
        ConvolutionOp, value([1, 2, 5]), value([3, 2, 2]), value([4]), **properties
    )


def test_convolution_keeps_its_sums_in_the_stated_dtype() -> None:
    x, w = torch.randn(1, 9, 8).bfloat16(), torch.randn(3, 8, 5).bfloat16()
    properties = {"strides": [1], "padding_low": [0], "padding_high": [0], "dilation": [1]}
    kept = apply(
        ConvolutionOp, x, w, strides=[1], padding_low=[0], padding_high=[0], dilation=[1], channels_last=True,
        result="f32",
    )  # fmt: skip
    wide = torch.nn.functional.conv1d(x.double().mT, w.double().permute(2, 1, 0)).mT
    torch.testing.assert_close(kept, wide.float())
    assert "both must be floats" in complaint(
        ConvolutionOp, value([1, 2, 5], BF16), value([3, 2, 2], BF16), **properties, result="i64"
    )


@given(st.sampled_from([1, 2, 3]), st.sampled_from(["max", "mean"]), st.booleans(), st.data())
def test_pool_is_torchs(spatial: int, fn: str, last: bool, data: st.DataObject) -> None:
    def each(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(spatial)]

    window, strides, ceil = each(1, 3), each(1, 3), data.draw(st.booleans())
    padding = [data.draw(st.integers(0, w // 2)) for w in window]
    dilation = each(1, 2) if fn == "max" else [1] * spatial
    sides = [d * (w - 1) + 1 + data.draw(st.integers(0, 5)) for d, w in zip(dilation, window, strict=True)]
    x = torch.randn(data.draw(st.sampled_from([1, 2])), 3, *sides, dtype=torch.float64)
    counting, divisor = data.draw(st.booleans()), data.draw(st.sampled_from([0, 5]))
    if fn == "max":
        torchs = getattr(torch.nn.functional, f"max_pool{spatial}d")
        theirs = torchs(x, window, strides, padding, dilation, ceil_mode=ceil)
    else:
        torchs = getattr(torch.nn.functional, f"avg_pool{spatial}d")
        given_divisor = {"divisor_override": divisor or None} if spatial > 1 else {}
        divisor = divisor if spatial > 1 else 0
        theirs = torchs(x, window, strides, padding, ceil_mode=ceil, count_include_pad=counting, **given_divisor)
    ours = apply(
        PoolOp,
        x.movedim(1, -1).contiguous() if last else x,
        fn=fn,
        window=window,
        strides=strides,
        padding_low=padding,
        padding_high=padding,
        dilation=dilation,
        ceil=ceil,
        count_padding=counting,
        divisor=divisor,
        channels_last=last,
    )
    torch.testing.assert_close(ours.movedim(-1, 1) if last else ours, theirs)


def test_pool_follows_symbols() -> None:
    op = PoolOp.make(
        value(["batch", 3, "h"]), fn="max", window=[3], strides=[2], padding_low=[1], padding_high=[1], dilation=[1],
        ceil=True,
    )  # fmt: skip
    for h in (2, 3, 8, 9):
        found = run(op, torch.randn(2, 3, h), sizes={"batch": 2, "h": h})
        wanted = torch.nn.functional.max_pool1d(torch.zeros(2, 3, h), 3, 2, 1, ceil_mode=True)
        assert found.shape == wanted.shape


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fn": "sum"}, "not one of max, mean"),
        ({"window": [0]}, "1 or more"),
        ({"window": [9]}, "does not fit into"),
        ({"strides": [1, 1]}, "needs 1 windows"),
        ({"divisor": -1}, "divisor 0 or more"),
    ],
)
def test_pool_names_what_does_not_fit(change: dict[str, object], says: str) -> None:
    stated = {"fn": "max", "window": [2], "strides": [1], "padding_low": [0], "padding_high": [0], "dilation": [1]}
    assert says in complaint(PoolOp, value([1, 2, 5], F32), **{**stated, **change})


def test_a_mean_needs_floats() -> None:
    stated = {"window": [2], "strides": [1], "padding_low": [0], "padding_high": [0], "dilation": [1]}
    assert "needs floats" in complaint(PoolOp, value([1, 2, 5], I64), fn="mean", **stated)
    pooled = apply(PoolOp, torch.tensor([[[3, 1, -7]]]), fn="max", **stated)
    assert pooled.tolist() == [[[3, 1]]]
