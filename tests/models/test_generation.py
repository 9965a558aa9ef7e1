"""Greedy text equals transformers' generate, family by family, prompts of different lengths in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import tilewright as tw
from tests.models.language_models import (
    FAMILIES,
    RECURRENT,
    SOURCED,
    build,
    build_sourced,
    greedy,
    greedy_answer,
    prompt,
    require_same,
)

FAST = ("Llama", "Gemma3")
LENGTHS = (1, 5, 37, 70)


def same_text(family: str, pages: Sequence[int], rng: np.random.Generator, tokens: int, **changed: object) -> None:
    """Under every page size; what transformers generates does not depend on it."""
    model = build(family, int(rng.integers(2**31)), **changed)
    prompts = [prompt(rng, length) for length in LENGTHS]
    wanted = [greedy(model, ids, tokens) for ids in prompts]
    for page in pages:
        print(f"pages of {page}")
        lm = tw.compile_lm(model, max_tokens=200, max_batch=4, max_step=32, kv=tw.KVCache(page=page))
        found: list[list[int]] = [[] for _ in prompts]
        for index, token in lm.generate(prompts, max_new_tokens=tokens, end=()):
            found[index].append(token)
        for text, (mine, logits) in zip(found, wanted, strict=True):
            require_same(text, mine, logits)


@pytest.mark.parametrize("family", FAST)
def test_greedy_text_is_that_of_transformers(family: str, rng: np.random.Generator) -> None:
    same_text(family, [16], rng, 64)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_transformers_for_every_page_size(family: str, rng: np.random.Generator) -> None:
    same_text(family, [1, 3, 16, 64], rng, 128)


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT)
def test_greedy_text_of_recurrences_is_that_of_transformers(family: str, rng: np.random.Generator) -> None:
    same_text(family, [16], rng, 128)


@pytest.mark.slow
@pytest.mark.parametrize("family", SOURCED)
def test_greedy_answers_to_sources_are_those_of_transformers(family: str, rng: np.random.Generator) -> None:
    model = build_sourced(family, int(rng.integers(2**31)))
    sources = [prompt(rng, length) for length in LENGTHS]
    wanted = [greedy_answer(model, ids, 128) for ids in sources]
    for page in (3, 16):
        lm = tw.compile_lm(model, max_tokens=200, max_source=80, max_batch=4, max_step=32, kv=tw.KVCache(page=page))
        found: list[list[int]] = [[] for _ in sources]
        for index, token in lm.generate(sources, max_new_tokens=128, end=()):
            found[index].append(token)
        for text, (mine, logits) in zip(found, wanted, strict=True):
            require_same(text, mine, logits)
