"""Functions that a machine lacks in f64 are refused together, before a kernel is compiled, with the step that helps."""

from __future__ import annotations

import pytest
import torch

import tilewright as tw
from tilewright.errors import LoweringError
from tilewright.ir.loop_math import F32_ONLY, MATH


class Mixed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = x.exp() + x.log()
        b = (x @ a).tanh()
        return torch.nn.functional.scaled_dot_product_attention(b, b, b).softmax(-1)


@pytest.mark.parametrize("target", ["cpu", "toy"])
def test_all_of_a_model_are_named_in_one_message(target: str) -> None:
    with pytest.raises(LoweringError) as raised:
        tw.compile(Mixed().eval(), (torch.rand(2, 2, 5, 5, dtype=torch.float64),), target=target, cache=False)
    problems = raised.value.problems
    line = Mixed.forward.__code__.co_firstlineno
    found = {(p.op, p.text.split()[0], p.where) for p in problems}
    places = [f"test_computed.py:{line + i}" for i in range(4)]
    for op, fn, at in (
        ("graph.map", "exp", 1), ("graph.map", "log", 1), ("graph.map", "tanh", 2), ("graph.attention", "attention", 3),
        ("graph.softmax", "exp", 3),
    ):  # fmt: skip
        assert any(op == o and fn == f and places[at] in str(w) for o, f, w in found), (op, fn, found)
    assert raised.value.step.startswith("compile the model in f32: model.float()")
    assert "cast to f32 around it" in raised.value.step
    assert "cast q, k and v to f32" in raised.value.step


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU])
def test_a_layer_of_torchs_own_is_named_and_nothing_is_cast_around_it(layer: type[torch.nn.Module]) -> None:
    model = torch.nn.Sequential(torch.nn.Identity(), layer(3, 4)).double().eval()
    with pytest.raises(LoweringError) as raised:
        tw.compile(model, (torch.rand(2, 3, dtype=torch.float64),), cache=False)
    assert {(p.op, p.text.split()[0], p.where) for p in raised.value.problems} == {
        ("graph.map", "sigmoid", "module 1"), ("graph.map", "tanh", "module 1"),
    }  # fmt: skip
    assert raised.value.step == "compile the model in f32: model.float(), and its inputs with .float()"


@pytest.mark.parametrize("target", ["cpu", "toy"])
def test_what_is_computed_in_f64_compiles(target: str) -> None:
    x = torch.rand(3, 7, dtype=torch.float64) + 0.5

    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.layer_norm(x, (7,)) + x.rsqrt() + x.float().exp().double()

    compiled = tw.compile(Plain().eval(), (x,), target=target, cache=False)
    torch.testing.assert_close(compiled(x), Plain()(x), rtol=1e-6, atol=1e-6)


def test_the_list_is_of_functions_that_are_expanded() -> None:
    assert MATH.keys() - F32_ONLY == {"rsqrt"}
