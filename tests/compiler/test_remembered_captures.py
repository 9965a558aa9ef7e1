"""A model that was captured before is not traced again, unless anything that decides its graph changed."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

import tilewright as tw
from tests.models.families import NAMED, decoder
from tilewright.compiler.store import Store
from tilewright.compiler.taken import Memory
from tilewright.frontend.identity import identify
from tilewright.runtime.cache import Cache

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
    assert 'options.determinism: "batch" -> "run"' in program.report.to_dict()["cache"]


@pytest.mark.parametrize("name", ["bert", "gpt-2", "t5", "vit"])
def test_models_of_transformers_are_told_whatever_else_is_loaded(name: str) -> None:
    family, model = NAMED[name], NAMED[name].build(0)
    call = family.draw(np.random.default_rng(0), max(2, family.least[0]), max(5, family.least[1]))
    first = identify(model, (), call, None, "error")
    assert first.factors is not None, first.unproved
    NAMED["gemma-3"].build(0)
    assert identify(model, (), call, None, "error").factors == first.factors


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


class Net(torch.nn.Module):
    def __init__(self, size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(size, size), torch.nn.Dropout(dropout), torch.nn.Linear(size, size)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).relu()


def test_a_miss_is_told_by_what_changed_in_the_same_model_and_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(size: int, dropout: float = 0.0, most: int = 9) -> tuple[Any, ...]:
        return Net(size, dropout).eval(), (torch.randn(2, size),), {}, {"x": {0: tw.Dim("n", 1, most)}}

    def why(*changed: Any, **by_name: Any) -> str:
        memory = Memory.of(Store(Cache(tmp_path)), *given(*changed, **by_name), "error")
        assert memory.taken is None
        return memory.why

    def difference(told: str) -> str:
        found = re.fullmatch(r"differs from [0-9a-f]{12}, used just now, in (.*)", told)
        assert found is not None, told
        assert len(found[1]) <= 140
        return found[1]

    assert why(3) == "no capture like it is cached"
    told = tw.compile(*given(3)[:3], dims=given(3)[3], cache=tmp_path).report.to_dict()
    assert told["cache"] == "miss (no code like it is cached)"
    assert told["capture"] == "made (no capture like it is cached)"
    # its class with other sizes is another model
    assert why(5) == "no capture like it is cached"
    assert "modules.layers.1..p: " in difference(why(3, dropout=0.25))
    assert difference(why(3, most=70)) == "example.dims.0.2: 9 -> 70"
    monkeypatch.setattr(Net, "forward", lambda self, x: self.layers(x).sigmoid())
    assert "Net.forward" in difference(why(3))


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


REPLACED: list[tuple[Any, str]] = [
    (torch.nn.functional, "silu"), (torch.nn.functional, "linear"), (torch.nn.functional, "embedding"),
    (torch, "rsqrt"), (torch, "cat"), (torch.nn.Linear, "forward"), (torch.nn.Module, "_call_impl"),
    (torch.Tensor, "transpose"), (torch.Tensor, "__mul__"), (torch.Tensor, "float"),
]  # fmt: skip


@pytest.mark.parametrize(("holder", "name"), REPLACED, ids=lambda part: getattr(part, "__name__", part))
def test_what_torch_defines_and_somebody_replaced_is_seen(
    holder: Any, name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was, model = getattr(holder, name), LLAMA.build(0)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, torch.stack, raising=False)
        other = asked(model, cache)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, lambda *args, **kwargs: [was(*args, **kwargs)][0])
        own = asked(model, cache)
    assert "hit" not in (other, own)


def test_a_tensors_method_as_a_function_of_torchs_is_not_proved(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rsqrt", torch.ones(3).add)
    assert "is a tensor" in asked(LLAMA.build(0), cache)


# what a method of a user's multiplies by, and how it comes to it; each is told by its value or not proved
STEP = 7.0
TABLE: dict[str, Any] = {"step": 7.0}


class Held:
    def __init__(self, step: Any) -> None:
        self.step = step


def _by_global(step: Any) -> Callable[..., Any]:
    globals()["STEP"] = step
    return lambda self, x: MLP_FORWARD(self, x) * STEP


def _by_table(step: Any) -> Callable[..., Any]:
    TABLE["step"] = step
    return lambda self, x: MLP_FORWARD(self, x) * TABLE["step"]


def _by_default(step: Any) -> Callable[..., Any]:
    return lambda self, x, step=step: MLP_FORWARD(self, x) * step


def _by_closure(step: Any) -> Callable[..., Any]:
    return lambda self, x: MLP_FORWARD(self, x) * step


def _by_object(step: Any) -> Callable[..., Any]:
    held = Held(step)
    return lambda self, x: MLP_FORWARD(self, x) * held.step


def _by_partial(step: Any) -> Callable[..., Any]:
    scaled = functools.partial(torch.mul, step)
    return lambda self, x: scaled(MLP_FORWARD(self, x))


def _by_another_function(step: Any) -> Callable[..., Any]:
    def scaled(x: Any) -> Any:
        return x * step

    return lambda self, x: scaled(MLP_FORWARD(self, x))


MLP = LlamaMLP
MLP_FORWARD = LlamaMLP.forward
WAYS = (_by_global, _by_table, _by_default, _by_closure, _by_object, _by_partial, _by_another_function)


def _told(forward: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(MLP, "forward", forward)
        return identify(LLAMA.build(0), (), decoder(np.random.default_rng(0), 2, 5), None, "error")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_number_that_a_replaced_method_computes_with_is_told(
    way: Callable[[Any], Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (_told(way(step), monkeypatch).factors for step in (7.0, -20.0))
    assert first is not None
    assert first == _told(way(7.0), monkeypatch).factors
    assert first != second


def _asks_the_system(self: Any, x: Any) -> Any:
    return x * float(os.environ.get("STEP", "1"))


def _reads_a_file(self: Any, x: Any) -> Any:
    with open("step") as file:
        return x * float(file.read())


def _asks_for_any_name(self: Any, x: Any) -> Any:
    return x * getattr(self, "st" + str(x.ndim))


def _asks_torch(self: Any, x: Any) -> Any:
    return x * torch.get_num_threads()


UNPROVED = {
    "a tensor": _by_closure(torch.ones(1)), "an array": _by_closure(np.ones(1)),
    "a list of tensors": _by_object([torch.ones(1)]), "a number of numpy's": _by_closure(np.float32(2)),
    "a thread's": _by_closure(threading.local()), "a function of the system's": _by_closure({"of": os.getenv}),
    "the environment": _asks_the_system, "a file": _reads_a_file, "any name": _asks_for_any_name, "torch": _asks_torch,
    "a script": _by_closure(torch.jit.script(torch.nn.ReLU())),
    "remembered results": _by_closure(functools.lru_cache(lambda: 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("forward", UNPROVED.values(), ids=UNPROVED)
def test_what_cannot_be_told_is_not_proved(forward: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = _told(forward, monkeypatch)
    assert found.factors is None
    assert found.unproved


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


PARTS = "SCALE = 2.0\n\n\ndef inner(x):\n    return x.mean(1)\n\n\ndef pooled(x):\n    return inner(x) * SCALE\n"
HOWS = {"a module": "own_parts.pooled", "a name": "pooled"}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for modules of the user's: a transformers model, and the functions that it calls."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_parts.py").write_text(PARTS)
    yield tmp_path
    for name in ("own_decoder", "own_parts"):
        sys.modules.pop(name, None)


def _factors(folder: Path, how: str) -> Any:
    """The factors of the model as another process would load it."""
    import transformers

    (folder / "own_decoder.py").write_text(
        "from transformers import LlamaForCausalLM\n\nimport own_parts\nfrom own_parts import pooled\n\n\n"
        "class OwnDecoder(LlamaForCausalLM):\n    def forward(self, **kwargs):\n"
        f"        return {how}(super().forward(**kwargs).logits)\n"
    )
    for name in ("own_decoder", "own_parts"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    own = importlib.import_module("own_decoder")
    model = own.OwnDecoder(transformers.LlamaConfig(**LLAMA.settings)).eval()
    found = identify(model, (), decoder(np.random.default_rng(0), 2, 5), None, "error")
    assert found.factors is not None, found.unproved
    return found.factors


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_an_edit_of_what_a_users_function_calls_is_another_model(written: Path, how: str) -> None:
    before = _factors(written, how)
    assert _factors(written, how) == before
    for was, now in (("mean(1)", "amax(1)"), ("SCALE = 2.0", "SCALE = 3.0")):
        (written / "own_parts.py").write_text(PARTS.replace(was, now))
        after = _factors(written, how)
        assert {name for name in after if after[name] != before[name]} == {"code"}


def test_an_edit_on_disk_counts_from_when_it_is_loaded(written: Path) -> None:
    import transformers

    before = _factors(written, "pooled")
    (written / "own_parts.py").write_text(PARTS.replace("mean", "amax"))
    model = sys.modules["own_decoder"].OwnDecoder(transformers.LlamaConfig(**LLAMA.settings)).eval()
    assert identify(model, (), decoder(np.random.default_rng(0), 2, 5), None, "error").factors == before
    assert _factors(written, "pooled") != before
