"""Drawn inputs for sentence encoders."""

from __future__ import annotations

import numpy as np
import torch

from bench.models.minilm import MOST_BATCH, MOST_TOKENS

Call = dict[str, torch.Tensor]
VOCABULARY = 30522


def draw_mask(rng: np.random.Generator, batch: int, tokens: int) -> torch.Tensor:
    """One of the ways masks come: none, padded right, padded left, with holes; every row attends to something."""
    lengths = rng.integers(1, tokens + 1, (batch, 1))
    place = np.arange(tokens)
    kind = rng.choice(["whole", "right", "left", "holes"])
    if kind == "whole":
        mask = np.ones((batch, tokens), bool)
    elif kind == "right":
        mask = place < lengths
    elif kind == "left":
        mask = place >= tokens - lengths
    else:
        mask = rng.random((batch, tokens)) < 0.6
        mask[np.arange(batch), rng.integers(0, tokens, batch)] = True
    return torch.from_numpy(mask.astype(np.int64))


def draw_call(rng: np.random.Generator, batch: int, tokens: int) -> Call:
    """Ids over the whole vocabulary, under a drawn mask."""
    ids = torch.from_numpy(rng.integers(0, VOCABULARY, (batch, tokens)))
    return {"input_ids": ids, "attention_mask": draw_mask(rng, batch, tokens)}


def draw_sizes(rng: np.random.Generator, count: int, *, budget: int) -> list[tuple[int, int]]:
    """(batch, tokens) pairs over the declared range, of at most `budget` tokens in all each, small ones mostly.

    The logarithm of each is uniform, the batch or the tokens drawn first in turn, so either may be at its end.
    """
    sizes = []
    for turn in range(count):
        ends = (MOST_BATCH, MOST_TOKENS) if turn % 2 else (MOST_TOKENS, MOST_BATCH)
        first = int(ends[0] ** rng.random() + 0.5)
        second = int(min(ends[1], max(1, budget // first)) ** rng.random() + 0.5)
        sizes.append((first, second) if turn % 2 else (second, first))
    return sizes
