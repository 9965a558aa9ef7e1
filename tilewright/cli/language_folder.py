"""What a model's folder says before anything is read or compiled: a wrong line is refused at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import OptionError, PromptError, TextError

if TYPE_CHECKING:
    from tilewright.runtime.generation.language_model import LanguageModel
    from tilewright.runtime.generation.tokenizer import FolderTokenizer

_KV_TYPES: Final = ("model", "int8", "int4")
_NAMED: Final = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class LanguageFolder:
    """A language model's folder. most: the longest sequence that its config names, prompt included; None where it names
    none, so that the compiled model itself says it. encodes: whether an encoder reads the prompt, and the answer is a
    sequence of its own.
    """

    path: Path
    most: int | None
    encodes: bool = False

    @staticmethod
    def of(text: str) -> LanguageFolder:
        """Reads config.json. Raises ModelInputError where there is none, StepError where it is of no language model."""
        from tilewright.compiler.causal import is_encoder_decoder, require_language_model
        from tilewright.frontend.directories import read_config

        path = Path(text)
        config = read_config(path)
        require_language_model(config, path)
        encodes = is_encoder_decoder(config)
        # how long sources were in training is no bound where places are told by their distances
        return LanguageFolder(path, _positions(config, _NAMED[:1] if encodes else _NAMED), encodes)

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        """The folder's tokenizer. Raises TextError where there is none."""
        from tilewright.runtime.generation.tokenizer import FolderTokenizer

        return FolderTokenizer(self.path)

    def require_room(self, prompt: int, tokens: int, flag: str = "--tokens") -> None:
        """Raises PromptError where a prompt and its answer are longer than the model takes. flag: that asks for it."""
        if not prompt:
            raise PromptError("the prompt has no tokens", step='give a text: "Once upon a time"')
        if self.encodes:
            self._require_answer(prompt, tokens, flag)
        if self.encodes or self.most is None or prompt + tokens <= self.most:
            return
        room, left = self.most - prompt, self.most - tokens
        shorter = f"shorten the prompt to {left} tokens or less"
        if left < 1:
            shorter = f"write {flag} 1 and shorten the prompt to {self.most - 1} tokens or less"
        raise PromptError(
            f"the prompt's {prompt} and {tokens} new tokens are more than the {self.most} that {self.path} takes",
            step=f"write {flag} {room}" if room > 0 else shorter,
        )

    def _require_answer(self, source: int, tokens: int, flag: str) -> None:
        """The same where an encoder reads the prompt: beside the answer stands the token that it starts with."""
        if self.most is not None and source > self.most:
            raise PromptError(
                f"the prompt has {source} tokens, the encoder of {self.path} takes {self.most}",
                step=f"shorten the prompt to {self.most} tokens or less",
            )
        if self.most is not None and tokens >= self.most:
            raise PromptError(
                f"{tokens} new tokens are more than the {self.most - 1} that {self.path} gives",
                step=f"write {flag} {self.most - 1}",
            )

    def require_continued(self) -> None:
        """Raises PromptError where a text is not continued but answered: it has no perplexity by itself."""
        if self.encodes:
            raise PromptError(
                f"{self.path} is an encoder-decoder model: it answers a source, and a text alone has no perplexity",
                step="give a causal model, or use lm.negative_log_likelihood(answer, source=...) in Python",
            )

    def require_chat_template(self) -> None:
        """Raises TextError where the model has no form for a conversation."""
        if self.tokenizer.chat_template is None:
            raise TextError(
                f"{self.path} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)",
                step=f'continue a text instead: tilewright generate {self.path} "Once upon a time"',
            )

    def compiled(self, kv_dtype: str, threads: int | None) -> LanguageModel:
        """The model, compiled; how long each part took is told on stderr. Raises what `compile_lm` raises."""
        begin = time.perf_counter()
        from tilewright.cli.progress import say, watching
        from tilewright.compiler.kv_cache import KVCache
        from tilewright.compiler.language_model import compile_language_model

        kept: Any = kv_dtype
        say(f"reading and compiling {self.path}; what was compiled before is taken from the cache")
        with watching() as progress:
            lm = compile_language_model(str(self.path), kv=KVCache(dtype=kept), threads=threads, progress=progress)
        parts = dict(lm.compiled.facts.seconds)
        took = time.perf_counter() - begin
        reading = {"libraries and weights": max(0.0, took - sum(parts.values()))}
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in (reading | parts).items() if seconds >= 0.05)
        say(f"ready after {took:.1f} s: {told}")
        return lm


def require_kv_type(given: str) -> None:
    """Raises OptionError for a type that caches do not have."""
    if given not in _KV_TYPES:
        raise OptionError(f"--kv-dtype {given} is not one of {', '.join(_KV_TYPES)}", step="write --kv-dtype int8")


def _positions(config: dict[str, Any], names: Sequence[str]) -> int | None:
    """The positions that config.json names, at most those that are compiled for where nobody asks for more."""
    from tilewright.compiler.causal import MOST_TOKENS

    for part in (config.get("text_config"), config):
        for name in names:
            found = part.get(name) if isinstance(part, dict) else None
            if isinstance(found, int) and found > 0:
                return min(found, MOST_TOKENS)
    return None
