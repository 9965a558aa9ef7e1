"""Text to ids and back: what generation asks of a tokenizer, and the one that comes with a model's folder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tilewright.errors import MissingDependencyError, TextError


@runtime_checkable
class Tokenizer(Protocol):
    """Between text and ids. end: ids that end an answer. chat_template: jinja2 text, None for models without one."""

    @property
    def end(self) -> tuple[int, ...]: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def special(self) -> dict[str, str]:
        """Texts of special tokens by the names that templates use: bos_token, eos_token."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; special adds what the model expects around it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out; U+FFFD for bytes that are no character."""

    def definition(self) -> str:
        """The text of its tokenizer.json, for grammars."""


class FolderTokenizer:
    """The tokenizer of a model directory, by the tokenizers library: tokenizer.json and what stands beside it.

    Raises TextError where the files are missing or damaged, MissingDependencyError without the library.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TextError(
                f"{folder} has no tokenizer.json",
                step="write tokenizer.save_pretrained(folder) there, or pass ids to generate()",
            )
        if importlib.util.find_spec("tokenizers") is None:
            raise MissingDependencyError("tokenizers are read by tokenizers", step="pip install 'tilewright[hf]'")
        import tokenizers

        # the library raises plain Exception for a damaged file
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:
            raise TextError(f"{path} is damaged: {error}", step="save or copy the tokenizer again") from error
        self._config = _settings(folder / "tokenizer_config.json")
        self.special = {
            name: text
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (text := _text_of(self._config.get(name))) is not None
        }
        generation, model = _settings(folder / "generation_config.json"), _settings(folder / "config.json")
        ends = generation.get("eos_token_id", model.get("eos_token_id"))
        if ends is None and "eos_token" in self.special:
            ends = self._tokenizer.token_to_id(self.special["eos_token"])
        self.end = tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)
        beside = folder / "chat_template.jinja"
        template = beside.read_text(encoding="utf-8") if beside.is_file() else self._config.get("chat_template")
        if isinstance(template, list):
            template = next((each["template"] for each in template if each.get("name") == "default"), None)
        self.chat_template: str | None = template

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def definition(self) -> str:
        return str(self._tokenizer.to_str())


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TextError(f"{path} is damaged: {error}", step="save or copy the model again") from error
    return found if isinstance(found, dict) else {}


def _text_of(token: Any) -> str | None:
    """A special token as the configuration writes it: a text, or a mapping with its content."""
    return token.get("content") if isinstance(token, dict) else token
