"""A language model whose step was made before is not captured again, and computes with its own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.models.language_models import build, prompt

MOST = 96


def made(model: Any, cache: Path, **options: Any) -> Any:
    return tw.compile_lm(model, **{"max_tokens": MOST, "max_batch": 2, "max_step": 32, "cache": cache, **options})


def origin(lm: Any) -> str:
    found: str = lm.report.to_dict()["capture"]
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one small model's step is kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(cache: Path) -> Any:
    """The model whose step is kept."""
    return made(build("Gemma3", 5), cache)


def check(first: Any, cache: Path, ids: list[int], close: float, **options: Any) -> None:
    """A second start gives the first one's program, and another model's numbers where the weights are others."""
    assert origin(first).startswith("made")
    again = made(build("Gemma3", 5), cache, **options)
    assert origin(again).startswith("as before")
    assert "capture" not in again.report.to_dict()["seconds"]
    assert again.program.layout == first.program.layout
    assert str(again.report).count("cache ") == str(first.report).count("cache ")
    assert np.array_equal(again.logits(ids), first.logits(ids))
    other = build("Gemma3", 6)
    third = made(other, cache, **options)
    assert origin(third).startswith("as before")
    with torch.inference_mode():
        wanted = other.double()(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(third.logits(ids) - wanted).max() < close * np.abs(wanted).max()


def test_a_second_start_gives_the_second_models_logits(first: Any, cache: Path, rng: np.random.Generator) -> None:
    check(first, cache, prompt(rng, 40), 1e-4)


@pytest.mark.slow
def test_a_second_start_with_codes_does_so(tmp_path: Path, rng: np.random.Generator) -> None:
    kv = tw.KVCache(dtype="int8", page=16)
    check(made(build("Gemma3", 5), tmp_path, kv=kv), tmp_path, prompt(rng, 40), 0.2, kv=kv)


def _window(model: Any) -> None:
    model.model.layers[0].self_attn.sliding_window = 7


def _scale(model: Any) -> None:
    model.model.layers[-1].self_attn.scaling *= 2


def _hook(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def remembered(model: Any, cache: Path, **layout: Any) -> bool:
    """Whether a step is known, without compiling it where it is not."""
    from dataclasses import asdict, replace

    from tilewright.compiler import language_model
    from tilewright.compiler.options import Options
    from tilewright.compiler.store import Store
    from tilewright.compiler.taken import Memory
    from tilewright.compiler.target import Target
    from tilewright.passes.kv_cache import PagedLayout
    from tilewright.runtime.cache import Cache

    target = Target.of(Options.of({}))
    given = replace(language_model.arranged(PagedLayout(16, MOST, 32, 2), target.machine.rules), **layout)
    made_into = {"layout": asdict(given), "passes": language_model._BEFORE, "machine": target.machine.key()}
    as_given = language_model._as_ids_to_logits(model, given)
    return Memory.of(Store(Cache(cache)), *as_given, fallback="error", made_into=made_into).taken is not None


@pytest.mark.usefixtures("first")
def test_an_equal_model_is_remembered(cache: Path) -> None:
    assert remembered(build("Gemma3", 8), cache)


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("change", [_window, _scale, _hook])
def test_one_layer_that_differs_is_another_model(cache: Path, change: Any) -> None:
    model = build("Gemma3", 5)
    change(model)
    assert not remembered(model, cache)


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("layout", [{"page": 8}, {"most_step": 16}, {"budget": 1 << 20}, {"most_requests": 3}])
def test_another_layout_is_another_step(cache: Path, layout: dict[str, int]) -> None:
    assert not remembered(build("Gemma3", 5), cache, **layout)
