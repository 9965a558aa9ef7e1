"""Parameters that were made under torch.inference_mode(): they ask for gradients and cannot be traced doing so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def as_constants(model: torch.nn.Module) -> Iterator[None]:
    """Within it, no parameter that is an inference tensor asks for gradients, which it could not be given."""
    import torch

    held = [p for p in model.parameters() if p.is_inference() and p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        with torch.inference_mode():
            for parameter in held:
                parameter.requires_grad_(True)
