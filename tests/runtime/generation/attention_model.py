"""A causal attention model in float64: two layers, grouped heads, a window in the second one.

`AttentionProgram` is the step program over paged keys and values; `forward` is the same model over a whole sequence,
written without any cache. Each row is computed by itself and always in the same order, so that equal inputs give equal
bits, whoever is beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.runtime.generation.step import CacheGroup, StepInputs, StepLayout, check_inputs

WIDTH, HEADS, KV_HEADS, DEPTH, WINDOW = 16, 4, 2, 4, 7
GROUPS = (None, WINDOW)


class Weights:
    """Random matrices; positions enter through a table."""

    def __init__(self, rng: np.random.Generator, vocabulary: int, positions: int) -> None:
        self.embedding = rng.normal(size=(vocabulary, WIDTH))
        self.positions = rng.normal(size=(positions, WIDTH)) / 2
        self.layers = [
            {
                "q": rng.normal(size=(WIDTH, HEADS * DEPTH)) / 4,
                "k": rng.normal(size=(WIDTH, KV_HEADS * DEPTH)) / 4,
                "v": rng.normal(size=(WIDTH, KV_HEADS * DEPTH)) / 4,
                "o": rng.normal(size=(HEADS * DEPTH, WIDTH)) / 4,
                "up": rng.normal(size=(WIDTH, 2 * WIDTH)) / 4,
                "down": rng.normal(size=(2 * WIDTH, WIDTH)) / 4,
            }
            for _ in GROUPS
        ]
        self.head = rng.normal(size=(WIDTH, vocabulary))


def times(row: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A row times a matrix, summed in one order."""
    return (row[:, None] * matrix).sum(axis=0)


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One query [HEADS * DEPTH] over keys and values [n, KV_HEADS * DEPTH], the oldest first."""
    out = []
    for h in range(HEADS):
        part = slice(h // (HEADS // KV_HEADS) * DEPTH, (h // (HEADS // KV_HEADS) + 1) * DEPTH)
        scores = (keys[:, part] * q[h * DEPTH : (h + 1) * DEPTH]).sum(axis=1) / np.sqrt(DEPTH)
        weights = np.exp(scores - scores.max())
        out.append((weights[:, None] / weights.sum() * values[:, part]).sum(axis=0))
    return np.concatenate(out)


def finish(x: np.ndarray, seen: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
    x = x + times(seen, layer["o"])
    return x + times(np.maximum(times(x, layer["up"]), 0), layer["down"])


class AttentionProgram:
    """The protocol. A page holds keys and values [page_size, 2, KV_HEADS * DEPTH]."""

    def __init__(
        self, rng: np.random.Generator, vocabulary: int = 13, page_size: int = 4, step_tokens: int = 16, pages: int = 40
    ) -> None:
        token = 2 * KV_HEADS * DEPTH * 8
        groups = tuple(CacheGroup(f"layer {i}", pages, token, window) for i, window in enumerate(GROUPS))
        self.layout = StepLayout(vocabulary, 64, step_tokens, 8, page_size, groups)
        self.weights = Weights(rng, vocabulary, 64)
        self.memory = [np.full((pages * page_size, 2, KV_HEADS * DEPTH), np.nan) for _ in groups]

    def step(self, inputs: StepInputs) -> np.ndarray:
        check_inputs(self.layout, inputs)
        w, size = self.weights, self.layout.page_size
        x = [w.embedding[i] + w.positions[p] for i, p in zip(inputs.ids, inputs.positions, strict=True)]
        owner = np.repeat(np.arange(len(inputs.lengths)), np.diff(inputs.offsets))
        for g, (layer, memory, held) in enumerate(zip(w.layers, self.memory, inputs.groups, strict=True)):
            for t, slot in enumerate(held.slots):
                memory[slot] = times(x[t], layer["k"]), times(x[t], layer["v"])
            for t, position in enumerate(inputs.positions.tolist()):
                seen = np.arange(max(0, position - GROUPS[g] + 1) if GROUPS[g] else 0, position + 1)
                pages = held.table[owner[t], (seen // size) % held.table.shape[1]].astype(np.int64)
                cached = memory[pages * size + seen % size]
                x[t] = finish(x[t], attend(times(x[t], layer["q"]), cached[:, 0], cached[:, 1]), layer)
        rows = [times(x[t], w.head) for t in inputs.wanted]
        return np.array(rows, np.float32).reshape(len(rows), self.layout.vocabulary)

    def copy_page(self, group: int, source: int, target: int) -> None:
        pages = self.memory[group].reshape(-1, self.layout.page_size, 2, KV_HEADS * DEPTH)
        pages[target] = pages[source]

    def reset(self, row: int) -> None:
        raise AssertionError("there are no rows")

    def encode(self, row: int, ids: np.ndarray) -> None:
        raise AssertionError("there is no encoder")

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token: [n, V], from the whole sequence with masks and matrix products."""
        w, n = self.weights, len(tokens)
        x = w.embedding[list(tokens)] + w.positions[:n]
        before = np.arange(n)[:, None] - np.arange(n)[None, :]
        for layer, window in zip(w.layers, GROUPS, strict=True):
            q = (x @ layer["q"]).reshape(n, HEADS, DEPTH)
            k, v = (np.repeat((x @ layer[m]).reshape(n, KV_HEADS, DEPTH), HEADS // KV_HEADS, axis=1) for m in "kv")
            scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(DEPTH)
            scores[:, (before < 0) | (before >= (window or n))] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            seen = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v).reshape(n, -1)
            x = x + seen @ layer["o"]
            x = x + np.maximum(x @ layer["up"], 0) @ layer["down"]
        return x @ w.head
