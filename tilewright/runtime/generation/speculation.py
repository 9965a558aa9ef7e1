"""Drafts: guesses at the tokens to come, which one step verifies together.

A request draws each of its tokens from the target's own distribution with the numbers of that position, as it would
without guesses; a draft is right as far as it guessed those tokens. So whatever is guessed, the text is exactly the
one that the request has without drafts: at temperature 0 and above it, alone or beside others. Of a drafter that is
certain, as many guesses hold as with the usual acceptance test min(1, p/q). A draft model races with the request's own
numbers (`Distribution.race`); at least (1 - d) / (1 + d) of its guesses hold, d the distance of the distributions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tilewright.errors import OptionError
from tilewright.option_names import known_options
from tilewright.runtime.generation.choice import Choice
from tilewright.runtime.generation.distribution import distribution
from tilewright.runtime.generation.holding import Holding, chain_root
from tilewright.runtime.generation.pages import PageBook
from tilewright.runtime.generation.step import Float32, StepProgram
from tilewright.runtime.generation.step_inputs import Segment, step_inputs


class Drafter(Protocol):
    """Guesses for one request."""

    def propose(self, tokens: Sequence[int], most: int, choice: Choice) -> list[int]:
        """At most `most` tokens that may follow these."""

    def release(self) -> None:
        """The request is over."""


class Drafting(Protocol):
    """How requests get their drafters. races: whether requests draw so that a draft model can follow them."""

    @property
    def races(self) -> bool: ...

    def drafter(self) -> Drafter: ...


def verify(choice: Choice, rows: Float32, draft: Sequence[int]) -> Iterator[int]:
    """The request's next tokens: one for each guess that holds, and one more. rows: logits [len(draft) + 1, V].

    Each is given out before the next one is chosen, so that a request may end between them.
    """
    for i, logits in enumerate(rows):
        token = choice.choose(logits)
        choice.accept(token)
        yield token
        if i < len(draft) and token != draft[i]:
            return


@known_options()
@dataclass(frozen=True)
class PromptLookup:
    """Guesses what followed the last occurrence of the last tokens: for text that repeats its input.

    most: guesses at a time. longest, shortest: how many last tokens are looked for, the longest first.
    """

    most: int = 8
    longest: int = 4
    shortest: int = 2
    races: bool = False

    def __post_init__(self) -> None:
        if not (self.most >= 1 and 1 <= self.shortest <= self.longest):
            raise OptionError(
                f"prompt lookup of {self.shortest} to {self.longest} tokens, {self.most} guesses",
                step="write PromptLookup(most=8, longest=4, shortest=2)",
            )

    def drafter(self) -> Drafter:
        return self

    def propose(self, tokens: Sequence[int], most: int, choice: Choice) -> list[int]:
        whole = np.asarray(tokens, np.int64)
        for size in range(min(self.longest, len(whole) - 1), self.shortest - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(whole[:-1], size)
            places = np.flatnonzero((windows == whole[-size:]).all(axis=1))
            if len(places):
                begin = int(places[-1]) + size
                return [int(token) for token in whole[begin : begin + min(most, self.most)]]
        return []

    def release(self) -> None:
        """Nothing is held."""


@known_options()
class DraftModel:
    """Guesses by a smaller model with the same vocabulary: a step program of its own, with a cache of its own.

    most: guesses at a time. Where its cache is full, a request goes on without guesses.
    """

    races = True

    def __init__(self, program: StepProgram, most: int = 4) -> None:
        if most < 1:
            raise OptionError(f"a draft of {most} tokens", step="write DraftModel(program, most=4)")
        if not program.layout.rewinds or program.layout.source_tokens:
            raise OptionError(
                "the draft model has states that guesses cannot be taken out of, or an encoder",
                step="give a decoder with attention alone, or PromptLookup()",
            )
        self.program = program
        self.most = most
        self.book = PageBook(program)

    def drafter(self) -> Drafter:
        return _ModelDrafter(self)


class _ModelDrafter:
    """One request's place in the draft model's cache; `_tokens` are what it has read."""

    def __init__(self, of: DraftModel) -> None:
        self._of = of
        self._holding = Holding(of.book, chain_root(""))
        self._tokens: list[int] = []

    def release(self) -> None:
        self._holding.release()
        self._tokens.clear()

    def propose(self, tokens: Sequence[int], most: int, choice: Choice) -> list[int]:
        guessed: list[int] = []
        most = min(most, self._of.most, self._of.program.layout.max_tokens - len(tokens))
        common = next((i for i, (a, b) in enumerate(zip(tokens, self._tokens, strict=False)) if a != b), None)
        self._holding.rewind(min(len(tokens) - 1, len(self._tokens)) if common is None else common)
        self._tokens = list(tokens)
        sampler = choice.sampler
        while len(guessed) < most:
            logits = self._read()
            if logits is None:
                self.release()
                break
            likely = distribution(
                logits.astype(np.float64),
                sampler.temperature,
                top_k=sampler.top_k,
                top_p=sampler.top_p,
                min_p=sampler.min_p,
            )
            guessed.append(choice.draw(likely, len(self._tokens)))
            self._tokens.append(guessed[-1])
        # the last guess has not been read
        self._tokens = self._tokens[: self._holding.length]
        return guessed

    def _read(self) -> Float32 | None:
        """Reads the tokens that the cache lacks; the logits [V] after the last one, None without room for them."""
        holding, program = self._holding, self._of.program
        while True:
            length = min(len(self._tokens), holding.length + program.layout.step_tokens)
            if not holding.reserve(length):
                return None
            whole = length == len(self._tokens)
            segment = Segment(holding, self._tokens[holding.length : length], 1 if whole else 0)
            logits = program.step(step_inputs(program.layout, [segment]))
            holding.commit(self._tokens, length)
            if whole:
                found: Float32 = logits[0]
                return found
