"""A request while it lives, and the handle through which its caller watches it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from tilewright.errors import TilewrightError
from tilewright.runtime.generation.choice import Choice
from tilewright.runtime.generation.holding import Holding
from tilewright.runtime.generation.speculation import Drafter

if TYPE_CHECKING:
    from tilewright.runtime.generation.engine import Engine

Finish: TypeAlias = Literal["length", "stop", "cancelled", "error"]


@dataclass(frozen=True)
class Token:
    """One generated token. index: 0 for the first. logprob: of the model itself, before the sampler's changes, where
    logprobs were asked for; top: the likeliest tokens and theirs.
    """

    id: int
    index: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Conversation:
    """What stays in the cache between the turns of a session; `holding` is None once its room was needed."""

    holding: Holding | None = None
    tokens: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Request:
    """The engine's side of a request. tokens: prompt and answer. most: of them in all. end: ids that end it."""

    tokens: list[int]
    prompt: int
    most: int
    choice: Choice
    root: bytes
    rank: tuple[int, int]
    end: frozenset[int]
    source: tuple[int, ...] = ()
    logprobs: int | None = None
    drafter: Drafter | None = None
    conversation: Conversation | None = None
    holding: Holding | None = None
    draft: list[int] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens that are known but not in the cache."""
        return len(self.tokens) - (self.holding.length if self.holding else 0)


class Handle:
    """A running request. Iterating, plainly or with `async for`, gives its Tokens as they come and drives the engine.

    Ends when the request does: `finish` says why. An error of the request (its sampler's or grammar's) is raised where
    the iteration meets it. Leaving a `with` block cancels what still runs.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._events: deque[Token] = deque()
        self._count = 0
        self.finish: Finish | None = None
        self.error: TilewrightError | None = None
        self.reused = 0

    @property
    def tokens(self) -> list[int]:
        """What has been generated so far."""
        return self._request.tokens[self._request.prompt :]

    def cancel(self) -> None:
        """Ends the request; its pages are free at once."""
        self._engine.cancel(self)

    def result(self) -> list[int]:
        """All generated tokens, once the request is over."""
        for _ in self:
            pass
        return self.tokens

    def __iter__(self) -> Iterator[Token]:
        while (token := self._next()) is not None:
            yield token

    async def __aiter__(self) -> AsyncIterator[Token]:
        while (token := self._events.popleft() if self._events else await asyncio.to_thread(self._next)) is not None:
            yield token

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *raised: object) -> None:
        self.cancel()

    def _next(self) -> Token | None:
        """The next token, for which the engine is driven as far as needed; None at the end."""
        while not self._events and self.finish is None:
            self._engine.step_for(self)
        if self._events:
            return self._events.popleft()
        if self.error is not None:
            raise self.error
        return None

    def _put(self, token: int, logprob: float | None, top: tuple[tuple[int, float], ...]) -> None:
        self._events.append(Token(token, self._count, logprob, top))
        self._count += 1
