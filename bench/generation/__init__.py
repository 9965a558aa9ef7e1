"""Generation at the shape of bench/models/decoder.py in bf16: what is measured, and by whom."""

from __future__ import annotations

from typing import Any, Protocol

from bench.generation.ours import OurGeneration
from bench.generation.transformers import TransformersGeneration

NAME = "generation llama-0.5b bf16"


class Generator(Protocol):
    """One way to generate, alone in its process. What it imports, it imports in its methods."""

    def prepare(self) -> dict[str, Any]:
        """Makes everything ready; what is worth telling of that."""

    def measure(self, what: str) -> dict[str, float]:
        """One measurement, by name."""


# Measurements of one round, in turns; the first is also the peer's.
GENERATORS: dict[str, type[Generator]] = {"tilewright": OurGeneration, "transformers": TransformersGeneration}
MEASURED: dict[str, tuple[str, ...]] = {
    "tilewright": ("paged", "contiguous", "attention", "together", "first", "prefill"),
    "transformers": ("generate",),
}
