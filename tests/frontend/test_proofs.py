"""What a capture concluded about sizes is proved by the model's own operators, or tried out and said to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tests.frontend.test_dims import Apply, floats
from tests.frontend.test_size_branches import admitted
from tilewright.errors import SpecialisationError
from tilewright.frontend import capture, trial
from tilewright.ir.dims import Dim

T = Dim("t", 0, 12)

HARMLESS: dict[str, Callable[[torch.Tensor], Any]] = {
    # what the model does at one token leaves every value as it is
    "slice": lambda x: (x if x.shape[0] == 1 else x[: x.shape[0]]) * 2,
    "expand": lambda x: (x if x.shape[0] == 1 else x.expand(x.shape[0], 6)) + x,
    "reshape": lambda x: (x.reshape(1, 6) if x.shape[0] == 1 else x.view(-1, 6)) * 2,
    "copy": lambda x: (x if x.shape[0] == 1 else x.contiguous().clone()) - 1,
    "constant": lambda x: x * torch.tensor(x.shape[0] if x.shape[0] != 1 else 1, dtype=torch.float32),
    "dead": lambda x: (x.exp() if x.shape[0] == 1 else x.sin(), x * 3)[1],
}
SUSPECT: dict[str, Callable[[torch.Tensor], Any]] = {
    # right on most values, and wrong on some
    "clamp": lambda x: x.clamp(max=1e30) if x.shape[0] == 1 else x * 1,
    "nan": lambda x: torch.nan_to_num(x) if x.shape[0] == 1 else x * 1,
    "operands": lambda x: x.sum(0) + x.mean(0) if x.shape[0] == 1 else x.mean(0) + x.sum(0),
}
LAYOUTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "asked before by torch": lambda x: (x.T.contiguous(), x * 2 if x.T.is_contiguous() else x * 3)[1],
    "of one tensor": lambda x: (y := x.T, y.contiguous(), x * 2 if y.is_contiguous() else x * 3)[2],
    "of a format": lambda x: (
        x[None, :, :, None].to(memory_format=torch.channels_last),
        x * 2 if x[None, :, :, None].is_contiguous(memory_format=torch.channels_last) else x * 3,
    )[1],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_branch_that_changes_no_value_is_proved_without_a_trial(
    rng: np.random.Generator, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> Any:
        raise AssertionError("tried on drawn values")

    monkeypatch.setattr(trial, "eager", refuse)
    model = Apply(HARMLESS[name])
    captured = capture(model, (floats(rng, 5, 6),), None, {"x": {0: Dim("t", 1, 12)}})
    assert captured.notes == ()
    assert captured.guards == ()
    for t in (1, 2, 5):
        x = floats(rng, t, 6)
        assert_same(run(captured, x), model(x))


@pytest.mark.parametrize("name", SUSPECT)
def test_a_branch_that_only_a_trial_confirms_is_told(rng: np.random.Generator, name: str) -> None:
    captured = capture(Apply(SUSPECT[name]), (floats(rng, 5, 6),), None, {"x": {0: Dim("t", 1, 12)}})
    (note,) = captured.notes
    assert note.startswith("t = 1: right on drawn values, not proved; the model takes another branch there (")
    assert "test_proofs.py:" in note


def test_a_branch_that_writes_to_a_copy_or_to_the_argument_is_no_proof(rng: np.random.Generator) -> None:
    # without the copy the argument changes, and with it the second result
    model = Apply(lambda x: (y := x if x.shape[0] == 1 else x.clone(), y.add_(1), x * 2)[2])
    with pytest.raises(SpecialisationError, match=r'tw\.Dim\("t", 2, 12\)'):
        capture(model, (floats(rng, 5, 6),), None, {"x": {0: Dim("t", 1, 12)}})


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("example", [1, 5])
def test_a_layout_that_torch_knew_already_is_asked_again(rng: np.random.Generator, name: str, example: int) -> None:
    model = Apply(LAYOUTS[name])
    try:
        captured = capture(model, (floats(rng, example, 6),), None, {"x": {0: T}})
    except SpecialisationError as refusal:
        # single rows and none may be refused, and nothing else
        assert example == 1 or 'tw.Dim("t", 2, 12)' in str(refusal)  # noqa: PT017
        return
    assert admitted(captured, t=example)
    for t in range(13):
        if admitted(captured, t=t):
            x = floats(rng, t, 6)
            assert_same(run(captured, x), model(x))
    assert sum(admitted(captured, t=t) for t in range(13)) >= 11


def test_layouts_that_two_dims_decide_together_are_refused_together(rng: np.random.Generator) -> None:
    def layered(x: torch.Tensor) -> torch.Tensor:
        y = x.permute(2, 0, 1)
        y.contiguous()
        return x * 2 if y.is_contiguous() else x * 3

    dims = {"x": {0: Dim("b", 1, 5), 1: Dim("t", 1, 7)}}
    with pytest.raises(SpecialisationError, match="b != 1 or t != 1, which no check of a call can say"):
        capture(Apply(layered), (floats(rng, 3, 4, 2),), None, dims)
    captured = capture(Apply(layered), (floats(rng, 3, 4, 2),), None, {"x": {0: Dim("b", 2, 5), 1: Dim("t", 1, 7)}})
    for b, t in ((2, 1), (5, 7)):
        x = floats(rng, b, t, 2)
        assert_same(run(captured, x), layered(x))


def test_a_model_that_asks_what_a_size_is_made_of_is_refused_with_its_line(rng: np.random.Generator) -> None:
    model = Apply(lambda x: x * 2 if isinstance(x.shape[0], int) else x * 3)
    with pytest.raises(SpecialisationError) as caught:
        capture(model, (floats(rng, 5, 6),), None, {"x": {0: T}})
    (problem,) = caught.value.problems
    assert problem.op == "aten.mul"
    assert problem.where is not None
    assert problem.where.startswith("tests/frontend/test_proofs.py:")
    assert "isinstance(size, int)" in problem.text
    harmless = Apply(lambda x: (x + 1 if isinstance(x.shape[0], int) else 1 + x) * 2)
    captured = capture(harmless, (floats(rng, 5, 6),), None, {"x": {0: T}})
    x = floats(rng, 7, 6)
    assert_same(run(captured, x), harmless(x))


class Counting(torch.nn.Module):
    """Writes to a buffer in place and replaces another one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        self.last = x.sum(0)
        return x * self.calls if x.shape[0] != 1 else x.contiguous() * self.calls


def test_a_model_with_states_is_proved_and_left_as_it_was(rng: np.random.Generator) -> None:
    model = Counting()
    calls, last = model.calls, model.last
    captured = capture(model, (floats(rng, 5, 3),), None, {"x": {0: Dim("t", 1, 12)}})
    assert captured.notes == ()
    assert captured.guards == ()
    assert model.calls is calls
    assert model.last is last
    assert not calls.any()
    assert not last.any()
