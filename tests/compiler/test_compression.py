"""compile_lm with a compression: what stays is what a mask says, scores are by their definition, refusals are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.models.language_models import build, prompt
from tilewright.compiler.compressing import compressor_of
from tilewright.compiler.language_model import compile_step
from tilewright.errors import OptionError, PromptError, StepError
from tilewright.passes.kv_cache import PagedLayout
from tilewright.passes.kv_cache.layout import Compact
from tilewright.runtime.generation.compressor import Compressor
from tilewright.runtime.generation.language_model import LanguageModel

MOST, PROMPT, SINKS, RECENT = 96, 60, 2, 8
RULE = tw.Compression(budget=20, sinks=SINKS, recent=RECENT, merge=0.9)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("Llama", 5, num_hidden_layers=1)


@pytest.fixture(scope="module")
def code(model: Any) -> Any:
    layout = PagedLayout(8, MOST, 40, 4, compact=Compact(observed=RECENT, counted=True))
    return compile_step(model, layout)


@pytest.fixture(scope="module")
def compressor(code: Any) -> Compressor:
    return compressor_of(RULE, code.step.compressible, code.compiled.executable.program, MOST, {})


def changed(code: Any, compressor: Compressor, **said: Any) -> LanguageModel:
    """The same programs by another rule."""
    rule = replace(compressor.compression, **said)
    dropped = {"log_counts": None} if rule.merge is None else {}
    unscored = {} if rule.observes else {"score": None}
    layers = tuple(replace(layer, **dropped, **unscored) for layer in compressor.layers)
    return LanguageModel(code.program(None, Compressor(rule, layers)), end=())


def masked(model: Any, ids: list[int], kept: np.ndarray) -> np.ndarray:
    """The model in float64 where tokens after the prompt see of it what is kept."""
    n = len(ids)
    seen = np.tril(np.ones((n, n), bool))
    seen[PROMPT:, :PROMPT] &= np.isin(np.arange(PROMPT), kept)
    added = torch.where(torch.from_numpy(seen), 0.0, -torch.inf).double()[None, None]
    with torch.inference_mode():
        wanted = model.double()(torch.tensor([ids]), attention_mask=added, use_cache=False).logits[0].numpy()
    model.float()
    return wanted


def test_the_last_tokens_beside_the_first_are_what_a_mask_leaves(
    code: Any, compressor: Compressor, model: Any, rng: np.random.Generator
) -> None:
    ids = prompt(rng, MOST)
    lm = changed(code, compressor, scorer="recent", merge=None)
    wanted = masked(model, ids, np.r_[0:SINKS, PROMPT - 20 + SINKS : PROMPT])
    found = lm.logits(ids, prompt=PROMPT)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    # the mask is felt: without it the same logits are elsewhere
    assert np.abs(lm.logits(ids) - wanted)[PROMPT:].max() > 1e-2 * np.abs(wanted).max()


def test_a_budget_of_all_tokens_changes_no_bit(
    code: Any, compressor: Compressor, model: Any, rng: np.random.Generator
) -> None:
    ids = prompt(rng, MOST)
    plain = tw.compile_lm(model, max_tokens=MOST, max_batch=4, max_step=40, kv=tw.KVCache(page=8))
    wanted = plain.logits(ids)
    assert changed(code, compressor, budget=1.0).logits(ids, prompt=PROMPT).tobytes() == wanted.tobytes()
    assert changed(code, compressor, budget=MOST, every=3).logits(ids, prompt=7).tobytes() == wanted.tobytes()
    assert changed(code, compressor, budget=RECENT + SINKS).logits(ids).tobytes() == wanted.tobytes()


def test_every_key_head_keeps_what_its_queries_look_at(compressor: Compressor, rng: np.random.Generator) -> None:
    (layer,) = compressor.layers
    n, heads, shared, size = 50, 4, 2, 16
    queries = rng.normal(size=(RECENT, heads, size)).astype(np.float32)
    keys = rng.normal(size=(n, shared, size)).astype(np.float32)
    logs = np.log(rng.integers(1, 5, (n, shared))).astype(np.float32)
    assert layer.score is not None
    found = layer.score(queries, keys, keys, logs)
    mass = np.zeros((shared, n + 4))
    for q in range(RECENT):
        for head in range(heads):
            own = head // (heads // shared)
            logits = keys[:, own].astype(float) @ queries[q, head] * size**-0.5 + logs[:, own]
            logits[n - RECENT + q + 1 :] = -np.inf
            weights = np.exp(logits - logits.max())
            mass[own, 2:-2] += weights / weights.sum() / (RECENT * heads / shared)
    wanted = sum(mass[:, i : i + n] for i in range(5)) / 5
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_the_most_alike_is_by_the_cosine(compressor: Compressor, rng: np.random.Generator) -> None:
    (layer,) = compressor.layers
    kept, others = (rng.normal(size=(n, 2, 16)).astype(np.float32) for n in (7, 13))
    others[3], others[5] = 2 * kept[4], 0
    assert layer.nearest is not None
    best, likeness = layer.nearest(kept, others)
    a, b = (x / np.maximum(np.linalg.norm(x.astype(float), axis=-1, keepdims=True), 1e-20) for x in (kept, others))
    wanted = np.einsum("ehd,khd->hek", b, a)
    np.testing.assert_allclose(likeness, wanted.max(-1), rtol=1e-5, atol=1e-6)
    assert best[:, 3].tolist() == [4, 4]
    assert likeness[:, 5].tolist() == [0, 0]


def test_texts_do_not_hang_on_neighbours_or_on_room(
    code: Any, compressor: Compressor, rng: np.random.Generator
) -> None:
    texts = [prompt(rng, n) for n in (60, 33, 47, 60)]
    lm = changed(code, compressor, every=6)
    alone = [list(lm.generate(text, max_new_tokens=25, salt=str(i))) for i, text in enumerate(texts)]
    # room for two prompts: others wait or are preempted
    engine = lm.engine(budget=lm.program.layout.bytes_for(MOST) * 3 // 2)
    handles = [engine.submit(text, max_new_tokens=25, priority=i % 2) for i, text in enumerate(texts)]
    assert [handle.result() for handle in handles] == alone
    assert engine.book.held_bytes == 0


def test_caches_that_cannot_give_up_tokens_are_told() -> None:
    with pytest.raises(OptionError, match="codes of a page"):
        tw.KVCache(dtype="int8", compress=RULE)
    with pytest.raises(OptionError, match="a page holds a whole request"):
        tw.KVCache(layout="contiguous", compress=RULE)
    with pytest.raises(OptionError, match=r"not a tw\.Compression"):
        tw.KVCache(compress=0.5)  # type: ignore[arg-type]


@pytest.mark.slow
def test_models_that_cannot_give_up_tokens_are_told() -> None:
    give_up = tw.KVCache(compress=RULE)
    with pytest.raises(StepError, match="hangs on distances"):
        tw.compile_lm(build("Bloom", 5), max_tokens=MOST, kv=give_up)
    with pytest.raises(StepError, match="keys are its values"):
        tw.compile_lm(build("DeepseekV3", 5), max_tokens=MOST, kv=give_up)
    with pytest.raises(StepError, match="nothing to give up"):
        tw.compile_lm(build("Mamba2", 5), max_tokens=MOST, kv=give_up)


def test_a_prompt_that_is_none_is_told(code: Any, compressor: Compressor) -> None:
    lm = changed(code, compressor)
    for wrong in (0, 4):
        with pytest.raises(PromptError, match=f"a prompt of {wrong} among 3 tokens"):
            lm.logits([5, 6, 7], prompt=wrong)


class Loudest(torch.nn.Module):
    """A scorer of one's own: values with a large norm."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
        return v.float().square().sum(-1).permute(1, 0)


class Shapeless(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
        return v.float().sum(-1)


@pytest.mark.slow
def test_a_scorer_of_ones_own_chooses(model: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(rng, MOST)
    rule = tw.Compression(budget=20, sinks=SINKS, recent=RECENT, scorer=Loudest())
    lm = tw.compile_lm(model, max_tokens=MOST, max_batch=2, kv=tw.KVCache(compress=rule))
    inner, seen = lm.program.compressed, []

    def compressed(slots: np.ndarray, *more: Any) -> Any:
        seen.append((lm.compiled.state.take_tokens("cache.0.values", slots), inner(slots, *more)["cache.0.values"]))
        return inner(slots, *more)

    monkeypatch.setattr(lm.program, "compressed", compressed)
    list(lm.generate(ids[:PROMPT], max_new_tokens=2, end=()))
    ((values, left),) = seen
    for head in range(2):
        loud = np.square(values[SINKS : PROMPT - RECENT, head].astype(float)).sum(-1)
        best = np.sort(np.argsort(-loud, kind="stable")[: 20 - SINKS - RECENT]) + SINKS
        kept = np.r_[0:SINKS, best, PROMPT - RECENT : PROMPT]
        np.testing.assert_array_equal(left[:, head], values[kept, head])
    with pytest.raises(StepError, match="Shapeless gives"):
        tw.compile_lm(model, max_tokens=MOST, kv=tw.KVCache(compress=replace(rule, scorer=Shapeless())))
    with pytest.raises(OptionError, match="nothing is ever given up"):
        tw.compile_lm(model, max_tokens=10, kv=tw.KVCache(compress=rule))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gemma3", "DeepseekV3", "GPT2"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_windows_latents_and_threads(family: str, precision: Any, rng: np.random.Generator) -> None:
    """Rings stay as they are beside full layers that give up, latents are given up, and threads change no bit."""
    model, ids, found = build(family, 5), prompt(rng, MOST), []
    merge = None if family == "DeepseekV3" else 0.8
    kv = tw.KVCache(page=8, compress=tw.Compression(budget=0.4, sinks=SINKS, recent=RECENT, merge=merge, every=9))
    for threads, step in ((1, 96), (2, 7)):
        lm = tw.compile_lm(model, max_tokens=MOST, max_step=step, kv=kv, threads=threads, precision=precision)
        found.append(lm.logits(ids, prompt=PROMPT))
    plain = tw.compile_lm(model, max_tokens=MOST, precision=precision).logits(ids)
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0][:PROMPT].tobytes() == plain[:PROMPT].tobytes()
    assert np.isfinite(found[0]).all()
    assert not np.array_equal(found[0][PROMPT:], plain[PROMPT:])
