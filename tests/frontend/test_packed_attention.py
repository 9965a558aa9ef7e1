"""torch's varlen_attn, which has no kernel of torch's on a CPU, against a call for each sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from tests.frontend.against_eager import run
from tilewright.errors import UnsupportedOpError
from tilewright.frontend import Captured, capture
from tilewright.ir.dims import Dim
from tilewright.ir.graph.attention import AttentionOp

HEADS, SHARED, SIZE = 4, 2, 8


class Attend(torch.nn.Module):
    def __init__(self, window: tuple[int, int] = (-1, -1), *, keys_apart: bool = False) -> None:
        super().__init__()
        self.window, self.keys_apart = window, keys_apart

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        of_keys = starts + 1 if self.keys_apart else starts
        return varlen_attn(  # type: ignore[return-value]
            q, k, v, starts, of_keys, 64, 64, window_size=self.window, enable_gqa=True, return_aux=AuxRequest(lse=True)
        )


def one_by_one(given: dict[str, torch.Tensor], window: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Results [t, heads, size] and log-sum-exps [heads, t], in f64."""
    found = []
    for first, last in pairwise(given["starts"].tolist()):
        q, k, v = (given[name][first:last].double().transpose(0, 1) for name in "qkv")
        k, v = (x.repeat_interleave(HEADS // SHARED, 0) for x in (k, v))
        apart = torch.arange(last - first)[:, None] - torch.arange(last - first)
        seen = torch.ones_like(apart, dtype=torch.bool)
        seen &= apart >= -window[1] if window[1] >= 0 else seen
        seen &= apart <= window[0] if window[0] >= 0 else seen
        logits = (q @ k.mT / SIZE**0.5).masked_fill(~seen, -torch.inf)
        found.append((logits.softmax(-1) @ v, logits.logsumexp(-1)))
    return torch.cat([out for out, _ in found], 1).transpose(0, 1), torch.cat([lse for _, lse in found], 1)


def drawn(lengths: list[int], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    total = sum(lengths)
    shapes = {"q": HEADS, "k": SHARED, "v": SHARED}
    given = {n: torch.from_numpy(rng.standard_normal((total, h, SIZE))).float() for n, h in shapes.items()}
    return given | {"starts": torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)}


def captured(model: torch.nn.Module, rng: np.random.Generator) -> Captured:
    t, s = Dim("t", 2, 100), Dim("s", 2, 9)
    return capture(model.eval(), (), drawn([4, 1, 6], rng), {n: {0: t} for n in "qkv"} | {"starts": {0: s}})


@pytest.mark.parametrize(("window", "mask"), [((-1, -1), "none"), ((-1, 0), "causal"), ((3, 0), "sliding")], ids=str)
def test_sequences_are_attended_to_one_by_one(window: tuple[int, int], mask: str, rng: np.random.Generator) -> None:
    found = captured(Attend(window), rng)
    (op,) = (op for op in found.module.walk() if isinstance(op, AttentionOp))
    assert op.segments is not None
    assert op.mask.data == mask
    for lengths in ([1, 1], [5, 0, 9], [20, 3, 1, 2]):
        given = drawn(lengths, rng)
        got: Any = run(found, **given)
        values = list(got.values()) if isinstance(got, dict) else list(got)
        for value, want in zip(values, one_by_one(given, window), strict=True):
            torch.testing.assert_close(value.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Attend((-1, 2)), "keys behind the query"), (Attend(keys_apart=True), "begin elsewhere than those of queries")],
    ids=["window", "keys"],
)
def test_what_it_does_not_have_is_refused(model: torch.nn.Module, reason: str, rng: np.random.Generator) -> None:
    with pytest.raises(UnsupportedOpError, match=reason):
        captured(model, rng)
