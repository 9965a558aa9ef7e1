"""One tiny model of every family compiles without special care and equals eager at every size, within rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.families import FAMILIES, NAMED, Call, Family

ROUTED = ("qwen3-moe", "mixtral", "deepseek-v3", "minimax", "llama-4", "deepseek-v2", "gpt-oss")
# near relatives of a family that every run covers
RELATIVES = (
    "roberta", "t5-gated", "phi-3", "qwen3", "minimax", "deepseek-v2", "qwen2", "mistral", "falcon", "cohere", "olmo-2",
    "granite", "smollm-3", "mixtral",
)  # fmt: skip


def bound(family: Family, wanted: torch.Tensor) -> float:
    """How far two right ways to compute a result may part, in absolute terms.

    As for decoders: a value is rounded about 20 times on its way through a layer (30 with cross attention, 40 in a
    chunked recurrence, whose weights are products of exponentials of sums), a dot of n terms in f32 adds
    sqrt(n) u (Higham and Mary 2019, theorem 2.4), independent errors add by their squares, and both ways err. A result
    is off by so many parts of its tensor's root mean square; 6 deviations hold for any 1e8 elements. Scores here stay
    of unit size, but for T5's, which are not scaled: a softmax turns a relative error of scores of size s into s times
    that one of its weights.
    """
    u = 2.0**-24
    layers = family.layers
    rounding = u * (1 + math.sqrt(family.longest))
    depth = math.sqrt(family.roundings * layers + 3)
    magnitude = wanted.double().square().mean().sqrt().item()
    return 6 * math.sqrt(2) * depth * rounding * family.sharpness * magnitude


@contextmanager
def chosen_experts(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The experts that each token of a call goes to, one tensor a layer, as sorted numbers."""
    found: list[torch.Tensor] = []
    layers = [m for m in model.modules() if hasattr(m, "has_gate") and hasattr(m, "down_proj")]
    hooks = [m.register_forward_pre_hook(lambda _, given: found.append(given[1].sort(-1)[0])) for m in layers]
    yield found
    for hook in hooks:
        hook.remove()


def decided(family: Family, model: torch.nn.Module, call: Call) -> bool:
    """No token stands on the border between two experts: in f64 all go where they go in f32.

    Beside a border two right ways may choose differently, and what an expert computes is no rounding error.
    """
    if family.name not in ROUTED:
        return True
    with torch.inference_mode(), chosen_experts(model) as narrow:
        model(**call)
    wide = model.double()
    try:
        with torch.inference_mode(), chosen_experts(wide) as exact:
            wide(**call)
    finally:
        model.float()
    return all(torch.equal(a, b) for a, b in zip(narrow, exact, strict=True))


def drawn(family: Family, model: torch.nn.Module, rng: np.random.Generator, size: tuple[int, int]) -> Call:
    for _ in range(20):
        call = family.draw(rng, *size)
        if decided(family, model, call):
            return call
    raise AssertionError(f"{family}: no call of size {size} has clear routing")


def agree(family: Family, found: Any, wanted: Any, call: Call, size: tuple[int, int]) -> None:
    """Every float of the output, at attended positions where the output is by token, within the bound."""
    compared = 0
    for name, value in wanted.items():
        if not isinstance(value, torch.Tensor):
            continue
        mine, eager = found[name], value
        assert mine.shape == eager.shape, (name, size)
        assert mine.dtype == eager.dtype, (name, size)
        mask = call.get("attention_mask")
        by_token = mask is not None and "decoder_input_ids" not in call and eager.shape[:2] == mask.shape
        if by_token:
            mine, eager = mine[mask.bool()], eager[mask.bool()]
        difference = (mine - eager).abs().max().item()
        assert difference <= bound(family, eager), (family.name, name, size)
        compared += 1
    assert compared


def run(family: Family, seed: int, rng: np.random.Generator) -> None:
    model = family.build(seed)
    program = family.compile(model)
    most = [min(most, 24) + 1 for most in family.most]
    extra = tuple(int(rng.integers(least, top)) for least, top in zip(family.least, most, strict=True))
    for size in (*family.sizes, extra):
        call = drawn(family, model, rng, size)
        with torch.inference_mode():
            wanted = model(**call)
        agree(family, program(**call), wanted, call, size)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in RELATIVES], ids=str)
def test_every_family_equals_eager(family: Family, seed: int, rng: np.random.Generator) -> None:
    run(family, seed, rng)


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVES)
def test_their_relatives_equal_eager(name: str, seed: int, rng: np.random.Generator) -> None:
    run(NAMED[name], seed, rng)


def test_the_bound_sees_one_expert_too_few(seed: int, rng: np.random.Generator) -> None:
    family = NAMED["mixtral"]
    model = family.build(seed)
    call = family.draw(rng, 2, 9)
    with torch.inference_mode():
        right = model(**call).logits
        for layer in model.modules():
            if hasattr(layer, "has_gate"):
                layer.down_proj.data[0] = 0
        wrong = model(**call).logits
    assert (right - wrong).abs().max().item() > 10 * bound(family, right)
