"""Models with recurrences and convolutions: their states are a request's own, and go on bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.stepping import logits
from tests.models.language_models import build, greedy, prompt, require_same
from tilewright.errors import CacheFullError, EngineError, OptionError
from tilewright.runtime.generation.speculation import PromptLookup

MOST = 120


@pytest.fixture(scope="module", params=["Mamba2", pytest.param("Bamba", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> Any:
    """A layer of a recurrence and a convolution; Bamba has one of attention besides."""
    return build(request.param, 5, num_hidden_layers=1 if request.param == "Mamba2" else 2)


@pytest.fixture(scope="module")
def lm(model: Any) -> Any:
    return tw.compile_lm(model, max_tokens=MOST, max_batch=4, max_step=96)


def test_logits_are_the_models(lm: Any, model: Any, rng: np.random.Generator) -> None:
    ids = prompt(rng, int(rng.integers(100, MOST)))
    with torch.inference_mode():
        wanted = model.double()(torch.tensor([ids])).logits[0].numpy()
    model.float()
    assert np.abs(lm.logits(ids) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_greedy_text_is_that_of_transformers(lm: Any, model: Any, rng: np.random.Generator) -> None:
    prompts = [prompt(rng, n) for n in (1, 5, 60)]
    found: list[list[int]] = [[] for _ in prompts]
    for index, token in lm.generate(prompts, max_new_tokens=40, end=()):
        found[index].append(token)
    for ids, mine in zip(prompts, found, strict=True):
        require_same(mine, *greedy(model, ids, 40))


def test_chunks_and_neighbours_do_not_change_a_bit(lm: Any, rng: np.random.Generator) -> None:
    texts = [prompt(rng, n) for n in (90, 1, 2, 33)]
    alone = [logits(lm.program, [text], [96])[0] for text in texts]
    for chunks in ([1, 1, 1, 1], [16, 16, 16, 16], [90, 1, 1, 3]):
        for found, wanted in zip(logits(lm.program, texts, chunks), alone, strict=True):
            assert found.tobytes() == wanted.tobytes()


@pytest.mark.slow
def test_threads_do_not_change_a_bit(lm: Any, model: Any, rng: np.random.Generator) -> None:
    other = tw.compile_lm(model, max_tokens=MOST, max_batch=4, max_step=96, threads=1)
    ids = prompt(rng, 70)
    assert logits(lm.program, [ids], [7])[0].tobytes() == logits(other.program, [ids], [31])[0].tobytes()


def test_who_is_preempted_says_what_he_says_alone(lm: Any, rng: np.random.Generator) -> None:
    prompts = [prompt(rng, n) for n in (40, 3, 25, 60, 12)]
    lm.engine(max_batch=1)
    alone = [list(lm.generate(ids, max_new_tokens=20, end=())) for ids in prompts]
    layout = lm.program.layout
    engine = lm.engine(budget=layout.bytes_for(80) + layout.row_bytes)
    handles = []
    for priority, ids in enumerate(prompts):
        handles.append(engine.submit(ids, max_new_tokens=20, end=(), priority=priority))
        engine.step()
    assert [handle.result() for handle in handles] == alone
    assert engine.book.account.preempted > 0
    assert engine.book.held_bytes == 0
    lm.engine()


def test_a_conversation_goes_on_where_its_states_are(lm: Any, rng: np.random.Generator) -> None:
    from tilewright.runtime.generation.request import Conversation

    ids, talk = prompt(rng, 30), Conversation()
    first = lm.current.submit(ids, max_new_tokens=5, end=(), conversation=talk).result()
    more = [*ids, *first, *prompt(rng, 7)]
    again = lm.current.submit(more, max_new_tokens=9, end=(), conversation=talk)
    assert again.result() == list(lm.generate(more, max_new_tokens=9, end=()))
    # the last token was given out and not read
    assert again.reused == len(ids) + len(first) - 1
    # other words: a state cannot be wound back, so nothing is taken up
    other = [*ids[:20], *prompt(rng, 9)]
    fresh = lm.current.submit(other, max_new_tokens=9, end=(), conversation=talk)
    assert fresh.result() == list(lm.generate(other, max_new_tokens=9, end=()))
    assert fresh.reused == 0
    lm.current.forget(talk)


def test_rows_are_as_large_as_their_formula(lm: Any) -> None:
    # sums of 8 heads of 16 by 16 numbers; the last 3 inputs of 128 channels and of 2 groups' keys and queries of 16
    layout = lm.program.layout
    assert layout.recurrent_bytes == (8 * 16 * 16 + 3 * (128 + 2 * 2 * 16)) * 4
    states = {s.spec.name: s.spec.bytes.evaluate({}) for s in lm.compiled.executable.program.states}
    assert sum(n for name, n in states.items() if name.startswith("row.")) == layout.state_rows * layout.row_bytes
    said = f"cache rows: 2 states that every token overwrites, {layout.row_bytes} B a request; 4 rows"
    assert said in lm.compiled.facts.notes


def test_what_states_cannot_do_is_told(lm: Any, model: Any, rng: np.random.Generator) -> None:
    with pytest.raises(EngineError, match="recurrent states"):
        lm.engine(drafting=PromptLookup())
    with pytest.raises(OptionError, match="beside the states of 4 requests"):
        tw.compile_lm(model, max_tokens=MOST, max_batch=4, kv=tw.KVCache(budget=4 * lm.program.layout.row_bytes - 1))
    held = [lm.current.submit(prompt(rng, 3), max_new_tokens=50, end=()) for _ in range(4)]
    lm.current.step()
    with pytest.raises(CacheFullError):
        lm.logits(prompt(rng, 3))
    for handle in held:
        handle.cancel()
