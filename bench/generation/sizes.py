"""Sizes of the generation benchmark."""

from __future__ import annotations

from typing import Final

PROMPT: Final = 512
ANSWER: Final = 24  # tokens of one turn
REQUESTS: Final = 8
TOKENS: Final = 1024  # most of one request
LONG: Final = 32768  # keys where attention is timed by itself
LONG_LAYERS: Final = 4  # enough that no cache keeps their keys and values
