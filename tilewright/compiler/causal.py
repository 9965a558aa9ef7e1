"""What compile_lm() takes, as far as a model's configuration says: asked before anything heavy is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tilewright.errors import StepError

# The longest sequence, prompt included, where nothing is asked for.
MOST_TOKENS: Final = 4096
# Names of transformers' classes that give logits of the token that follows: with a language head, or a decoder's.
_WRITES: Final = re.compile(r"ForCausalLM|LMHead|ForConditionalGeneration|ForTextToText|MTModel|Decoder")


def is_encoder_decoder(config: object) -> bool:
    """Whether a model answers a source by a decoder of its own. config: an object, or config.json."""
    found = config.get("is_encoder_decoder") if isinstance(config, dict) else getattr(config, "is_encoder_decoder", 0)
    return found is True


def require_language_model(config: Mapping[str, Any], folder: Path) -> None:
    """Raises StepError where config.json names a class of transformers that writes no text; one that names none may."""
    architecture = next(iter(config.get("architectures") or []), None)
    if isinstance(architecture, str) and not _WRITES.search(architecture):
        raise StepError(
            f"{folder / 'config.json'} names the architecture {architecture}, which is no language model: it has no "
            "head that gives the token that follows",
            step="give the folder of a model whose architecture ends in ForCausalLM or ForConditionalGeneration",
        )
