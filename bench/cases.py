"""What is timed: models, sizes and dtypes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Dtype = Literal["f32", "bf16"]


@dataclass(frozen=True)
class Case:
    """One call. model: "minilm" (sentence embeddings) or "trivial" (x + 1 on four numbers).

    dtype: of matrix products' operands; a peer that has no such mode runs the whole model in it.
    """

    model: Literal["minilm", "trivial"]
    batch: int
    tokens: int
    dtype: Dtype

    @property
    def name(self) -> str:
        """As the tables have it."""
        return f"{self.model} {self.batch}x{self.tokens} {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


CASES = tuple(
    Case("minilm", batch, tokens, dtype)
    for dtype in ("f32", "bf16")
    for batch, tokens in ((1, 16), (8, 82), (32, 128))
)  # fmt: skip
TRIVIAL = Case("trivial", 1, 4, "f32")
CALLERS_CASE = Case("minilm", 1, 16, "f32")
