"""Text as it comes: pieces that never cut a character, and stop strings that are never given out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.errors import OptionError

# What decoders put where bytes are no character, or not yet one.
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns tokens into text piece by piece; the pieces together are the decoded whole.

    A tokenizer decodes a token differently at the beginning than after others, so each piece is the difference of two
    decodings of the last few tokens. What ends inside a character waits for the tokens that complete it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(before)
        self._begin = max(0, len(self._tokens) - 8)
        self._read = len(self._tokens)

    def feed(self, token: int) -> str:
        """The text that is certain with one more token."""
        self._tokens.append(token)
        return self._piece(final=False)

    def flush(self) -> str:
        """What still waits; an unfinished character comes out as U+FFFD."""
        return self._piece(final=True)

    def _piece(self, final: bool) -> str:
        known = self._decode(self._tokens[self._begin : self._read])
        whole = self._decode(self._tokens[self._begin :])
        if len(whole) <= len(known) or (whole.endswith(_REPLACEMENT) and not final):
            return ""
        self._begin, self._read = self._read, len(self._tokens)
        return whole[len(known) :]


class StopStrings:
    """Lets text through up to the first stop string. What may be the beginning of one is held until it is decided."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise OptionError(f"stop={stops!r} is not a list of texts", step='write stop=["\\n\\n"]')
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that can be given out now; `found` is the stop string once one has come."""
        if self.found is not None:
            return ""
        self._held += text
        places = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            at, _, self.found = min(places)
            given, self._held = self._held[:at], ""
            return given
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        given = self._held[: len(self._held) - keep]
        self._held = self._held[len(given) :]
        return given

    def _overlap(self, stop: str) -> int:
        """The longest end of the held text that a stop string begins with."""
        most = min(len(stop) - 1, len(self._held))
        return next((size for size in range(most, 0, -1) if self._held.endswith(stop[:size])), 0)

    def flush(self) -> str:
        """What was held, now that no more text comes."""
        given, self._held = self._held, ""
        return given
