"""A transformers model that was captured before is not traced again, unless anything that decides its graph changed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.models.families import NAMED, decoder
from tilewright.frontend.identity import identify

LLAMA = NAMED["llama"]


def compiled(model: torch.nn.Module, cache: Path, **options: Any) -> Any:
    return LLAMA.compile(model, cache=cache, **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the capture of one small decoder."""
    folder = tmp_path_factory.mktemp("cache")
    assert compiled(LLAMA.build(0), folder).report.to_dict()["capture"].startswith("made")
    return folder


def asked(model: torch.nn.Module, cache: Path) -> str:
    """What compiling the model again says of its capture, without compiling it: a hit, or why there is none."""
    from tilewright.compiler.store import Store
    from tilewright.compiler.taken import Memory
    from tilewright.runtime.cache import Cache

    example = decoder(np.random.default_rng(0), 2, 5)
    made = {"batch": tw.Dim("batch", 1, LLAMA.most[0]), "tokens": tw.Dim("tokens", 1, LLAMA.most[1])}
    dims = {name: {axis: made[dim] for axis, dim in axes.items()} for name, axes in LLAMA.axes.items()}
    memory = Memory.of(Store(Cache(cache)), model, (), example, dims, "error")
    return "hit" if memory.taken is not None else memory.why


def test_an_equal_model_with_other_weights_is_not_captured_and_computes_with_its_own(
    cache: Path, rng: np.random.Generator
) -> None:
    model = LLAMA.build(1)
    program = compiled(model, cache)
    assert program.report.to_dict()["capture"].startswith("as before")
    assert "capture" not in program.report.to_dict()["seconds"]
    call = decoder(rng, 3, 7)
    with torch.inference_mode():
        wanted = model(**call).logits
    mask = call["attention_mask"].bool()
    assert (program(**call).logits - wanted)[mask].abs().max() < 1e-4 * wanted.abs().max()


def test_other_options_find_the_capture_but_no_code(cache: Path) -> None:
    program = compiled(LLAMA.build(0), cache, determinism="run")
    assert program.report.to_dict()["capture"].startswith("made")
    assert "options" in program.report.to_dict()["cache"]


def _hook(model: Any) -> None:
    model.model.layers[1].register_forward_pre_hook(lambda *_: None)


def _state_hook(model: Any) -> None:
    model.model.norm._register_state_dict_hook(lambda *_: None)


def _own_forward(model: Any) -> None:
    norm = model.model.norm
    norm.forward = lambda x: type(norm).forward(norm, x)


def _attribute(model: Any) -> None:
    model.model.layers[0].input_layernorm.variance_epsilon = 3e-3


def _config(model: Any) -> None:
    model.config.rms_norm_eps = 0.25


def _buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq[2] *= 1.5


def _training(model: Any) -> None:
    model.model.layers[0].mlp.train()


def _tied(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def _dtype(model: Any) -> None:
    model.model.norm.bfloat16()


def _loose_tensor(model: Any) -> None:
    model.model.offsets = torch.arange(3)
    model.model.__dict__["table"] = [torch.ones(2)]


CHANGES: dict[Callable[[Any], None], str] = {
    _hook: "the model cannot be captured", _state_hook: "state dict hooks", _own_forward: "this instance alone",
    _attribute: ".variance_epsilon", _config: "configs.0", _buffer: "inv_freq: ", _training: "training: ",
    _tied: "tensors.lm_head.weight", _dtype: "tensors.model.norm.weight", _loose_tensor: "is a tensor",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_captured_and_the_report_says_what_changed(
    change: Callable[[Any], None], cache: Path
) -> None:
    model: Any = LLAMA.build(0)
    assert asked(model, cache) == "hit"
    change(model)
    assert CHANGES[change] in asked(model, cache)


def test_a_method_of_a_class_that_was_replaced_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = LLAMA.build(0)
    kind = type(model.model.norm)
    monkeypatch.setattr(kind, "forward", lambda self, x: self.weight * x)
    assert "LlamaRMSNorm.forward" in asked(model, cache)


def test_a_function_that_a_forward_calls_and_that_was_replaced_is_seen(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = LLAMA.build(0)
    module = sys.modules[type(model.model).__module__]
    monkeypatch.setattr(module, "rotate_half", lambda x: -x)
    assert "rotate_half" in asked(model, cache)


def test_a_function_of_torchs_that_was_replaced_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "silu", lambda x, inplace=False: x)
    assert "silu" in asked(LLAMA.build(0), cache)


def test_an_attention_that_was_registered_is_seen(cache: Path) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("another", lambda *args, **kwargs: args)
    try:
        assert "registered.attention" in asked(LLAMA.build(0), cache)
    finally:
        del AttentionInterface._global_mapping["another"]


def test_torchs_switches_are_seen(cache: Path) -> None:
    model = LLAMA.build(0)
    torch.set_default_dtype(torch.float64)
    try:
        assert "torch.dtype" in asked(model, cache)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    """A module of the user's with a transformers model in it."""
    path = tmp_path / "own_decoder.py"
    path.write_text(
        "from transformers import LlamaForCausalLM\n\n\n"
        "class OwnDecoder(LlamaForCausalLM):\n"
        "    def forward(self, **kwargs):\n"
        "        return super().forward(**kwargs)\n"
    )
    yield path
    sys.modules.pop("own_decoder", None)


def _loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("own_decoder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_decoder"] = module
    spec.loader.exec_module(module)
    return module


def _factors(path: Path) -> Any:
    import transformers

    model = _loaded(path).OwnDecoder(transformers.LlamaConfig(**LLAMA.settings)).eval()
    found = identify(model, (), decoder(np.random.default_rng(0), 2, 5), None, "error")
    assert found.factors is not None, found.unproved
    return found.factors


def test_an_edited_source_is_another_model(written: Path) -> None:
    before = _factors(written)
    assert _factors(written) == before
    written.write_text(written.read_text().replace("forward(**kwargs)\n", "forward(**kwargs)  # as it was\n", 2))
    after = _factors(written)
    assert after["sources"] != before["sources"]
    assert {name for name in after if after[name] != before[name]} <= {"sources", "code"}


def test_a_model_of_torch_alone_is_always_captured(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2).eval()
    for _ in range(2):
        program = tw.compile(model, args=(torch.ones(2, 3),), cache=tmp_path)
        assert program.report.to_dict()["capture"] == "made (the model is not one of transformers)"
