"""Prompts are looked at before anything is allocated for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.errors import PromptError
from tilewright.runtime.generation.step import StepLayout


def checked_ids(ids: Sequence[int], vocabulary: int, what: str = "the prompt") -> list[int]:
    """Ids as a list, in [0, vocabulary). Raises PromptError for anything else, or nothing."""
    found = np.asarray(ids)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise PromptError(
            f"{what} is {found.dtype} {list(found.shape)}, not integers [tokens]", step="pass one list of token ids"
        )
    if not found.size:
        raise PromptError(f"{what} has no tokens", step="pass at least one token, such as the tokenizer's bos_token_id")
    outside = found[(found < 0) | (found >= vocabulary)]
    if outside.size:
        place = int(np.flatnonzero((found < 0) | (found >= vocabulary))[0])
        raise PromptError(
            f"{what} holds id {int(outside[0])} at {place}, the vocabulary has {vocabulary}",
            step=f"use the model's own tokenizer; ids go from 0 to {vocabulary - 1}",
        )
    return [int(token) for token in found]


def checked_prompt(ids: Sequence[int], layout: StepLayout, max_new_tokens: int | None) -> list[int]:
    """A prompt that can be continued by as many tokens as asked for. Raises PromptError.

    An encoder-decoder model's answer begins with the program's `start`; its prompt may be empty.
    """
    if layout.source_tokens and not len(ids) and layout.start is not None:
        ids = [layout.start]
    tokens = checked_ids(ids, layout.vocabulary)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise PromptError(f"max_new_tokens={max_new_tokens}", step="ask for at least 1 token")
    longest = layout.max_tokens - (max_new_tokens or 1)
    if len(tokens) > longest:
        room = layout.max_tokens - len(tokens)
        step = f"ask for at most {room} new tokens" if room > 0 else f"shorten the prompt to {longest} tokens"
        raise PromptError(
            f"{len(tokens)} tokens and {max_new_tokens or 1} new ones are more than max_tokens={layout.max_tokens}",
            step=f"{step}, or compile with a larger max_tokens",
        )
    return tokens


def checked_source(source: Sequence[int], layout: StepLayout) -> tuple[int, ...]:
    """What an encoder reads; empty exactly where the model has none. Raises PromptError."""
    if not layout.source_tokens:
        if len(source):
            raise PromptError("the model has no encoder to read a source", step="pass the ids as the prompt")
        return ()
    found = checked_ids(source, layout.vocabulary, "the source")
    if len(found) > layout.source_tokens:
        raise PromptError(
            f"the source has {len(found)} tokens, the encoder takes {layout.source_tokens}", step="shorten the source"
        )
    return tuple(found)
