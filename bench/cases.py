"""What is timed: models, sizes and dtypes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Dtype = Literal["f32", "bf16"]
Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Case:
    """One call: a model of `bench/models`, its sizes by name, and the dtype of matrix products' operands.

    A peer that rounds no operands runs the whole model in that dtype.
    """

    model: str
    sizes: Sizes
    dtype: Dtype

    @property
    def name(self) -> str:
        """As the tables have it."""
        return f"{self.model} {'x'.join(str(size) for _, size in self.sizes)} {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)

    @staticmethod
    def of_json(given: dict[str, Any]) -> Case:
        """From `to_json`, after JSON made lists of tuples."""
        return Case(given["model"], tuple((name, size) for name, size in given["sizes"]), given["dtype"])


def _minilm(batch: int, tokens: int, dtype: Dtype) -> Case:
    return Case("minilm", (("batch", batch), ("tokens", tokens)), dtype)


CASES = (
    *[_minilm(*sizes, dtype) for dtype in ("f32", "bf16") for sizes in ((1, 16), (8, 82), (32, 128))],
    Case("llama-0.5b", (("batch", 1), ("tokens", 512)), "bf16"),
    Case("resnet-50", (("batch", 1),), "f32"),
    Case("vit-b", (("batch", 8),), "f32"),
    *[Case(chain, (("rows", 65536),), "f32") for chain in ("gelu", "softmax", "layer-norm", "norm-gelu-add")],
)
# heads and tokens: so many that a call takes some milliseconds at least, and seconds at most
_PROMPTS = ((8, 512), (8, 2048), (2, 8192), (1, 32768))
ATTENTION = (
    *[
        Case(f"{name}-d{features}", (("heads", heads), ("tokens", tokens)), dtype)
        for dtype in ("f32", "bf16")
        for features in (64, 128)
        for name in ("attention", "causal")
        for heads, tokens in _PROMPTS
    ],
    *[Case("attention-step", (("context", 32768),), dtype) for dtype in ("f32", "bf16")],
)
MODELS, ATTENTION_ALONE = "models", "attention"
# what is chosen by name, and stands in a table of its own
FAMILIES = {MODELS: CASES, ATTENTION_ALONE: ATTENTION}
TRIVIAL = Case("trivial", (("batch", 1),), "f32")
CALLERS_CASE = _minilm(1, 16, "f32")
