"""Models that the command line's tests name as `sample_models:NAME`."""

from __future__ import annotations

from typing import Any

import torch


class Net(torch.nn.Module):
    """An embedding, a float input, a mask, and two outputs, one of them an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(11, 12)
        self.up = torch.nn.Linear(12, 20)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, extra: dict[str, torch.Tensor]) -> dict[str, Any]:
        """ids, mask: i64 [batch, tokens]; extra["x"]: f32 [batch, tokens, 12]."""
        hidden = self.table(ids) + extra["x"] * mask.unsqueeze(-1)
        return {"y": torch.nn.functional.gelu(self.up(hidden)), "count": mask.sum(-1)}


def make() -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A net with example inputs; equal weights whenever it is called."""
    torch.manual_seed(3)
    net = Net().eval()
    ids = torch.randint(0, 11, (2, 5))
    return net, (), {"ids": ids, "mask": torch.ones_like(ids), "extra": {"x": torch.randn(2, 5, 12)}}


class Counter(torch.nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


def counter() -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return Counter().eval(), (torch.ones(3),), {}


def raises() -> None:
    raise ValueError("no weights today")


def two() -> tuple[int, int]:
    return 1, 2
