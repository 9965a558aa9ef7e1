"""Flash attention as the attention skeleton tiles it, from one query row to a whole block."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.lower_tile_to_loops.kernels import attention
from tests.passes.lower_tile_to_loops.running import check, check_counts, inputs, lower_kernel, machine
from tilewright.ir.dtypes import BF16, F32


@pytest.mark.parametrize(
    ("heads", "width", "queries", "causal", "t"),
    [(2, 16, 4, True, 5), (1, 32, 64, True, 70), (1, 32, 16, False, 65), (1, 40, 1, True, 66), (2, 16, 24, False, 1)],
)
def test_attention(heads: int, width: int, queries: int, causal: bool, t: int, rng: np.random.Generator) -> None:
    kernel = attention(heads, width, queries, causal=causal)
    given = inputs(kernel, {"t": t}, rng)
    classes = ["avx512", "generic"] if t < 10 else ["avx512"]
    (got,) = check(kernel, {"t": t}, rng, given=given, tolerance=2e-6, classes=classes)
    q, k, v = (x.reshape(t, heads, width).transpose(1, 0, 2).astype(np.float64) for x in given)
    scores = q @ k.transpose(0, 2, 1) * width**-0.5
    if causal:
        scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = (weights / weights.sum(-1, keepdims=True)) @ v
    assert np.abs(got.reshape(t, heads, width).transpose(1, 0, 2) - wanted).max() < 1e-5


def test_attention_in_bf16_storage(rng: np.random.Generator) -> None:
    check(attention(1, 16, 8, dtype=BF16), {"t": 20}, rng, tolerance=1e-2)


def test_what_is_counted(rng: np.random.Generator) -> None:
    kernel = attention(2, 16, 4)
    for t in (1, 70):
        check_counts(kernel, {"t": t}, inputs(kernel, {"t": t}, rng))


def test_a_block_of_queries_needs_few_scratch_tiles() -> None:
    kernel = lower_kernel(attention(12, 32, 64), machine("avx512"))
    scores = [s for s in kernel.scratch if s.elements >= 64 * 64]
    assert len(scores) == 1, "scores, masked scores and weights take each other's place"
    assert all(s.dtype is F32 for s in kernel.scratch)
    assert "gather" not in str(kernel)
