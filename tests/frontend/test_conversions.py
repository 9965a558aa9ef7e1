"""A size that Python took the value of is named with the expression that did, its line, and what to write instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tests.frontend.test_dims import Apply, floats
from tilewright.errors import SpecialisationError, UnsupportedOpError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim

T = Dim("t", 1, 12)

TAKEN: dict[str, tuple[Callable[[torch.Tensor], Any], str, str]] = {
    "sqrt": (lambda x: x * math.sqrt(x.shape[0]), "math.sqrt(x.shape[0])", "n ** 0.5 stays a number of the size"),
    "float": (lambda x: x * float(x.shape[0]), "float(x.shape[0])", "leave out the conversion in float(x.shape[0])"),
    "log": (lambda x: x * math.log(x.shape[0]), "math.log(x.shape[0])", "torch.full((), n, dtype=torch.float32).log()"),
    "root": (lambda x: x[: int(x.shape[0] ** 0.5)] * 1, "int(x.shape[0] ** 0.5)", "+, -, *, // and % of sizes"),
    "range": (lambda x: sum(x[i] for i in range(x.shape[0])), "range(x.shape[0])", "its length must be fixed"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_expression_that_fixed_a_size_is_named(rng: np.random.Generator, name: str) -> None:
    function, text, step = TAKEN[name]
    with pytest.raises(SpecialisationError) as caught:
        capture(Apply(function), (floats(rng, 5, 3),), None, {"x": {0: T}})
    (problem,) = caught.value.problems
    assert problem.text.endswith(f": {text} takes its value")
    assert problem.where is not None
    assert problem.where.startswith("tests/frontend/test_conversions.py:")
    assert step in caught.value.step
    # what was said before still follows
    assert "; or " in caught.value.step


def test_a_function_of_torch_that_fixes_a_size_is_told_by_its_line(rng: np.random.Generator) -> None:
    def spread(x: torch.Tensor) -> torch.Tensor:
        return x * torch.logspace(0, 1, x.shape[0])[:, None]

    with pytest.raises(SpecialisationError) as caught:
        capture(Apply(spread), (floats(rng, 5, 3),), None, {"x": {0: T}})
    (problem,) = caught.value.problems
    assert problem.where == f"tests/frontend/test_conversions.py:{spread.__code__.co_firstlineno + 1}"


def test_a_recurrent_layer_is_named_where_its_length_varies(rng: np.random.Generator) -> None:
    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = torch.nn.GRU(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gru(x)[0]

    with pytest.raises(SpecialisationError) as caught:
        capture(Tagger().eval(), (floats(rng, 2, 5, 3),), None, {"x": {1: T}})
    assert str(caught.value) == (
        "TW014 a declared dim was specialised: t (t: 1..12) was fixed to 5: gru (GRU): nn.LSTM, nn.GRU and nn.RNN are "
        "unrolled over time, so their length must be fixed\n"
        "  next: leave t out of dims (its size is 5)"
    )


def test_what_the_steps_say_to_write_compiles_for_every_size(rng: np.random.Generator) -> None:
    for function in (
        lambda x: x * x.shape[0] ** 0.5,
        lambda x: x * (x.shape[0] * 0.5 + 1) / x.shape[0],
        lambda x: x * torch.full((), x.shape[0], dtype=torch.float32).log(),
        lambda x: x[: x.shape[0] * 3 // 10] * 2,
        lambda x: x[: -(-x.shape[0] // 2)] * 2,
    ):
        model = Apply(function)
        captured = capture(model, (floats(rng, 5, 3),), None, {"x": {0: T}})
        assert captured.notes == ()
        for t in (1, 4, 11, 12):
            x = floats(rng, t, 3)
            assert_same(run(captured, x), model(x))


@pytest.mark.parametrize(
    ("function", "op", "size"),
    [
        (lambda x: x[: round(x.shape[0] * 0.3)] * 1, "round", "RoundToInt(0.3*ToFloat(t))"),
        (lambda x: x[: math.ceil(x.shape[0] / 2)] * 1, "ceil", "CeilToInt(IntTrueDiv(t, 2))"),
    ],
)
def test_a_rounded_size_is_refused_as_one_of_fractions_and_not_of_tensor_values(
    rng: np.random.Generator, function: Callable[[torch.Tensor], Any], op: str, size: str
) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        capture(Apply(function), (floats(rng, 5, 3),), None, {"x": {0: T}})
    (problem,) = caught.value.problems
    assert op in (problem.op or "")
    assert size in problem.text
    assert "write n * 3 // 10 for round(n * 0.3)" in problem.text
    assert "values of tensors" not in str(caught.value)


def test_sizes_convert_as_before_after_a_capture(rng: np.random.Generator) -> None:
    before = [vars(torch.SymInt).get(n) for n in ("__int__", "__index__", "__float__")]
    with pytest.raises(SpecialisationError):
        capture(Apply(TAKEN["log"][0]), (floats(rng, 5, 3),), None, {"x": {0: T}})
    assert [vars(torch.SymInt).get(n) for n in ("__int__", "__index__", "__float__")] == before
