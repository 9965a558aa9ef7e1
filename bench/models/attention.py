"""Attention alone: heads of a prompt, full and causal, and one query beside a long context."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

QUERY_HEADS, KEY_HEADS, CONTEXT_FEATURES = 32, 8, 128


class Attention(nn.Module):
    """torch's own function, of which every contestant makes what it can."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)


def prompt(features: int) -> Callable[[Mapping[str, int]], dict[str, torch.Tensor]]:
    """Queries, keys and values [1, heads, tokens, features]."""

    def arguments(sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(sizes["tokens"])
        shape = (1, sizes["heads"], sizes["tokens"], features)
        return {name: torch.randn(shape, generator=generator) for name in "qkv"}

    return arguments


def step(sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """One query of every query head, and the keys and values of a context that query heads share."""
    generator = torch.Generator().manual_seed(sizes["context"])
    shapes = {"q": (QUERY_HEADS, 1), "k": (KEY_HEADS, sizes["context"]), "v": (KEY_HEADS, sizes["context"])}
    return {name: torch.randn(1, *shape, CONTEXT_FEATURES, generator=generator) for name, shape in shapes.items()}
