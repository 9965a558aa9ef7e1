"""A model of torch alone that was captured before is not traced again, unless what decides its graph changed."""

from __future__ import annotations

import enum
import functools
import logging
from collections.abc import Callable, Sized
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


class Held:
    """What models below look at in ways that name no attribute of it."""

    __match_args__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 2.0


class Marked(Sized):
    """A class that others may be registered with."""


TEMPLATE = "{0.factor}"
HELD, LOG = Held(), logging.getLogger(__name__)
vars(HELD)["pace"] = 2.0  # which no function names


class ByPattern(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match HELD:
            case Held(pace=found):
                return x * found
        return x


class ByPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match HELD:
            case Held(found):
                return x * found
        return x


class ByFormat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(TEMPLATE.format(HELD))


class ByRegistry(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if isinstance(HELD, Marked) else x


class ByLevel(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if LOG.isEnabledFor(logging.DEBUG) else x


class ByMember(torch.nn.Module):
    def __init__(self, value: float = 2.0) -> None:
        super().__init__()
        self.size = enum.Enum("Size", {"FULL": value}, module=__name__).FULL  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.size.value


class ByWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * (2 if self.inner.weight.requires_grad else 3 if self.inner.weight.grad is None else 4)


class ByProcess(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (2 if torch.backends.mkldnn.enabled else 3)


@pytest.mark.parametrize("kind", [ByPlace, ByFormat, ByProcess])
def test_a_model_that_looks_where_no_name_tells_is_captured(kind: type[torch.nn.Module]) -> None:
    found, unproved = factors(kind())
    assert found is None
    assert unproved


def _register(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Marked.register(Held)


def _frozen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.requires_grad_(False)


def _graded(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.inner.weight.grad = torch.ones(4, 4)


def _marked(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.inner.weight.scale = 2.0


CHANGES: list[tuple[type[torch.nn.Module], Callable[[Any, pytest.MonkeyPatch], None]]] = [
    (ByPattern, lambda _, patch: patch.setitem(vars(HELD), "pace", 3.0)),
    (ByRegistry, _register),
    (ByLevel, lambda _, patch: patch.setattr(LOG, "disabled", True)),
    (ByMember, lambda model, _: setattr(model, "size", ByMember(3.0).size)),
    (ByWeight, _frozen),
    (ByWeight, _graded),
    (ByWeight, _marked),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_what_a_forward_asks_of_what_it_holds_is_seen(
    kind: type[torch.nn.Module], change: Callable[[Any, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind()
    first, unproved = factors(model)
    assert first is not None, unproved
    assert factors(model)[0] == first
    change(model, monkeypatch)
    assert factors(model)[0] != first


# --- operators of torch.library ---------------------------------------------------------------------------------------


def _defined(factor: float = 2.0) -> Any:
    """An operator as a library defines it; another definition replaces the one before."""

    @torch.library.custom_op("tilewright_remembered::scaled", mutates_args=())
    def operator(x: torch.Tensor) -> torch.Tensor:
        return x * 2.0 if factor == 2.0 else x * 3.0

    operator.register_fake(torch.empty_like)
    return operator


SCALED = _defined()


class ByObject(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SCALED(x) + 1


class ByName(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.tilewright_remembered.scaled(x) + 1


class ByPacket(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.called = torch.ops.tilewright_remembered.scaled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(x) + 1


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@tw.kernel("x f32[rows, n] -> y f32[rows, n]")
def doubling(b: Any, x: Any, y: Any) -> None:
    row, column = b.grid(["rows", "n"], [4, 64])
    tile = b.load(b.dense(x), [row, column], [4, 64])
    b.store(b.map("mul", tile, FACTOR), b.dense(y), [row, column])


OPERATOR_MODELS = (ByObject, ByName, ByPacket)


def test_a_model_with_an_operator_of_a_library_is_captured_once(tmp_path: Path) -> None:
    x = torch.ones(2, 4)
    for registered, factor in (({"reference": tripled}, 3), ({"kernel": doubling}, 2)):
        tw.register_op("tilewright_remembered::scaled", **registered)
        for origin in ("made", "as before"):
            program = tw.compile(ByName().eval(), (x,), cache=tmp_path)
            assert program.report.to_dict()["capture"].startswith(origin)
            assert torch.equal(program(x), x * factor + 1)


@pytest.mark.parametrize("kind", OPERATOR_MODELS)
def test_what_an_operator_is_made_of_counts(kind: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    tw.register_op("tilewright_remembered::scaled", reference=doubled)
    seen = [factors(kind())]
    tw.register_op("tilewright_remembered::scaled", reference=tripled)
    seen.append(factors(kind()))
    tw.register_op("tilewright_remembered::scaled", kernel=doubling)
    seen.append(factors(kind()))
    with monkeypatch.context() as context:
        context.setitem(globals(), "FACTOR", 4.0)
        seen.append(factors(kind()))
    with monkeypatch.context() as context:
        context.setattr(SCALED, "_init_fn", tripled)  # another implementation
        seen.append(factors(kind()))
    for rule in (doubled, *(functools.partial(torch.full_like, fill_value=value) for value in (1.0, 2.0))):
        with monkeypatch.context() as context:
            context.setattr(SCALED, "_abstract_fn", rule)  # another shape rule
            seen.append(factors(kind()))
    assert not any(unproved for _, unproved in seen)
    assert all(a != b for i, (a, _) in enumerate(seen) for b, _ in seen[:i])
    assert factors(kind())[0] == seen[2][0]


class Composed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.tilewright_remembered_text.composed(x)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("CompositeImplicitAutograd", "is made of other operators, and torch does not say which"),
        ("CompositeExplicitAutograd", "has no shape rule in Python"),
        ("Meta", "has no shape rule in Python"),
    ],
)
def test_an_operator_that_torch_does_not_show_is_named(key: str, said: str) -> None:
    with torch.library._scoped_library("tilewright_remembered_text", "DEF") as library:
        library.define("composed(Tensor x) -> Tensor")
        library.impl("composed", lambda x: x * 2, key)
        found, unproved = factors(Composed())
    assert found is None
    assert unproved.startswith(f"tilewright_remembered_text::composed {said}")
