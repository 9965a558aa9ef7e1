"""From all keys and values of a request to those that stay, layer by layer, key head by key head.

What is multiplied, the scores and the likeness of keys, is computed by compiled programs, so that bits depend on the
request's own tokens alone; choosing and moving is done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.executor import Executable
from tilewright.runtime.generation.compression import Compressed, Compression
from tilewright.runtime.states import StateStore


@dataclass(frozen=True)
class CompressedLayer:
    """One attention's states by name. values: None where they are the keys' first features. score: queries, keys,
    values, log_counts to scores, see `Compression`; None where nothing is scored. nearest: kept keys [k, heads,
    features] and others [e, heads, features] to the most alike of the first for each [heads, e] and their cosine.
    """

    keys: str
    values: str | None
    queries: str | None
    log_counts: str | None
    score: Executable | None
    nearest: Executable | None


@dataclass(frozen=True)
class Compressor:
    """All layers of a compact group."""

    compression: Compression
    layers: tuple[CompressedLayer, ...]

    def compressed(
        self, state: StateStore, slots: NDArray[np.int64], observed: NDArray[np.int64], count: int
    ) -> Compressed:
        """What is left of the tokens at slots, in the order of their places, once all but `count` are given up."""
        left: dict[str, NDArray[Any]] = {}
        for layer in self.layers:
            keys = state.take_tokens(layer.keys, slots)
            values = keys if layer.values is None else state.take_tokens(layer.values, slots)
            logs = np.zeros(keys.shape[:2], np.float32)
            if layer.log_counts is not None:
                logs = state.take_tokens(layer.log_counts, slots)
            scores = None
            if layer.score is not None and layer.queries is not None:
                scores = layer.score(state.take_tokens(layer.queries, observed), keys, values, logs)
            chosen = self.compression.chosen(scores, keys.shape[1], len(keys), count)
            left[layer.keys] = _taken(keys, chosen)
            if layer.values is not None:
                left[layer.values] = _taken(values, chosen)
            if layer.log_counts is not None and layer.values is not None:
                left[layer.values], left[layer.log_counts] = self._merged(layer, keys, values, logs, chosen)
        return left

    def put_back(self, state: StateStore, slots: NDArray[np.int64], left: Compressed) -> None:
        """Writes what is left to slots."""
        for name, rows in left.items():
            state.put_tokens(name, slots, rows)

    def _merged(
        self, layer: CompressedLayer, keys: NDArray[Any], values: NDArray[Any], logs: NDArray[Any],
        chosen: NDArray[np.int64],
    ) -> tuple[NDArray[Any], NDArray[Any]]:  # fmt: skip
        """Values and logarithms of counts at the chosen places, with what is given up merged into them."""
        heads, sinks, all_places = keys.shape[1], self.compression.sinks, np.arange(len(keys))
        others = np.stack([np.setdiff1d(all_places, row, assume_unique=True) for row in chosen])
        into = chosen[:, sinks:]
        assert layer.nearest is not None
        assert self.compression.merge is not None
        best, likeness = layer.nearest(_taken(keys, into), _taken(keys, others))
        counts = np.rint(np.exp(logs.astype(np.float64)))
        sums = values.astype(np.float64) * counts[:, :, None]
        weights = counts.copy()
        for head in range(heads):
            found = likeness[head] >= self.compression.merge
            source, target = others[head][found], into[head][best[head][found]]
            # one after the other in the order of places: sums have one order
            np.add.at(sums[:, head], target, sums[source, head])
            np.add.at(weights[:, head], target, counts[source, head])
        # a key that nothing was merged into keeps its bits
        mixed = np.where((weights == counts)[:, :, None], values, (sums / weights[:, :, None]).astype(values.dtype))
        return _taken(mixed, chosen), _taken(np.log(weights).astype(np.float32)[:, :, None], chosen)[:, :, 0]


def _taken(rows: NDArray[Any], chosen: NDArray[np.int64]) -> NDArray[Any]:
    """Of rows [n, heads, features] each head's own: chosen [heads, k] gives [k, heads, features]."""
    return np.ascontiguousarray(np.take_along_axis(rows, chosen.T[:, :, None], axis=0))
