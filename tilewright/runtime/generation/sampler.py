"""tw.Sampler: how the next token is chosen, as one frozen value."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from numpy.typing import NDArray

from tilewright.errors import SamplerError
from tilewright.option_names import known_options
from tilewright.runtime.generation.distribution import Float64, Ids, Regularizer, sparsemax
from tilewright.runtime.generation.mirror import mirror_ascent

if TYPE_CHECKING:
    import numpy as np

    from tilewright.runtime.generation.grammar import Grammar

LogitsProcessor: TypeAlias = "Callable[[Sequence[int], NDArray[np.float64]], NDArray[np.float64]]"


@known_options()
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How tokens are chosen from logits. Raises SamplerError for options out of range.

    In this order: logits_processor (tokens so far, logits [V] float64) -> logits; logit_bias {id: added};
    repetition_penalty (divides positive and multiplies negative logits of tokens seen, prompt included);
    presence_penalty and frequency_penalty (taken off once, and for each time, a token was generated); grammar;
    temperature; top_k, top_p, min_p; then a number drawn by (seed, request, position).

    temperature: 0 is greedy: the largest logit, the lower id among equals. sparse: sparsemax instead of softmax.
    regularizer: f(q, ids) -> (value, gradient [m]) of a convex f; draws from argmax of <q, logits / temperature> - f(q)
    (`KLAnchor`, `BestOf`). seed: None draws a fresh one for every request. One seed gives one text, whatever runs
    beside it.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    sparse: bool = False
    regularizer: Regularizer | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    logits_processor: LogitsProcessor | None = None
    grammar: Grammar | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        faults = [
            said
            for wrong, said in (
                (not 0 <= self.temperature < math.inf, f"temperature={self.temperature} is not a number from 0 on"),
                (self.top_k is not None and self.top_k < 1, f"top_k={self.top_k} leaves no token"),
                (self.top_p is not None and not 0 < self.top_p <= 1, f"top_p={self.top_p} is not in (0, 1]"),
                (self.min_p is not None and not 0 <= self.min_p <= 1, f"min_p={self.min_p} is not in [0, 1]"),
                (
                    not 0 < self.repetition_penalty < math.inf,
                    f"repetition_penalty={self.repetition_penalty} is not > 0",
                ),
                (not math.isfinite(self.presence_penalty), f"presence_penalty={self.presence_penalty} is not finite"),
                (
                    not math.isfinite(self.frequency_penalty),
                    f"frequency_penalty={self.frequency_penalty} is not finite",
                ),
                (self.sparse and self.regularizer is not None, "sparse=True is a regularizer itself: give one of both"),
                (self.seed is not None and not 0 <= self.seed < 2**64, f"seed={self.seed} is not in [0, 2^64)"),
            )
            if wrong
        ]
        if any(math.isnan(added) or added == math.inf for added in (self.logit_bias or {}).values()):
            faults.append("logit_bias holds NaN or +inf")
        if faults:
            raise SamplerError(faults, step="tw.Sampler(temperature=0.8, top_p=0.95, seed=0) is one that works")

    @property
    def takes_logits_as_they_are(self) -> bool:
        """Whether the choice is the largest logit and nothing else looks at them."""
        neutral = self.repetition_penalty == 1 and self.presence_penalty == self.frequency_penalty == 0
        return self.temperature == 0 and neutral and not (self.logit_bias or self.logits_processor or self.grammar)

    def map_to_simplex(self, scores: Float64, ids: Ids) -> Float64:
        """Probabilities [m] of tokens that remain, from their scores over the temperature."""
        if self.regularizer is None:
            return sparsemax(scores, ids)
        return mirror_ascent(scores, ids, self.regularizer)

    def seeded(self) -> int:
        """The seed of one request."""
        return int.from_bytes(os.urandom(8), "little") if self.seed is None else self.seed


GREEDY = Sampler(temperature=0.0)
