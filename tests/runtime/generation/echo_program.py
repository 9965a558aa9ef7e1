"""A step program that is a fingerprint: its logits are a hash of all that a token sees through the page tables.

Whatever the host addresses wrongly (a lost page, one shared wrongly, a stale one, a window dropped too early) changes
them: `fingerprint` hashes the plain list of tokens. It is cheap enough for tens of thousands of steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.runtime.generation.step import CacheGroup, StepInputs, StepLayout, check_inputs

EMPTY = -7


def layout(**changed: Any) -> StepLayout:
    """A small layout with one full group; give `groups` and so on to change it."""
    said: dict[str, Any] = {
        "vocabulary": 11,
        "max_tokens": 48,
        "step_tokens": 16,
        "step_requests": 4,
        "page_size": 4,
        "groups": (CacheGroup("full", 24, 8),),
    }
    return StepLayout(**(said | changed))


class EchoProgram:
    """The protocol with memory of (token, position) instead of keys and values."""

    def __init__(self, of: StepLayout, sharpness: float = 8.0) -> None:
        self.layout = of
        self.sharpness = sharpness
        self.memory = [np.full(group.pages * of.page_size, EMPTY, np.int64) for group in of.groups]
        self.rows = [b""] * of.state_rows
        self.sources: list[tuple[int, ...]] = [()] * of.state_rows
        self.calls: list[StepInputs] = []

    def step(self, inputs: StepInputs) -> np.ndarray:
        check_inputs(self.layout, inputs)
        self.calls.append(inputs)
        size = self.layout.page_size
        for memory, held in zip(self.memory, inputs.groups, strict=True):
            memory[held.slots] = code(inputs.ids, inputs.positions)
        digests = []
        for i in range(len(inputs.lengths)):
            row = int(inputs.states[i])
            for t in range(int(inputs.offsets[i]), int(inputs.offsets[i + 1])):
                parts = []
                position = int(inputs.positions[t])
                for g, (memory, held) in enumerate(zip(self.memory, inputs.groups, strict=True)):
                    seen = visible(self.layout.groups[g], position - int(held.gone[i]))
                    pages = held.table[i, (seen // size) % held.table.shape[1]]
                    parts.append(memory[pages.astype(np.int64) * size + seen % size].tobytes())
                if row >= 0:
                    if self.layout.recurrent_bytes:
                        self.rows[row] = hashlib.blake2b(self.rows[row] + bytes([int(inputs.ids[t])])).digest()
                        parts.append(self.rows[row])
                    parts.append(repr(self.sources[row]).encode())
                digests.append(hashlib.blake2b(b"|".join(parts)).digest())
        return np.stack([self._logits(digests[t]) for t in inputs.wanted]) if len(inputs.wanted) else self._none()

    def _none(self) -> np.ndarray:
        return np.zeros((0, self.layout.vocabulary), np.float32)

    def _logits(self, digest: bytes) -> np.ndarray:
        words = np.frombuffer(digest, np.uint16)[: self.layout.vocabulary]
        return (words / 65536 * self.sharpness).astype(np.float32)

    def copy_page(self, group: int, source: int, target: int) -> None:
        pages = self.memory[group].reshape(-1, self.layout.page_size)
        pages[target] = pages[source]

    def reset(self, row: int) -> None:
        self.rows[row], self.sources[row] = b"", ()

    def encode(self, row: int, ids: np.ndarray) -> None:
        self.sources[row] = tuple(ids.tolist())

    def fingerprint(self, tokens: Sequence[int], source: Sequence[int] | None = None) -> np.ndarray:
        """The logits after the last of these tokens, from the tokens alone."""
        ids, positions = np.asarray(tokens), np.arange(len(tokens))
        codes = code(ids, positions)
        parts = [codes[visible(group, len(tokens) - 1)].tobytes() for group in self.layout.groups]
        if self.layout.has_rows:
            if self.layout.recurrent_bytes:
                state = b""
                for token in tokens:
                    state = hashlib.blake2b(state + bytes([int(token)])).digest()
                parts.append(state)
            parts.append(repr(tuple(source or ())).encode())
        return self._logits(hashlib.blake2b(b"|".join(parts)).digest())


def code(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return ids.astype(np.int64) * 1_000_003 + positions


def visible(group: CacheGroup, position: int) -> np.ndarray:
    """The positions that the token at `position` sees."""
    seen = np.arange(position + 1)
    return seen if group.window is None else seen[(seen > position - group.window) | (seen < group.sinks)]
