"""A model of torch alone that was captured before is not traced again, unless what decides its graph changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.frontend.identity import identify

FACTOR = 2.0
_WEIGHT = torch.ones(4)


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * FACTOR


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.act = torch.nn.LeakyReLU(0.1, inplace=True)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + scaled(self.act(self.norm(self.inner(x)))) + self.shift


class Net(torch.nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = torch.nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.blocks(x)
        return found


def factors(model: torch.nn.Module) -> Any:
    found = identify(model.eval(), (torch.ones(2, 4),), {}, None, "error")
    return found.factors, found.unproved


def test_an_equal_model_with_other_weights_is_not_captured_and_computes_with_its_own(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    x = torch.from_numpy(rng.standard_normal((2, 4)).astype(np.float32))
    for seed, origin in enumerate(("made", "as before")):
        model = Net(seed).eval()
        program = tw.compile(model, args=(torch.ones(2, 4),), cache=tmp_path)
        assert program.report.to_dict()["capture"].startswith(origin)
        with torch.no_grad():
            wanted = model(x)
        assert (program(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_second_model_of_the_same_code_is_the_same(rng: np.random.Generator) -> None:
    first, unproved = factors(Net())
    assert first is not None, unproved
    assert factors(Net(1))[0] == first


def _hook(model: Any) -> None:
    model.blocks[1].norm.register_forward_hook(lambda *_: None)


def _forward(model: Any) -> None:
    model.blocks[2].forward = lambda x: x


def _closure(model: Any) -> None:
    weight = torch.ones(4)
    model.blocks[0].extra = lambda x: x * weight


def _array(model: Any) -> None:
    model.blocks[0].table = np.ones(4)


def _traced(model: Any) -> None:
    model.blocks[1] = torch.fx.symbolic_trace(model.blocks[1])


def _scripted(model: Any) -> None:
    model.blocks[1].act = torch.jit.script(torch.nn.Tanh())


def _parametrized(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].inner)


@pytest.mark.parametrize("change", [_hook, _forward, _closure, _array, _traced, _scripted, _parametrized])
def test_what_cannot_be_told_is_captured(change: Callable[[Any], None]) -> None:
    model = Net()
    change(model)
    found, unproved = factors(model)
    assert found is None
    assert unproved


def _slope(model: Any) -> None:
    model.blocks[1].act.negative_slope = 0.2


def _kind(model: Any) -> None:
    model.blocks[1].act = torch.nn.Tanh()


def _epsilon(model: Any) -> None:
    model.blocks[2].norm.eps = 0.5


def _buffer(model: Any) -> None:
    model.blocks[2].shift += 1


def _dtype(model: Any) -> None:
    model.blocks[2].double()


def _shared(model: Any) -> None:
    model.blocks[2].inner.weight = model.blocks[1].inner.weight


@pytest.mark.parametrize("change", [_slope, _kind, _epsilon, _buffer, _dtype, _shared])
def test_a_layer_of_many_that_differs_makes_another_model(change: Callable[[Any], None]) -> None:
    first, _ = factors(Net())
    model = Net()
    change(model)
    assert factors(model)[0] != first


def test_code_that_a_forward_calls_and_that_was_replaced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = factors(Net())
    monkeypatch.setattr(Block, "forward", lambda self, x: scaled(self.inner(x)))
    replaced, _ = factors(Net())
    assert replaced != first
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert factors(Net())[0] not in (first, replaced)
    monkeypatch.undo()
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda self, x: x)
    assert factors(Net())[0] != first
    monkeypatch.undo()
    assert factors(Net())[0] == first


def test_code_edited_in_place_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = factors(Net())
    monkeypatch.setattr(scaled, "__code__", (lambda x: x - FACTOR).__code__)
    assert factors(Net())[0] != first


def test_a_global_tensor_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "forward", lambda self, x: x * _WEIGHT)
    found, unproved = factors(Net())
    assert found is None
    assert "tensor" in unproved
