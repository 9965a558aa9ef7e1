"""What a compression multiplies, as models that are compiled like any other: shares of attention, and likeness."""

from __future__ import annotations

import torch

# Over how many keys a share is averaged: neighbours of a key that is looked at are kept with it.
POOL = 5


class AttentionMass(torch.nn.Module):
    """The mean weight that queries and the query heads of a key head give each key, averaged over POOL neighbours.

    queries [w, H, D] are those of the last w of n keys [n, K, D], and see what lies before them; log_counts [n, K] are
    added to logits. Scores are f32 [K, n]. Sinks of the attention itself, which change all weights of a query alike,
    are left out. Source: Li et al., SnapKV, 2024.
    """

    def __init__(self, scale: float, softcap: float) -> None:
        super().__init__()
        self.scale, self.softcap = scale, softcap

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, log_counts: torch.Tensor
    ) -> torch.Tensor:
        w, heads, features = queries.shape
        n, shared = keys.shape[0], keys.shape[1]
        each = heads // shared
        rows = (
            queries.float().reshape(w, shared, each, features).permute(1, 2, 0, 3).reshape(shared, each * w, features)
        )
        logits = torch.matmul(rows, keys.float().permute(1, 2, 0)) * self.scale
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        logits = (logits + log_counts.permute(1, 0)[:, None]).reshape(shared, each, w, n)
        places = torch.arange(n)
        later = places[None] > (torch.arange(w) + (n - w))[:, None]
        mass = logits.masked_fill(later, float("-inf")).softmax(-1).mean((1, 2))
        wide = torch.nn.functional.pad(mass, (POOL // 2, POOL // 2))
        return sum((wide[:, i : i + n] for i in range(1, POOL)), wide[:, :n]) / POOL


class Scored(torch.nn.Module):
    """A scorer of somebody's own, whatever it calls its arguments."""

    def __init__(self, scorer: torch.nn.Module) -> None:
        super().__init__()
        self.scorer = scorer.eval()

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, log_counts: torch.Tensor
    ) -> torch.Tensor:
        found: torch.Tensor = self.scorer(queries, keys, values, log_counts)
        return found


class Nearest(torch.nn.Module):
    """For others [e, K, D] the most alike of kept keys [k, K, D], the first of equals: [K, e], and the cosine."""

    def forward(self, kept: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (x.float() * (x.float().square().sum(-1, keepdim=True) + 1e-30).rsqrt() for x in (kept, others))
        cosine = torch.matmul(b.permute(1, 0, 2), a.permute(1, 2, 0))
        return cosine.argmax(-1), cosine.amax(-1)
