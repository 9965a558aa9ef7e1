"""Tiny decoders of real families with random weights, their inputs, and how far two ways to compute one may part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

VOCABULARY = 211
MOST_BATCH, MOST_TOKENS = 9, 160


@dataclass(frozen=True)
class Shape:
    """A decoder's make. hidden and inner are no multiples of the heads' size, nor of any tile's."""

    family: str
    head_dim: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    dtype: torch.dtype = torch.float32
    hidden: int = 104
    inner: int = 172

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.family}-{self.layers}x{self.heads}:{self.kv_heads}x{self.head_dim}-{tied}-{dtype}"

    def build(self, seed: int) -> torch.nn.Module:
        """The model. Weights are drawn so that queries, keys and logits come out near unit size: attention is then
        far from uniform, and a wrong mask or a wrong rotation is no rounding error.
        """
        import transformers

        config_of = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[self.family]
        model_of = {"llama": transformers.LlamaForCausalLM, "qwen3": transformers.Qwen3ForCausalLM}[self.family]
        config = config_of(
            vocab_size=VOCABULARY, hidden_size=self.hidden, intermediate_size=self.inner, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, head_dim=self.head_dim,
            max_position_embeddings=MOST_TOKENS, tie_word_embeddings=self.tied,
            initializer_range=self.hidden**-0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        torch.manual_seed(seed)
        return model_of(config).eval().to(self.dtype)


def draw_call(rng: np.random.Generator, batch: int, tokens: int, *, masked: bool) -> dict[str, Any]:
    """Ids and, where asked for, a 2-D mask whose rows are padded on the right, on the left, or not at all."""
    call: dict[str, Any] = {"input_ids": torch.from_numpy(rng.integers(3, VOCABULARY, (batch, tokens)))}
    if masked:
        lengths = rng.integers(1, tokens + 1, (batch, 1))
        left = rng.random((batch, 1)) < 0.5
        place = np.arange(tokens)
        mask = np.where(left, place >= tokens - lengths, place < lengths) | (rng.random((batch, 1)) < 0.2)
        call["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    return call | {"use_cache": False}


def bound(shape: Shape, tokens: int, logits: torch.Tensor) -> float:
    """How far two right ways to compute `logits` may part, in absolute terms.

    A rounding is an independent relative error of at most u, the dtype's unit. A dot of n terms accumulated in f32
    adds sqrt(n) u32 (Higham and Mary 2019, theorem 2.4: the probabilistic bound of a sum grows with the root of n).

    *Depth.* On its way through a layer a value of the residual stream is rounded at these places: norm (2), projection,
    rotation (3), score, softmax (2), weighted sum, projection, residual sum; norm (2), projection, activation (2),
    product, projection, residual sum: 20. A layer adds to the stream something of the stream's own size at most, and
    norms take sizes out, so the errors of layers add as independent ones do: sqrt(20 layers + 3), the three being the
    last norm's two and the logits' own. A softmax turns a score's relative error into one of its weights times the
    score's size, which is 1: queries and keys are of unit size by how `build` draws weights.

    *Magnitude.* A logit is a dot with a row of the head: an error of relative size r in the stream turns it by r times
    the size of logits in general, which is their root mean square. 6 deviations hold for any 1e8 logits; both ways err,
    and their errors are independent: sqrt(2).
    """
    u = torch.finfo(shape.dtype).eps / 2
    longest = max(shape.hidden, shape.inner, shape.heads * shape.head_dim, tokens)
    rounding = u + math.sqrt(longest) * 2.0**-24
    depth = math.sqrt(20 * shape.layers + 3)
    magnitude = logits.double().square().mean().sqrt().item()
    return 6 * math.sqrt(2) * depth * rounding * magnitude
