from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, captured_equals_eager, run
from tilewright.errors import CaptureError, DimDeclarationError, SpecialisationError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim, Expr

B, T = Dim("batch", 1, 64), Dim("tokens", 1, 256)


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


class Apply(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        return self.function(x) if y is None else self.function(x, y)


def test_examples_of_size_one_do_not_fix_a_dim(rng: np.random.Generator) -> None:
    model = Apply(lambda x: x.softmax(-1) @ x.mT)
    calls = [(floats(rng, b, t, 4),) for b, t in [(1, 1), (3, 5), (1, 7), (5, 1), (64, 2)]]
    captured = captured_equals_eager(model, calls, {"x": (B, T, None)})
    assert captured.signature.inputs[0].dims == (Expr.of("batch"), Expr.of("tokens"), Expr.of(4))
    assert captured.dims == (B, T)
    assert not captured.guards


def test_axes_by_number_and_dims_by_name_mean_the_same(rng: np.random.Generator) -> None:
    x, y = floats(rng, 2, 6), floats(rng, 2, 6)
    for dims in (
        {"x": {0: B, 1: T}, "y": {0: B, -1: T}},
        {"x": (B, "tokens"), "y": ("batch", T)},
        {"x": [B, T], "y": [B, T]},
    ):
        captured = capture(Apply(lambda x, y: x + y), (x, y), None, dims)
        assert [str(d) for i in captured.signature.inputs for d in i.dims] == ["batch", "tokens"] * 2


def test_an_axis_with_its_own_size_stays_fixed(rng: np.random.Generator) -> None:
    captured = capture(Apply(torch.sin), (floats(rng, 2, 6),), None, {"x": (B, 6)})
    assert captured.signature.inputs[0].dims == (Expr.of("batch"), Expr.of(6))


def test_a_dim_of_one_size_is_that_size(rng: np.random.Generator) -> None:
    captured = capture(Apply(torch.sin), (floats(rng, 2, 6),), None, {"x": (Dim("one", 1, 1), T)})
    assert captured.signature.inputs[0].dims == (Expr.of(1), Expr.of("tokens"))
    assert captured.dims == (T,)


def test_sizes_are_expressions_of_dims(rng: np.random.Generator) -> None:
    def sizes(x: torch.Tensor) -> Any:
        t = x.shape[1]
        padded = torch.nn.functional.pad(x, (0, 0, 0, -t % 4))
        return padded.reshape(x.shape[0], (t + 3) // 4, -1), x[:, : t // 2], x[:, max(t - 5, 0) :], 2 * t + 1

    model = Apply(sizes)
    captured = capture(model, (floats(rng, 2, 6, 3),), None, {"x": (B, T, None)})
    for shape in [(3, 5, 3), (1, 1, 3), (2, 8, 3), (2, 13, 3)]:
        x = floats(rng, *shape)
        assert_same(run(captured, x), model(x))


def test_an_equality_the_model_needs_is_a_guard(rng: np.random.Generator) -> None:
    dims = {"x": (Dim("a", 1, 9),), "y": (Dim("b", 1, 9),)}
    captured = capture(Apply(lambda x, y: x + y), (floats(rng, 4), floats(rng, 4)), None, dims)
    assert [str(g) for g in captured.guards] in (["b == a"], ["a == b"])
    assert captured.guards[0].holds({"a": 3, "b": 3})
    assert not captured.guards[0].holds({"a": 3, "b": 4})
    assert_same(run(captured, torch.ones(7), torch.ones(7)), torch.full((7,), 2.0))


def test_a_model_that_needs_a_multiple_is_captured_at_the_examples_size_with_a_guard(rng: np.random.Generator) -> None:
    model = Apply(lambda x: x.reshape(x.shape[0], x.shape[1] // 4, 4).sum(-1))
    captured = capture(model, (floats(rng, 5, 12),), None, {"x": (B, T)})
    assert captured.guards
    for tokens, fits in [(4, True), (32, True), (6, False), (11, False)]:
        assert all(g.holds({"batch": 2, "tokens": tokens}) for g in captured.guards) is fits
    x = floats(rng, 2, 32)
    assert_same(run(captured, x), model(x))


def fixes(x: torch.Tensor) -> torch.Tensor:
    return x + torch.ones(7)


def narrows(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[0] > 20 else x


def test_a_dim_that_the_model_fixes_is_named_with_its_size() -> None:
    with pytest.raises(SpecialisationError) as caught:
        capture(Apply(fixes), (torch.ones(5, 7),), None, {"x": (B, T)})
    text = str(caught.value)
    assert "tokens (tokens: 1..256) was fixed to 7" in text
    assert "leave tokens out of dims (its size is 7)" in text
    assert "batch" not in text


def test_a_dim_that_the_model_narrows_is_named_with_range_and_line() -> None:
    with pytest.raises(SpecialisationError) as caught:
        capture(Apply(narrows), (torch.ones(5, 7),), None, {"x": (B, T)})
    text = str(caught.value)
    assert "batch is declared batch: 1..64, the model admits 1..20" in text
    assert 'tw.Dim("batch", 1, 20)' in text
    assert "test_dims.py:" in text
    assert "in narrows" not in text


def test_a_branch_outside_the_declared_range_is_no_fault(rng: np.random.Generator) -> None:
    captured_equals_eager(Apply(narrows), [(floats(rng, b, 7),) for b in (3, 1, 20)], {"x": (Dim("batch", 1, 20), T)})


def test_wrong_declarations_come_in_one_error() -> None:
    model = Apply(lambda x, y: x)
    with pytest.raises(DimDeclarationError) as caught:
        capture(model, (torch.ones(2, 3), torch.ones(4)), None, {"x": (B, None, None), "y": {1: T}, "z": (B,)})
    text = str(caught.value)
    assert "x has 2 axes (2, 3), dims gives 3 entries: one an axis" in text
    assert "y has 1 axes, dims names axis 1" in text
    assert "dims names 'z', the arguments are x, y" in text
    with pytest.raises(DimDeclarationError, match="declared twice"):
        capture(model, (torch.ones(2), torch.ones(2)), None, {"x": (B,), "y": (Dim("batch", 1, 8),)})
    with pytest.raises(DimDeclarationError, match="batch is 2 at x axis 0 of the example and 4 at y axis 0"):
        capture(model, (torch.ones(2), torch.ones(4)), None, {"x": (B,), "y": (B,)})
    with pytest.raises(DimDeclarationError, match="x axis 0 is 2 in the example, but dims says 3"):
        capture(model, (torch.ones(2), torch.ones(4)), None, {"x": (3,)})


def test_a_dim_without_its_axis_is_told_where_axes_belong() -> None:
    x = torch.zeros(2, 3)
    for given, said in (
        (Dim("b", 1, 9), "the dim 'b' without its axis"),
        ("b", "the dim 'b' without its axis"),
        (3, "3 alone"),
    ):
        with pytest.raises(DimDeclarationError) as raised:
            capture(Apply(lambda x: x + 1), (x,), None, {"x": given})
        assert str(raised.value) == (
            f"TW006 dims declaration is wrong: x has 2 axes (2, 3), dims gives {said}: write one entry an axis, None "
            'where fixed, none for fixed axes at the end\n  next: follow the arguments: dims={"x": {0: tw.Dim("batch", '
            "1, 64)}}"
        )


def test_a_branch_on_values_is_a_capture_error_with_the_line() -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError) as caught:
        capture(Apply(branches), (torch.ones(3),))
    assert "test_dims.py:" in str(caught.value)
    assert "replace what depends on tensor values" in str(caught.value)


def test_a_forward_that_fails_is_a_capture_error_with_the_line() -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(5, 5)

    with pytest.raises(CaptureError) as caught:
        capture(Apply(fails), (torch.ones(3),))
    assert "test_dims.py:" in str(caught.value)
