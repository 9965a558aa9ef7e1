"""Transformers' mask functions, read back: which rule a composed mask function states.

Transformers describes a mask by a function of (batch, head, query, key) indices, composed from a handful of its own.
The composition is recognised by identity and closure; whatever is not recognised is materialised and reported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

MaskKind = Literal["none", "causal", "sliding", "chunked"]
_MODULE: Final = "transformers.masking_utils"


@dataclass
class Pattern:
    """What a mask function says: causality, a window or a chunk size, and the tensors it looks at."""

    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    shift: Any = None
    valid: Any = None
    segments: Any = None
    positions: Any = None

    @property
    def kind(self) -> MaskKind | None:
        """The mask kind of `graph.attention`; None for a combination it does not have."""
        if self.window is not None:
            return "sliding" if self.causal and self.chunk is None else None
        if self.chunk is not None:
            return "chunked" if self.causal else None
        return "causal" if self.causal else "none"

    @property
    def extent(self) -> int:
        """The window or chunk size, 0 where there is none."""
        return self.window or self.chunk or 0


def recognise(function: Callable[..., Any]) -> Pattern | None:
    """The pattern of a mask function, or None where part of it is unknown."""
    pattern = Pattern()
    return pattern if _read(function, pattern) and pattern.kind is not None else None


def _read(function: Callable[..., Any], pattern: Pattern) -> bool:
    if getattr(function, "__module__", None) != _MODULE:
        return False
    name = function.__qualname__
    closure = inspect.getclosurevars(function).nonlocals
    match name:
        case "causal_mask_function":
            pattern.causal = True
        case "bidirectional_mask_function":
            pass
        case "and_masks.<locals>.and_mask":
            return all(_read(part, pattern) for part in closure["mask_functions"])
        case "sliding_window_overlay.<locals>.inner_mask" if pattern.window is None:
            pattern.window = int(closure["sliding_window"])
        case "chunked_overlay.<locals>.inner_mask" if pattern.chunk is None:
            pattern.chunk, pattern.shift = int(closure["chunk_size"]), closure["left_padding"]
        case "padding_mask_function.<locals>.inner_mask" if pattern.valid is None:
            pattern.valid = closure["padding_mask"]
        case "packed_sequence_mask_function.<locals>.inner_mask" if pattern.segments is None:
            pattern.segments = closure["packed_sequence_mask"]
        case "remap_positions_for_packed_sequence.<locals>.inner_mask" if pattern.positions is None:
            pattern.positions = closure["position_ids"]
            return _read(closure["mask_function"], pattern)
        case _:
            return False
    return True
