"""What compile_lm() takes, as far as a model's configuration says: asked before anything heavy is loaded."""

from __future__ import annotations

from typing import Final

from tilewright.errors import StepError

# The longest sequence, prompt included, where nothing is asked for.
MOST_TOKENS: Final = 4096


def refuse_encoder_decoder(config: object, name: str) -> None:
    """Raises StepError for a model that answers a source by a decoder of its own. config: an object, or config.json.

    name: of the model, for the message.
    """
    found = config.get("is_encoder_decoder") if isinstance(config, dict) else getattr(config, "is_encoder_decoder", 0)
    if found is True:
        raise StepError(
            f"{name} is an encoder-decoder model; compile_lm() takes causal ones: a decoder of ids alone",
            step="give a causal model (transformers' AutoModelForCausalLM), or tw.compile() this one with its own "
            "example inputs: one call of its forward",
        )
