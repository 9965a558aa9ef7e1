"""Encoder-decoder models: a source is read once, its answer has the bits of its own source and tokens alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.stepping import logits
from tests.models.language_models import build_sourced, greedy_answer, prompt, require_same
from tilewright.errors import OptionError, PromptError

MOST, SOURCE, START = 100, 60, 0


@pytest.fixture(scope="module")
def model() -> Any:
    return build_sourced("T5", 7, num_layers=1)


@pytest.fixture(scope="module")
def lm(model: Any) -> Any:
    return tw.compile_lm(model, max_tokens=MOST, max_source=SOURCE, max_batch=4, max_step=64)


def test_logits_are_the_models(lm: Any, model: Any, rng: np.random.Generator) -> None:
    source, ids = prompt(rng, int(rng.integers(1, SOURCE))), [START, *prompt(rng, MOST - 1)]
    with torch.inference_mode():
        given = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([ids])}
        wanted = model.double()(**given).logits[0].numpy()
    model.float()
    assert np.abs(lm.logits(ids, source=source) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_greedy_answers_are_those_of_transformers(lm: Any, model: Any, rng: np.random.Generator) -> None:
    sources = [prompt(rng, n) for n in (1, 17, SOURCE)]
    found: list[list[int]] = [[] for _ in sources]
    for index, token in lm.generate(sources, max_new_tokens=40, end=()):
        found[index].append(token)
    for source, mine in zip(sources, found, strict=True):
        require_same(mine, *greedy_answer(model, source, 40))


def test_chunks_and_neighbours_do_not_change_a_bit(lm: Any, rng: np.random.Generator) -> None:
    sources, texts = [prompt(rng, n) for n in (60, 3, 1)], [[START, *prompt(rng, n)] for n in (63, 20, 5)]
    alone = [logits(lm.program, [t], [64], [s])[0] for t, s in zip(texts, sources, strict=True)]
    for chunks in ([1, 1, 1], [16, 16, 16], [50, 1, 3]):
        for found, wanted in zip(logits(lm.program, texts, chunks, sources), alone, strict=True):
            assert found.tobytes() == wanted.tobytes()


def test_who_is_preempted_answers_as_alone_and_prefixes_are_shared_by_source(lm: Any, rng: np.random.Generator) -> None:
    layout, begins = lm.program.layout, [START, *prompt(rng, 35)]
    # drawn weights answer some sources alike: three whose answers tell them apart
    answers: dict[tuple[int, ...], list[int]] = {}
    for length in (40, 3, 25, 60, 11, 33, 7, 52, 19, 1):
        source = prompt(rng, length)
        text = tuple(lm.generate(begins, source=source, max_new_tokens=30, end=(), salt=str(source)))
        answers.setdefault(text, source)
        if len(answers) == 3:
            break
    assert len(answers) > 1
    alone, sources = [list(text) for text in answers], list(answers.values())
    engine = lm.engine(budget=layout.bytes_for(70) + layout.row_bytes)
    handles = [engine.submit(begins, source=s, max_new_tokens=30, end=()) for s in sources]
    assert [handle.result() for handle in handles] == alone
    assert engine.book.account.preempted > 0
    for source, reused in ((sources[0], 0), (sources[1], 0), (sources[0], 32)):
        again = lm.current.submit(begins, source=source, max_new_tokens=3, end=(), salt="shared")
        assert again.result() == alone[sources.index(source)][:3]
        assert again.reused == reused
    lm.engine()


def test_rows_are_as_large_as_their_formula(lm: Any) -> None:
    # keys and values of one layer, 4 heads of 16 numbers in 4 bytes
    assert lm.program.layout.cross_bytes == SOURCE * 2 * 4 * 16 * 4
    assert any(
        note.startswith("cache source: 2 states that the encoder fills once") for note in lm.compiled.facts.notes
    )


def test_what_cannot_be_is_told(lm: Any, model: Any, rng: np.random.Generator) -> None:
    with pytest.raises(PromptError, match="the source has no tokens"):
        lm.logits([START])
    with pytest.raises(PromptError, match="61 tokens, the encoder takes 60"):
        lm.generate(prompt(rng, SOURCE + 1))
    with pytest.raises(OptionError, match="max_source=0"):
        tw.compile_lm(model, max_source=0)
