"""Layers that are alike are traced once, and nothing that makes a layer another one is overlooked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tilewright.frontend import capture, repeated_layers
from tilewright.ir.dims import Dim

LAYERS = 5
N = Dim("n", 1, 32)


class Layer(torch.nn.Module):
    """x + f(W x): what a layer does besides is the test's."""

    def __init__(self, number: int, extra: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.number, self.scale, self.extra = number, 1.0, extra
        self.inner = torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, *, kept: list[Any] | None = None) -> torch.Tensor:
        if kept is not None:
            kept.append(self.number)
        return x + torch.relu(self.extra(self, self.inner(x) + shift))


class Stack(torch.nn.Module):
    def __init__(self, extra: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(i, extra) for i in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift = x.mean(0, keepdim=True)
        for layer in self.layers:
            x = layer(x, shift)
        return x


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the layers that were copied, one entry each."""
    copies: list[str] = []
    original = repeated_layers._Template.copied

    def copied(template: Any, call: Any) -> Any:
        found = original(template, call)
        if found is not None:
            copies.append(type(call.layer).__name__)
        return found

    monkeypatch.setattr(repeated_layers._Template, "copied", copied)
    return copies


def agrees(model: torch.nn.Module, rng: np.random.Generator) -> None:
    model = model.eval()
    captured = capture(model, (torch.ones(3, 6),), None, {"x": {0: N}})
    assert captured.proved
    for n in (1, 2, 7):
        x = torch.from_numpy(rng.standard_normal((n, 6)).astype(np.float32))
        with torch.no_grad():
            assert_same(run(captured, x), model(x))


def test_layers_that_differ_in_their_weights_alone_are_traced_once(traced: list[str], rng: np.random.Generator) -> None:
    agrees(Stack(lambda layer, x: x), rng)
    assert len(traced) >= LAYERS - 1


def test_a_layer_of_another_number_that_reads_it_is_traced_itself(traced: list[str], rng: np.random.Generator) -> None:
    agrees(Stack(lambda layer, x: x * (layer.number + 1)), rng)
    assert not traced


def test_a_number_read_through_its_name_counts_as_read(traced: list[str], rng: np.random.Generator) -> None:
    agrees(Stack(lambda layer, x: x - getattr(layer, "num" + "ber", 0)), rng)
    assert not traced


def test_a_layer_with_another_attribute_is_another_layer(traced: list[str], rng: np.random.Generator) -> None:
    model = Stack(lambda layer, x: x * layer.scale)
    model.layers[2].scale = 3.0
    agrees(model, rng)
    assert len(traced) >= LAYERS - 2


def test_a_layer_that_counts_its_calls_is_traced_itself(traced: list[str]) -> None:
    def count(layer: Any, x: torch.Tensor) -> torch.Tensor:
        layer.calls = getattr(layer, "calls", 0) + 1
        return x

    capture(Stack(count).eval(), (torch.ones(3, 6),), None, {"x": {0: N}})
    assert not traced


def test_a_layer_called_with_another_number_is_traced_itself(traced: list[str], rng: np.random.Generator) -> None:
    class Numbered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Softmax(0) for _ in range(LAYERS))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x + 1)[:, :6] + x
            return x

    agrees(Numbered(), rng)
    assert traced


def test_weights_that_layers_share_stay_shared(rng: np.random.Generator) -> None:
    model = Stack(lambda layer, x: x)
    model.layers[3].inner.weight = model.layers[1].inner.weight
    agrees(model, rng)


def test_a_layer_that_writes_to_a_buffer_is_traced_itself(traced: list[str]) -> None:
    class Writing(Stack):
        def __init__(self) -> None:
            super().__init__(lambda layer, x: x + layer.seen.add_(1))
            for layer in self.layers:
                layer.register_buffer("seen", torch.zeros(6))

    captured = capture(Writing().eval(), (torch.ones(3, 6),), None, {"x": {0: N}})
    assert len(captured.states) == LAYERS
    assert not traced
