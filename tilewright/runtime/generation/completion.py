"""An answer as text, while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tilewright.runtime.generation.deltas import Detokenizer, StopStrings
from tilewright.runtime.generation.request import Finish, Handle, Token


class Completion:
    """Iterating gives the answer's text in pieces, once. `finish` says why it ended, `tokens` what was generated.

    Pieces never cut a character and never hold a stop string or its beginning; a stop string ends the request.
    """

    def __init__(
        self, handle: Handle, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._handle = handle
        self._stops = StopStrings(stop)
        self._detokenizer = Detokenizer(decode, prompt)
        self.tokens: list[Token] = []
        self.text = ""
        self.finish: Finish | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._pieces()
        finally:
            # a reader that leaves early wants no more of it
            self._handle.cancel()
            self.finish = "stop" if self._stops.found is not None else self._handle.finish

    def _pieces(self) -> Iterator[str]:
        for token in self._handle:
            self.tokens.append(token)
            if piece := self._stops.feed(self._detokenizer.feed(token.id)):
                self.text += piece
                yield piece
            if self._stops.found is not None:
                return
        piece = self._stops.feed(self._detokenizer.flush()) + self._stops.flush()
        if piece:
            self.text += piece
            yield piece

    def __del__(self) -> None:
        # an answer that nobody has read, and nobody can read any more
        self._handle.cancel()

    def read(self) -> str:
        """The whole answer."""
        for _ in self:
            pass
        return self.text
