"""A module that applies a table of functions to its inputs: one capture covers a family of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Table = Mapping[str, Callable[..., Any]]


class Many(torch.nn.Module):
    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    def forward(self, *inputs: torch.Tensor) -> dict[str, Any]:
        return {name: function(*inputs) for name, function in self.table.items()}
