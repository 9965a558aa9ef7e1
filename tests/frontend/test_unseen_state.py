"""What a model decides by besides its arguments: what it remembers in attributes, and whether it is being exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tests.frontend.test_dims import floats
from tilewright.errors import CaptureError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim

DIMS = {"x": {0: Dim("t", 1, 12)}}


class Remembers(torch.nn.Module):
    """A submodule's attributes of every kind, and what a forward does with them."""

    def __init__(self, step: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.step = step
        self.part = torch.nn.Module()
        self.part.calls = 0
        self.part.seen = [("calls", 0)]
        self.part.table = {"inner": {"calls": 0}}
        self.part.last = torch.zeros(3)
        self.part.made = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(self.part, x)


def counted(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.calls += 1
    return x * part.calls


def warmed(part: Any, x: torch.Tensor) -> torch.Tensor:
    first, part.calls = part.calls == 0, 1
    return x * 2 if first else x


def listed(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.seen.append(("calls", len(part.seen)))
    return x * len(part.seen)


def nested(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.table["inner"]["calls"] += 1
    return x * part.table["inner"]["calls"]


def decayed(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.last = part.last * 0.5 + x.sum(0)
    return x + part.last


def unread(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.calls += 1
    return x * 2


def replaced(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.last = x * 2
    return part.last + 1


def lazy(part: Any, x: torch.Tensor) -> torch.Tensor:
    if part.made is None:
        part.made = torch.arange(3.0)
    return x + part.made


def kept(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.table.setdefault("places", torch.arange(3.0))
    return x + part.table["places"]


def still(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.calls, part.seen, part.made = 0, part.seen, None
    return x + len(part.seen)


READ = {counted: "part.calls", warmed: "part.calls", listed: "part.seen", nested: "part.table", decayed: "part.last"}
CACHED = {unread: "part.calls", replaced: "part.last", lazy: "part.made", kept: "part.table"}


@pytest.mark.parametrize("step", READ)
@pytest.mark.parametrize("dims", [None, DIMS])
def test_what_one_call_leaves_to_the_next_in_an_attribute_is_refused(
    rng: np.random.Generator, step: Callable[..., torch.Tensor], dims: Any
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Remembers(step), (floats(rng, 5, 3),), None, dims)
    assert str(caught.value) == (
        f"TW013 capture failed: a second call computes something else than the first: each call changes {READ[step]}\n"
        "  next: keep what changes between calls in a buffer, register_buffer(name, tensor), and write to it"
    )


@pytest.mark.parametrize("step", CACHED)
def test_attributes_that_change_no_result_are_told(rng: np.random.Generator, step: Callable[..., torch.Tensor]) -> None:
    model = Remembers(step)
    captured = capture(model, (floats(rng, 5, 3),), None, DIMS)
    assert captured.notes == (
        f"{CACHED[step]}: changed by each call of the model, left alone by the program; calls compute the same",
    )
    x = floats(rng, 7, 3)
    assert_same(run(captured, x), model(x))


def test_attributes_that_are_set_to_what_they_are_need_no_note(rng: np.random.Generator) -> None:
    assert capture(Remembers(still), (floats(rng, 5, 3),), None, DIMS).notes == ()


@pytest.mark.parametrize("step", [*READ, *CACHED])
def test_the_attributes_are_afterwards_what_they_were(
    rng: np.random.Generator, step: Callable[..., torch.Tensor]
) -> None:
    model = Remembers(step)
    last, seen, table = model.part.last, model.part.seen, model.part.table
    try:
        capture(model, (floats(rng, 5, 3),), None, DIMS)
    except CaptureError:
        assert step in READ
    assert model.part.calls == 0
    assert model.part.seen is seen
    assert seen == [("calls", 0)]
    assert model.part.table is table
    assert table == {"inner": {"calls": 0}}
    assert model.part.last is last
    assert model.part.made is None


ASKS = {
    "is_compiling": torch.compiler.is_compiling,
    "is_exporting": torch.compiler.is_exporting,
    "either": lambda: bool(torch.compiler.is_exporting() or torch.jit.is_tracing()),
}


class Asks(torch.nn.Module):
    def __init__(self, asks: Callable[[], bool], yes: Callable[..., Any], no: Callable[..., Any]) -> None:
        super().__init__()
        self.asks, self.yes, self.no = asks, yes, no

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.yes(x) if self.asks() else self.no(x)


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize("dims", [None, DIMS])
def test_a_model_that_asks_whether_it_is_exported_computes_what_it_does_in_eager(
    rng: np.random.Generator, name: str, dims: Any
) -> None:
    x = floats(rng, 5, 3)
    with pytest.raises(CaptureError, match=r"asks torch\.compiler\.is_compiling\(\) or is_exporting\(\)") as caught:
        capture(Asks(ASKS[name], lambda x: x * 2, lambda x: x * 3), (x,), None, dims)
    (problem,) = caught.value.problems
    assert str(problem.where).startswith("tests/frontend/test_unseen_state.py:")
    # by values, which no tracer follows
    with pytest.raises(CaptureError, match="where neither is so"):
        capture(Asks(ASKS[name], lambda x: x * 2, lambda x: x * 3 if bool((x == x).all()) else x), (x,), None, dims)
    for yes, no in ((torch.sin, torch.sin), (lambda x: x.contiguous() * 2, lambda x: x * 2)):
        model = Asks(ASKS[name], yes, no)
        captured = capture(model, (x,), None, dims)
        assert captured.notes == ()
        assert_same(run(captured, x), model(x))
    model = Asks(ASKS[name], lambda x: x + 1, lambda x: 1 + x if bool((x == x).all()) else x)
    (note,) = capture(model, (x,), None, dims).notes
    assert "right on drawn values, not proved" in note
    (note,) = capture(Asks(ASKS[name], lambda x: x + 1, only_for_export), (x,), None, dims).notes
    assert "and fails where neither is so: not proved (tests/frontend/test_unseen_state.py:" in note


def only_for_export(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("this model is there to be exported")


CALLS = {"made": 0}


class Counts(torch.nn.Module):
    """A layer that multiplies by how many layers a call has met before it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CALLS["made"] += 1
        return x * (1 + CALLS["made"] % 3)


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Counts() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CALLS["made"] = 0
        for layer in self.layers:
            x = layer(x)
        return x


class Switched(torch.nn.Module):
    """Decides by a switch that the exporter sets while it traces."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if torch.backends.mkldnn.enabled else x * 3


@pytest.mark.parametrize("model", [Layers(), Switched()])
@pytest.mark.parametrize("dims", [None, DIMS])
def test_a_decision_by_what_lies_outside_of_the_module_is_not_laid_on_dims(
    rng: np.random.Generator, model: torch.nn.Module, dims: Any
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, (floats(rng, 5, 3),), None, dims)
    (problem,) = caught.value.problems
    assert problem.op == "aten.mul"
    assert (problem.where or "").startswith("tests/frontend/test_unseen_state.py:")
    assert problem.text.endswith("a global that calls change, or a switch that torch sets meanwhile")
    assert "dim" not in f"{problem.text} {caught.value.step}"
