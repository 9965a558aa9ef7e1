"""Output that follows a JSON schema, a regular expression or a grammar: masks by llguidance, if it is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import GrammarError, MissingDependencyError
from tilewright.option_names import known_options


@known_options()
@dataclass(frozen=True)
class Grammar:
    """What output has to follow. `Grammar.json(schema)`, `Grammar.regex(text)` or `Grammar.lark(text)`."""

    kind: Literal["json", "regex", "lark"]
    text: str

    @classmethod
    def json(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """A JSON schema, as a mapping or as text. Raises GrammarError where it is no JSON object."""
        try:
            found = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
        except (TypeError, ValueError) as error:
            raise GrammarError(f"the schema is not JSON: {error}", step='write {"type": "object", ...}') from error
        if not isinstance(found, dict):
            raise GrammarError("the schema is not a JSON object", step='write {"type": "object", ...}')
        return cls("json", json.dumps(found))

    @classmethod
    def regex(cls, text: str) -> Grammar:
        """A regular expression that the whole output matches."""
        return cls("regex", text)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A context-free grammar in Lark's notation; the output is its `start`."""
        return cls("lark", text)


def _llguidance() -> Any:
    if importlib.util.find_spec("llguidance") is None:
        raise MissingDependencyError(
            "grammars and JSON schemas are followed by llguidance", step="pip install 'tilewright[grammar]'"
        )
    import llguidance

    return llguidance


class GrammarCompiler:
    """Makes matchers for one tokenizer. definition: the text of its tokenizer.json. end: ids that end an output."""

    def __init__(self, definition: str, vocabulary: int, end: tuple[int, ...]) -> None:
        library = _llguidance()
        self._library = library
        self._vocabulary = vocabulary
        ends: dict[str, Any] = {"eos_token": list(end)} if end else {}
        self._tokenizer = library.LLTokenizer(definition, n_vocab=vocabulary, **ends)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Raises GrammarError with llguidance's own words where the grammar is invalid."""
        matcher = self._library.LLMatcher
        make = {
            "json": matcher.grammar_from_json_schema,
            "regex": matcher.grammar_from_regex,
            "lark": matcher.grammar_from_lark,
        }[grammar.kind]
        made = matcher(self._tokenizer, make(grammar.text), log_level=0)
        if made.is_error():
            said = made.get_error().strip().splitlines() or ["refused"]
            raise GrammarError(f"{grammar.kind}: {said[0]}", step=f"correct the {grammar.kind} that was given")
        return Matcher(made, self._vocabulary)


class Matcher:
    """Where one output stands in its grammar."""

    def __init__(self, state: Any, vocabulary: int) -> None:
        self._state = state
        self._vocabulary = vocabulary

    @property
    def complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._state.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: [V]. Raises GrammarError where none may."""
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool)
        if self._state.is_error() or not found.any():
            raise GrammarError(
                self._state.get_error() or "no token of the vocabulary can come next",
                step="widen the grammar, or ask for more tokens",
            )
        return np.pad(found, (0, self._vocabulary - len(found)))

    def accept(self, token: int) -> None:
        """The output goes on with this token. Raises GrammarError where it may not."""
        if not self.complete and not self._state.consume_token(token):
            raise GrammarError(
                f"token {token} does not follow: {self._state.get_error()}", step="choose among the allowed tokens"
            )
