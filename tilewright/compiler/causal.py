"""What compile_lm() takes, as far as a model's configuration says: asked before anything heavy is loaded."""

from __future__ import annotations

from typing import Final

# The longest sequence, prompt included, where nothing is asked for.
MOST_TOKENS: Final = 4096


def is_encoder_decoder(config: object) -> bool:
    """Whether a model answers a source by a decoder of its own. config: an object, or config.json."""
    found = config.get("is_encoder_decoder") if isinstance(config, dict) else getattr(config, "is_encoder_decoder", 0)
    return found is True
