"""Chains that the memory limits: read once, written once, far larger than any cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

WIDTH = 1024


class Gelu(nn.Module):
    """One function of every number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x)


class Softmax(nn.Module):
    """Of every row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.softmax(x, -1)


class LayerNorm(nn.Module):
    """Of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(x)
        return found


class NormGeluAdd(LayerNorm):
    """Three of them in a row: still one read and one write."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(self.norm(x)) + x


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "gelu": Gelu, "softmax": Softmax, "layer-norm": LayerNorm, "norm-gelu-add": NormGeluAdd,
}  # fmt: skip


def arguments(sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Rows of WIDTH drawn numbers."""
    generator = torch.Generator().manual_seed(sizes["rows"])
    return {"x": torch.randn(sizes["rows"], WIDTH, generator=generator)}
