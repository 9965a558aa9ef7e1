"""One request's choices: a sampler together with what the request has said so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import SamplerError
from tilewright.runtime.generation.distribution import Distribution, certain, distribution
from tilewright.runtime.generation.random_numbers import Use, races, uniform
from tilewright.runtime.generation.sampler import Sampler

if TYPE_CHECKING:
    from tilewright.runtime.generation.grammar import Matcher


class Choice:
    """Chooses the tokens of one request, in order. `accept` tells it each token that the request got.

    matcher: follows the sampler's grammar. key: tells requests with one seed apart. race: draws so that a draft model
    which draws with the same numbers mostly agrees.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompt: Sequence[int],
        vocabulary: int,
        *,
        key: int = 0,
        matcher: Matcher | None = None,
        race: bool = False,
    ) -> None:
        outside = [token for token in sampler.logit_bias or {} if not 0 <= token < vocabulary]
        if outside:
            raise SamplerError(
                f"logit_bias names token {outside[0]}, the vocabulary has {vocabulary}",
                step=f"use ids from 0 to {vocabulary - 1}",
            )
        self.sampler = sampler
        self.seed = sampler.seeded()
        self.key = key
        self._race = race
        self._tokens = list(prompt)
        self._generated: Counter[int] = Counter()
        self._seen = set(prompt)
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the grammar admits nothing more."""
        return self._matcher is not None and self._matcher.complete

    def accept(self, token: int) -> None:
        """The request's next token is this one."""
        self._tokens.append(token)
        self._generated[token] += 1
        self._seen.add(token)
        if self._matcher is not None:
            self._matcher.accept(token)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token, from logits [V]."""
        return self.draw(self.distribution(logits), len(self._tokens))

    def draw(self, of: Distribution, position: int) -> int:
        """The token at a position, drawn from a distribution with the request's own numbers."""
        if self._race:
            return of.race(races(self.seed, self.key, position, of.ids))
        return of.at(uniform(self.seed, self.key, position, Use.TOKEN))

    def distribution(self, logits: NDArray[np.float32]) -> Distribution:
        """What the next token is drawn from. Raises SamplerError and GrammarError where nothing is left."""
        sampler = self.sampler
        if sampler.takes_logits_as_they_are:
            token = int(logits.argmax())
            if not np.isfinite(logits[token]):
                raise SamplerError(f"the largest logit is {logits[token]}", step="check the model on this prompt")
            return certain(token)
        scores = logits.astype(np.float64)
        if sampler.logits_processor is not None:
            scores = self._processed(scores)
        for token, added in (sampler.logit_bias or {}).items():
            scores[token] += added
        self._penalise(scores)
        if self._matcher is not None:
            scores[~self._matcher.allowed()] = -np.inf
        custom = sampler.sparse or sampler.regularizer is not None
        return distribution(
            scores,
            sampler.temperature,
            top_k=sampler.top_k,
            top_p=sampler.top_p,
            min_p=sampler.min_p,
            map_to_simplex=sampler.map_to_simplex if custom else None,
        )

    def _processed(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        processor = self.sampler.logits_processor
        assert processor is not None
        found = np.array(processor(tuple(self._tokens), scores), np.float64)
        if found.shape != scores.shape:
            raise SamplerError(
                f"logits_processor gives {list(found.shape)} for logits {list(scores.shape)}",
                step="return an array of the logits' shape, -inf where a token is excluded",
            )
        return found

    def _penalise(self, scores: NDArray[np.float64]) -> None:
        sampler = self.sampler
        if sampler.repetition_penalty != 1 and self._seen:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            old = scores[seen]
            scores[seen] = np.where(old > 0, old / sampler.repetition_penalty, old * sampler.repetition_penalty)
        if self._generated and (sampler.presence_penalty or sampler.frequency_penalty):
            tokens = np.fromiter(self._generated.keys(), np.int64, len(self._generated))
            counts = np.fromiter(self._generated.values(), np.float64, len(self._generated))
            scores[tokens] -= sampler.presence_penalty + sampler.frequency_penalty * counts
