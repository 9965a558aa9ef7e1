from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, captured_equals_eager, run
from tilewright.frontend import capture, trial
from tilewright.frontend.declaring import declare
from tilewright.frontend.examples import bind
from tilewright.frontend.exporting import export
from tilewright.ir.dims import Dim

T = Dim("tokens", 1, 64)


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.full((3,), 2.0))
        self.register_buffer("fixed", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out = x * self.calls + self.last * self.fixed
        self.last[:] = x[-1]
        return out


def test_mutated_buffers_are_states_and_the_module_stays_as_it_was(rng: np.random.Generator) -> None:
    model = Counter()
    captured = capture(model, (floats(rng, 5, 3),), None, {"x": (T, None)})
    assert model.calls == 0
    assert set(captured.states) == {"calls", "last"}
    assert set(captured.weights) == {"fixed"}
    assert torch.equal(captured.states["last"], torch.full((3,), 2.0))
    states = {name: value.clone() for name, value in captured.states.items()}
    for n in (5, 1, 7):
        x = floats(rng, n, 3)
        assert_same(run(captured, x, states=states), model(x))
    assert states["calls"] == 3
    assert torch.equal(states["last"], model.last)
    assert model.calls == 3


class Sums(torch.nn.Module):
    """A buffer that a call writes in place, and gives."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.rows += x.shape[0]
        self.total.mul_(0.5).add_(x.sum(0))
        return (self.total, self.rows) if self.whole else (self.total[1:], x * self.rows)


@pytest.mark.parametrize("dims", [None, {"x": (T, None)}])
@pytest.mark.parametrize("whole", [True, False])
def test_a_state_can_be_an_output(
    rng: np.random.Generator, whole: bool, dims: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Sums(whole)
    x = floats(rng, 5, 3)
    with monkeypatch.context() as proofs_only:
        proofs_only.setattr(trial, "eager", None)
        captured = capture(model, (x,), None, dims)
    # drawn values confirm what the operators prove
    sizes = {dim.name: 5 for dim in captured.dims}
    example = declare(bind(model.forward, (x,), {}), dims)
    assert trial._agrees(model, export(model, example), captured, captured.module, sizes) is trial._Found.AGREES
    assert captured.notes == ()
    states = {name: value.clone() for name, value in captured.states.items()}
    for n in (5, 1, 7) if dims else (5, 5):
        x = floats(rng, n, 3)
        assert_same(run(captured, x, states=states), model(x))
    assert_same([states["rows"], states["total"]], [model.rows, model.total])


def test_inputs_written_in_place_are_written_back(rng: np.random.Generator) -> None:
    class InPlace(torch.nn.Module):
        def forward(self, x: torch.Tensor, cache: dict[str, torch.Tensor]) -> torch.Tensor:
            cache["sum"].add_(x.sum(0))
            cache["rows"][1:2] = x[:1]
            return x * 2

    model = InPlace()
    cache = {"sum": floats(rng, 3), "rows": floats(rng, 4, 3)}
    captured = capture(model, (floats(rng, 5, 3), cache), None, {"x": (T, None)})
    assert [i.name for i in captured.signature.inputs if i.mutated] == ["cache.sum", "cache.rows"]
    for n in (5, 1, 7):
        x, total, rows = floats(rng, n, 3), floats(rng, 3), floats(rng, 4, 3)
        eager_total, eager_rows = total.clone(), rows.clone()
        expected = model(x, {"sum": eager_total, "rows": eager_rows})
        assert_same(run(captured, x, {"sum": total, "rows": rows}), expected)
        assert_same([total, rows], [eager_total, eager_rows])


def test_in_place_ops_on_temporaries_leave_no_state(rng: np.random.Generator) -> None:
    class Temporaries(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            y.mul_(2).relu_()
            y[:, 0].zero_()
            return torch.nn.functional.layer_norm(y, (3,))

    captured = captured_equals_eager(Temporaries(), [(floats(rng, n, 3),) for n in (5, 1, 7)], {"x": (T, None)})
    assert not captured.states
    assert not captured.signature.mutations
    names = [op.name for op in captured.module.walk()]
    # functionalizing keeps composite operators whole
    assert names.count("graph.norm") == 1
    assert names.count("graph.matmul") == 1
    assert "graph.transpose" not in names


def test_tied_weights_are_one_entry(rng: np.random.Generator) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 4)
            self.head = torch.nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight
            self.unused = torch.nn.Linear(2, 2)
            self.spare = self.unused

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    model = Tied()
    ids = torch.from_numpy(rng.integers(0, 11, (5,)))
    captured = captured_equals_eager(model, [(ids,)], {"ids": (T,)})
    assert captured.aliases["head.weight"] == "embed.weight"
    assert set(model.state_dict()) <= set(captured.weights) | set(captured.aliases)
    assert captured.weights["embed.weight"].data_ptr() == model.embed.weight.data_ptr()
    assert not captured.transient


def test_buffers_outside_the_state_dict_are_known_as_such(rng: np.random.Generator) -> None:
    class Buffers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.linspace(1, 2, 3), persistent=False)
            self.register_buffer("places", torch.arange(9)[None], persistent=False)
            self.register_buffer("kept", torch.arange(9))
            self.table = torch.linspace(0, 1, 300).reshape(100, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale + self.places[:, : x.shape[0]].T + self.table[: x.shape[0]] + self.kept[0]

    calls = [(floats(rng, n, 3),) for n in (5, 1, 9)]
    captured = captured_equals_eager(Buffers(), calls, {"x": (Dim("n", 1, 9), None)})
    assert set(captured.weights) == {"scale", "kept", "constant.0"}
    assert captured.transient == {"scale", "constant.0"}


def test_the_module_is_not_kept_alive(rng: np.random.Generator) -> None:
    import gc
    import weakref

    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    captured = capture(model, (floats(rng, 2, 3),))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert set(captured.weights) == {"0.weight", "0.bias"}
