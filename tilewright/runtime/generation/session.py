"""A conversation with a model that keeps its pages from turn to turn."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from typing import Any

from tilewright.option_names import known_options
from tilewright.runtime.generation.chat_template import Message
from tilewright.runtime.generation.completion import Completion
from tilewright.runtime.generation.engine import Engine
from tilewright.runtime.generation.language_model import LanguageModel
from tilewright.runtime.generation.request import Conversation
from tilewright.runtime.generation.sampler import Sampler

_taking_options = known_options(LanguageModel.complete, Engine.submit, within={"sampler": Sampler})


@_taking_options
class Session:
    """`say(text)` gives the answer's pieces; `messages` is the conversation so far, the answers included.

    What was said stays in the cache, so that a turn computes only what is new; where its room is needed for others, it
    is computed again. `messages` may be edited between turns. Closing gives the pages back.
    """

    def __init__(self, lm: LanguageModel, messages: Sequence[Message] = (), **options: Any) -> None:
        self.messages: list[Message] = list(messages)
        self.last: Completion | None = None
        self._lm, self._options = lm, options
        self._conversation = Conversation()

    @_taking_options
    def say(self, text: str, **options: Any) -> Generator[str]:
        """The answer in pieces. options: what `LanguageModel.complete` takes, over those of the session.

        A turn that is not read to its end is remembered as far as it was read; one that fails is taken back.
        """
        self.messages.append({"role": "user", "content": text})
        with ExitStack() as undo:
            undo.callback(self.messages.pop)
            self.last = self._lm.complete(self.messages, conversation=self._conversation, **(self._options | options))
            undo.pop_all()
        return self._answer(self.last)

    def _answer(self, completion: Completion) -> Generator[str]:
        try:
            yield from completion
        finally:
            self.messages.append({"role": "assistant", "content": completion.text})

    def close(self) -> None:
        """Gives the pages back."""
        self._lm.current.forget(self._conversation)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
