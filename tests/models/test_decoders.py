"""Llama and Qwen3 from transformers, random weights: logits at attended positions equal eager's within rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.models.decoders import MOST_BATCH, MOST_TOKENS, VOCABULARY, Shape, bound, draw_call
from tilewright.ir.module import parse_module
from tilewright.ir.tile.containment import unproved

SIZES = [(1, 1), (1, 2), (2, 3), (3, 17), (5, 31), (1, 127), (2, 64), (MOST_BATCH, 7), (1, MOST_TOKENS)]
BF16 = torch.bfloat16

MASKED = [
    Shape("llama", 32, 2, heads=4, kv_heads=2, tied=False),
    Shape("llama", 64, 3, heads=4, kv_heads=1, tied=True),
    Shape("llama", 96, 2, heads=2, kv_heads=2, tied=False),
    Shape("qwen3", 32, 4, heads=6, kv_heads=2, tied=True),
    Shape("qwen3", 64, 2, heads=4, kv_heads=1, tied=False),
    Shape("qwen3", 96, 2, heads=4, kv_heads=2, tied=True),
    Shape("llama", 64, 3, heads=4, kv_heads=2, tied=True, dtype=BF16),
    Shape("qwen3", 32, 2, heads=4, kv_heads=4, tied=False, dtype=BF16),
]
# both families, tied and not, one key head, groups of two and three, bf16
FAST = [MASKED[n] for n in (0, 3, 4, 6)]
WHOLE = [
    Shape("llama", 64, 4, heads=4, kv_heads=2, tied=False),
    Shape("llama", 96, 2, heads=2, kv_heads=1, tied=False, dtype=BF16),
]


def compiled(model: torch.nn.Module, *, masked: bool) -> Any:
    sizes = tw.Dim("batch", 1, MOST_BATCH), tw.Dim("tokens", 1, MOST_TOKENS)
    example = draw_call(np.random.default_rng(0), 2, 5, masked=masked)
    dims = dict.fromkeys([name for name in example if name != "use_cache"], sizes)
    return tw.compile(model, kwargs=example, dims=dims)


def eager(model: torch.nn.Module, call: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**call).logits


def agree(shape: Shape, seed: int, rng: np.random.Generator, *, masked: bool) -> None:
    model = shape.build(seed)
    program = compiled(model, masked=masked)
    assert not unproved(parse_module(program.ir("tile")))
    drawn = [tuple(size) for size in rng.integers(1, [MOST_BATCH + 1, 48], (3, 2)).tolist()]
    for batch, tokens in SIZES + drawn:
        call = draw_call(rng, batch, tokens, masked=masked)
        wanted, found = eager(model, call), program(**call).logits
        assert found.shape == (batch, tokens, VOCABULARY)
        assert found.dtype == wanted.dtype == shape.dtype
        if masked:
            kept = call["attention_mask"].bool()
            wanted, found = wanted[kept], found[kept]
        difference = (found.float() - wanted.float()).abs().max().item()
        assert difference <= bound(shape, tokens, wanted), (batch, tokens)


@pytest.mark.parametrize(
    "shape", [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in MASKED], ids=str
)
def test_padded_batches_equal_eager(shape: Shape, seed: int, rng: np.random.Generator) -> None:
    agree(shape, seed, rng, masked=True)


@pytest.mark.parametrize("shape", WHOLE, ids=str)
def test_batches_without_a_mask_equal_eager(shape: Shape, seed: int, rng: np.random.Generator) -> None:
    agree(shape, seed, rng, masked=False)


@pytest.mark.parametrize("shape", [MASKED[0], MASKED[3], MASKED[6]], ids=str)
def test_the_bound_sees_one_key_too_many(shape: Shape, seed: int, rng: np.random.Generator) -> None:
    model = shape.build(seed)
    call = draw_call(rng, 1, 12, masked=False) | {"attention_mask": torch.ones(1, 12, dtype=torch.long)}
    right = eager(model, call)[0, 1:]
    call["attention_mask"][0, 0] = 0
    wrong = eager(model, call)[0, 1:]
    assert (right.float() - wrong.float()).abs().max().item() > 3 * bound(shape, 12, right)
