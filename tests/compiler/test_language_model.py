"""compile_lm: a row's logits depend on its own tokens alone; the cache is as large as it says; bad input is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tilewright as tw
from tests.compiler.stepping import logits
from tests.models.language_models import VOCABULARY, build, prompt
from tilewright.errors import CacheFullError, OptionError, PromptError, StepError, TextError

MOST = 200


@pytest.fixture(scope="module")
def model() -> Any:
    """Sliding and full layers: a group with a ring beside one without."""
    return build("Gemma3", 5)


@pytest.fixture(scope="module")
def lm(model: Any) -> Any:
    return tw.compile_lm(model, max_tokens=MOST, max_batch=7, max_step=96)


def test_logits_are_the_models(lm: Any, model: Any, rng: np.random.Generator) -> None:
    ids = prompt(rng, int(rng.integers(60, MOST)))
    with torch.inference_mode():
        wanted = model.double()(torch.tensor([ids])).logits[0].numpy()
    model.float()
    found = lm.logits(ids)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("chunk", [1, 16, 96])
def test_chunks_do_not_change_a_bit(lm: Any, rng: np.random.Generator, chunk: int) -> None:
    ids = prompt(rng, 90)
    (whole,) = logits(lm.program, [ids], [90])
    (pieces,) = logits(lm.program, [ids], [chunk])
    assert whole.tobytes() == pieces.tobytes()


@pytest.mark.parametrize("batch", [2, 7])
def test_neighbours_do_not_change_a_bit(lm: Any, rng: np.random.Generator, batch: int) -> None:
    texts = [prompt(rng, int(rng.integers(1, 80))) for _ in range(batch)]
    beside = logits(lm.program, texts, [int(rng.integers(1, 96 // batch + 1)) for _ in texts])
    for text, found in zip(texts, beside, strict=True):
        (alone,) = logits(lm.program, [text], [len(text)])
        assert alone.tobytes() == found.tobytes()


@pytest.mark.parametrize(
    "changed",
    [{"threads": 1}, {"threads": 2}, pytest.param({"kv": tw.KVCache(page=3)}, marks=pytest.mark.slow)],
    ids=str,
)
def test_threads_and_pages_do_not_change_a_bit(
    lm: Any, model: Any, rng: np.random.Generator, changed: dict[str, Any]
) -> None:
    other = tw.compile_lm(model, max_tokens=MOST, max_batch=7, max_step=96, **changed)
    ids = prompt(rng, 90)
    assert logits(lm.program, [ids], [7])[0].tobytes() == logits(other.program, [ids], [31])[0].tobytes()


def test_a_prefix_that_is_taken_up_again_does_not_change_the_text(lm: Any, rng: np.random.Generator) -> None:
    shared, ends = prompt(rng, 50), [prompt(rng, 4) for _ in range(3)]
    fresh = [list(lm.generate(shared + end, max_new_tokens=20, end=(), salt=str(end))) for end in ends]
    handles = [lm.current.submit(shared + end, max_new_tokens=20, end=()) for end in ends]
    assert [handle.result() for handle in handles] == fresh
    again = lm.current.submit(shared + ends[0], max_new_tokens=20, end=())
    assert again.result() == fresh[0]
    assert again.reused >= 48


def test_the_cache_is_as_large_as_its_formula(lm: Any) -> None:
    # two sliding layers and a full one, keys and values, 2 heads of 16 numbers in 4 bytes
    by_name = {group.name: group for group in lm.program.layout.groups}
    assert by_name["sliding24"].token_bytes == 2 * 2 * 2 * 16 * 4
    assert by_name["full"].token_bytes == 2 * 2 * 16 * 4
    states = lm.compiled.executable.program.states
    assert all(state.initial is None for state in states)
    held = sum(group.pages * lm.program.layout.page_size * group.token_bytes for group in by_name.values())
    assert sum(state.spec.bytes.evaluate({}) for state in states) == held
    assert f"cache full: 1 layers, {by_name['full'].token_bytes} B a token" in " ".join(str(lm.report).split())


def test_a_budget_bounds_the_cache(rng: np.random.Generator) -> None:
    model = build("Llama", 1, num_hidden_layers=1)
    small = tw.compile_lm(model, max_tokens=MOST, max_batch=4, max_step=32, kv=tw.KVCache(budget="40KiB"))
    layout = small.program.layout
    assert sum(layout.page_bytes(g) * group.pages for g, group in enumerate(layout.groups)) <= 40 << 10
    with pytest.raises(CacheFullError, match="B"):
        small.current.submit(prompt(rng, 100), max_new_tokens=100)
    with pytest.raises(OptionError, match="does not hold a page"):
        tw.compile_lm(model, max_tokens=MOST, kv=tw.KVCache(budget=64))


def test_bad_prompts_are_told(lm: Any) -> None:
    for bad in ([], [VOCABULARY], [-1], [3] * (MOST + 1)):
        with pytest.raises(PromptError):
            lm.generate(bad)
    with pytest.raises(TextError, match="tokenizer"):
        lm.complete("text")


@pytest.mark.parametrize(
    "wrong", [{"page": 0}, {"page": True}, {"budget": 0}, {"budget": 1.5}, {"layout": "ring"},
              {"layout": "contiguous", "page": 4}], ids=str,
)  # fmt: skip
def test_bad_layouts_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        tw.KVCache(**wrong)


def test_bad_options_are_told(model: Any) -> None:
    for wrong in ({"max_tokens": 0}, {"max_tokens": 10**6}, {"max_batch": 0}, {"kv": 3}, {"check": "first"}):
        with pytest.raises(OptionError):
            tw.compile_lm(model, **wrong)
    with pytest.raises(
        OptionError, match=r"compile_lm\(\) has no option 'max_token'\n  next: did you mean 'max_tokens'"
    ):
        tw.compile_lm(model, max_token=5)
    with pytest.raises(OptionError) as caught:
        tw.compile_lm(model, wibble=5)
    # every name that is offered is taken
    offered = caught.value.step.removeprefix("it has ").split(", ")
    assert {"kv", "max_tokens", "max_source", "max_batch", "max_step", "threads"} < set(offered)
    assert "check" not in offered


def test_models_that_mix_tokens_are_refused_with_the_ops() -> None:
    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(11, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            return (x - x.mean(1, keepdim=True)) @ self.table.weight.T

    with pytest.raises(StepError, match=r"(?s)reduces over tokens.*test_language_model\.py:\d+"):
        tw.compile_lm(Mixing(), max_tokens=32)


def test_models_of_another_kind_are_refused_by_it() -> None:
    sizes = {"vocab_size": 30, "num_attention_heads": 2, "num_hidden_layers": 1}
    bert = transformers.BertModel(transformers.BertConfig(hidden_size=16, intermediate_size=16, **sizes)).eval()
    with pytest.raises(StepError) as caught:
        tw.compile_lm(bert, max_tokens=32)
    assert str(caught.value) == (
        "TW037 cannot generate step by step: the model has 2 results; a causal language model takes ids and gives "
        "logits [batch, tokens, V], one each\n  next: take the class with the language head (transformers' "
        "AutoModelForCausalLM), or wrap the model in one that returns its logits alone"
    )
    with pytest.raises(StepError) as caught:
        tw.compile_lm(torch.nn.Linear(3, 3).eval(), max_tokens=3)
    assert str(caught.value) == (
        "TW037 cannot generate step by step: Linear fails when it is called with token ids, i64[2, 8]: RuntimeError: "
        "mat1 and mat2 must have the same dtype, but got Long and Float\n  next: give a model of token ids "
        "[batch, tokens] that returns logits; tw.compile(model, args) takes others"
    )
    with pytest.raises(OptionError, match="BertModel has no encoder to read a source"):
        tw.compile_lm(bert, max_tokens=32, max_source=9)


def test_a_directory_brings_its_model(model: Any, lm: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    other, ids = tw.compile_lm(str(tmp_path), max_tokens=MOST, max_batch=7, max_step=96), prompt(rng, 20)
    assert other.end == (2,)
    assert np.array_equal(other.logits(ids), lm.logits(ids))
