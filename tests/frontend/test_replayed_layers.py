"""A proof that runs layers against the first one's record finds everything that a trace of each layer would find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tests.frontend.test_repeated_layers import LAYERS, Stack
from tilewright.errors import TilewrightError
from tilewright.frontend import capture, concrete, replayed_layers
from tilewright.ir.dims import Dim

N = Dim("n", 1, 32)
Extra = Callable[[Any, torch.Tensor], torch.Tensor]


class Seen:
    """How many layers were run against a record, and how often a trace was given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[replayed_layers.Departures] = []
        seen = self

        class Telling(replayed_layers.Departures):
            def __init__(self) -> None:
                super().__init__()
                seen.all.append(self)

        monkeypatch.setattr(concrete, "Departures", Telling)

    @property
    def replayed(self) -> int:
        return sum(found.replayed for found in self.all if not found.any)

    @property
    def departed(self) -> int:
        return sum(found.any for found in self.all)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def right_or_refused(model: torch.nn.Module, rng: np.random.Generator) -> bool:
    """Whether a model is captured, which it then is as it is; nothing is captured that is another model."""
    model = model.eval()
    try:
        captured = capture(model, (torch.ones(3, 6),), None, {"x": {0: N}})
    except TilewrightError:
        return False
    for n in (1, 7):
        x = torch.from_numpy(rng.standard_normal((n, 6)).astype(np.float32))
        with torch.no_grad():
            assert_same(run(captured, x), model(x))
    return True


@pytest.mark.parametrize(
    "extra",
    [
        lambda layer, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda layer, x: torch.cat(x.unflatten(-1, (2, 3)).transpose(0, 1).flip(0).unbind(0), -1)[..., :6],
        lambda layer, x: torch.nn.functional.layer_norm(x, x.shape[-1:]) + torch.arange(x.shape[0])[:, None],
        lambda layer, x: torch.max(x, -1, keepdim=True).values + x.sort(-1)[0] if x.size(-1) > 5 else x,
    ],
)
def test_layers_that_ask_for_the_same_are_run_against_the_first(
    seen: Seen, rng: np.random.Generator, extra: Extra
) -> None:
    assert right_or_refused(Stack(extra), rng)
    assert (seen.replayed, seen.departed) == (LAYERS - 1, 0)


def _by_number(layer: Any, x: torch.Tensor) -> torch.Tensor:
    # what tells copies of a layer that an attribute is read does not see this
    return x * 2 if vars(layer)["number"] == 3 else x


def _by_sign_of_zero(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x * torch.full((6,), -0.0 if vars(layer)["number"] == 2 else 0.0).reciprocal().clamp(-1.0, 1.0)


def _by_identity(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x - x.mean() if layer is _LAST[0] else x


def _by_operand(layer: Any, x: torch.Tensor) -> torch.Tensor:
    a, b = x.sin(), x.cos()
    return a - b if vars(layer)["number"] == 4 else b - a


def _by_default_dtype(layer: Any, x: torch.Tensor) -> torch.Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if vars(layer)["number"] == 1 else torch.float32)
    try:
        return x * torch.ones(6).element_size()
    finally:
        torch.set_default_dtype(before)


def _one_more(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x.abs() if vars(layer)["number"] == LAYERS - 1 else x


def _swallowing(layer: Any, x: torch.Tensor) -> torch.Tensor:
    try:
        return x * 2 if vars(layer)["number"] == 3 else x + 1
    except:  # noqa: E722 (a model may)
        return x


_LAST: list[Any] = [None]


@pytest.mark.parametrize(
    "extra", [_by_number, _by_sign_of_zero, _by_identity, _by_operand, _by_default_dtype, _one_more, _swallowing]
)
def test_a_layer_whose_copy_would_be_wrong_is_found(seen: Seen, rng: np.random.Generator, extra: Extra) -> None:
    model = Stack(extra)
    _LAST[0] = model.layers[-1]
    assert not right_or_refused(model, rng)
    assert seen.departed


def test_what_a_layer_finds_in_a_shared_list_is_found(seen: Seen, rng: np.random.Generator) -> None:
    calls: list[int] = []

    def counted(layer: Any, x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * 3 if len(calls) % LAYERS == 0 else x

    assert not right_or_refused(Stack(counted), rng)
    assert seen.departed


def test_an_option_that_the_stack_turns_between_layers_is_found(seen: Seen, rng: np.random.Generator) -> None:
    option = [1.0]

    class Turning(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number, layer in enumerate(self.layers):
                option[0] = 1.0 + (number == 2)
                x = layer(x, x)
            return x

    assert not right_or_refused(Turning(lambda layer, x: x * option[0]), rng)
    assert seen.departed


def test_a_device_or_mode_around_one_layer_alone_is_not_taken_for_none(seen: Seen, rng: np.random.Generator) -> None:
    class Doubling(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            return found * 2 if function is torch.relu else found

    class Under(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number, layer in enumerate(self.layers):
                if number == 2:
                    with Doubling():
                        x = layer(x, x)
                else:
                    x = layer(x, x)
            return x

    assert not right_or_refused(Under(lambda layer, x: x), rng)


def test_what_layers_leave_behind_is_each_layer_s_own(seen: Seen, rng: np.random.Generator) -> None:
    left: list[torch.Tensor] = []

    class Leaving(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left.clear()
            x = super().forward(x)
            return x + left[-1]

    def leaves(layer: Any, x: torch.Tensor) -> torch.Tensor:
        left.append(x.sin())
        return x + 1

    # the copies leave nothing behind, so that the graph adds what the first layer left
    assert not right_or_refused(Leaving(leaves), rng)
    # once more without dims, to tell whether they are at fault
    assert seen.replayed == 2 * (LAYERS - 1)


def test_writes_between_layers_are_held_against_a_trace_of_each(seen: Seen, rng: np.random.Generator) -> None:
    class Writing(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outs = []
            for layer in self.layers:
                x = layer(x, x)
                outs.append(x)
            outs[1].copy_(outs[2])
            return outs[0] + outs[1] + outs[-1]

    assert right_or_refused(Writing(lambda layer, x: x), rng)


def test_a_failure_of_the_model_is_its_own(seen: Seen) -> None:
    from tilewright.frontend.concrete import concrete as trace
    from tilewright.frontend.declaring import declare
    from tilewright.frontend.examples import bind

    def failing(layer: Any, x: torch.Tensor) -> torch.Tensor:
        if vars(layer)["number"] == 3:
            raise ValueError("the third layer")
        return x

    model = Stack(failing).eval()
    with pytest.raises(ValueError, match="the third layer"):
        trace(model, declare(bind(model.forward, (torch.ones(3, 6),), {}), None), places=False)
