"""From scores to a distribution: which tokens may be chosen, and with what probability.

One template covers all of it: q = argmax over the probability simplex, within a support C, of <q, s> - t f(q). The
support is what top-k, top-p and min-p leave; f is minus the entropy (softmax), half the squared norm (sparsemax), or
the caller's (`mirror.py`); t is the temperature, and t = 0 is greedy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import SamplerError

Float64: TypeAlias = NDArray[np.float64]
Ids: TypeAlias = NDArray[np.int64]
Regularizer: TypeAlias = Callable[[Float64, Ids], tuple[float, Float64]]

# Sorting a vocabulary whole is rarely needed: what top-p keeps is mostly among so many first tokens.
_FIRST = 1024


@dataclass(frozen=True)
class Distribution:
    """Tokens that may be chosen, ids [m] int64 ascending, and their probabilities [m] float64, which add up to 1."""

    ids: Ids
    probabilities: Float64

    def at(self, number: float) -> int:
        """The token that a number in [0, 1) falls on."""
        ends = np.cumsum(self.probabilities)
        place = int(np.searchsorted(ends, number * ends[-1], side="right"))
        # the product may round up to the end; the last token that has a probability is the one meant
        return int(self.ids[min(place, int(np.flatnonzero(self.probabilities)[-1]))])

    def race(self, times: Float64) -> int:
        """The token whose exponential time [m], run at the speed of its probability, is over first.

        That is a draw from this distribution, too; two distributions that race with the same times mostly agree
        (Daliri, Musco, Suresh 2024), which `at` with the same number does not.
        """
        with np.errstate(divide="ignore"):
            return int(self.ids[int((times / self.probabilities).argmin())])

    def of(self, token: int) -> float:
        """The probability of a token, 0 outside the support."""
        place = int(np.searchsorted(self.ids, token))
        return float(self.probabilities[place]) if place < len(self.ids) and self.ids[place] == token else 0.0

    def dense(self, vocabulary: int) -> Float64:
        """Probabilities of all tokens: [vocabulary]."""
        whole = np.zeros(vocabulary)
        whole[self.ids] = self.probabilities
        return whole


def certain(token: int) -> Distribution:
    """All mass on one token."""
    return Distribution(np.array([token]), np.ones(1))


def distribution(
    scores: Float64,
    temperature: float,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    map_to_simplex: Callable[[Float64, Ids], Float64] | None = None,
) -> Distribution:
    """The distribution that the next token is drawn from.

    scores: [V] float64, -inf for tokens that are excluded. top_k, top_p and min_p narrow the support in this order, as
    measured under the softmax of scores / temperature over what the one before has left; ties go to the lower id.
    map_to_simplex: (scores / temperature, ids) -> probabilities on the support; the softmax by default. Raises
    SamplerError where no token is left or scores are NaN or +inf.
    """
    top = float(scores.max())
    if not np.isfinite(top):
        what = "every token is excluded" if top == -np.inf else f"the largest score is {top}"
        raise SamplerError(what, step="look at the logits, the logits_processor and logit_bias")
    if temperature == 0:
        return certain(int(scores.argmax()))
    # the largest is taken off first: quotients stay finite however small the temperature
    scaled = (scores - top) / temperature
    ids = np.flatnonzero(scaled > -np.inf)
    if top_k is not None and top_k < len(ids):
        least = np.partition(scaled, len(scaled) - top_k)[len(scaled) - top_k]
        above = np.flatnonzero(scaled > least)
        level = np.flatnonzero(scaled == least)[: top_k - len(above)]
        ids = np.sort(np.concatenate([above, level]))
    if top_p is not None and top_p < 1:
        ids = _smallest_with_mass(scaled, ids, top_p)
    if min_p is not None and min_p > 0:
        ids = ids[scaled[ids] >= np.log(min_p)]
    kept = scaled[ids]
    return Distribution(ids, softmax(kept) if map_to_simplex is None else map_to_simplex(kept, ids))


def _smallest_with_mass(scaled: Float64, ids: Ids, mass: float) -> Ids:
    """The fewest of these tokens that have this mass together, the likeliest first."""
    weights = np.exp(scaled[ids])
    wanted = mass * weights.sum()
    for count in (_FIRST, len(ids)):
        candidates = np.arange(len(ids))
        if count < len(ids):
            # ties with the last one belong to them, so that the order among equals is always by id
            candidates = np.flatnonzero(weights >= np.partition(weights, len(ids) - count)[len(ids) - count])
        order = candidates[np.argsort(-weights[candidates], kind="stable")]
        ends = np.cumsum(weights[order])
        if ends[-1] >= wanted or count >= len(ids):
            break
    return np.sort(ids[order[: int(np.searchsorted(ends, wanted)) + 1]])


def softmax(scores: Float64) -> Float64:
    """argmax of <q, s> + H(q)."""
    weights: Float64 = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


def log_softmax(scores: NDArray[np.floating]) -> Float64:
    """Log-probabilities of logits [V], in float64."""
    shifted = scores.astype(np.float64) - float(scores.max())
    found: Float64 = shifted - np.log(np.exp(shifted).sum())
    return found


def sparsemax(scores: Float64, ids: Ids) -> Float64:
    """argmax of <q, s> - |q|^2 / 2: the point of the simplex nearest to s (Martins and Astudillo, 2016)."""
    ordered = np.sort(scores)[::-1]
    sums = np.cumsum(ordered)
    counts = np.arange(1, len(scores) + 1)
    count = int(counts[1 + counts * ordered > sums][-1])
    threshold = (sums[count - 1] - 1) / count
    found: Float64 = np.maximum(scores - threshold, 0)
    found /= found.sum()
    return found
