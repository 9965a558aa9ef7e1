"""Recurrences over time become chunks and a scan, at any length; those nobody has read are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.frontend.against_eager import assert_same, run
from tilewright.errors import SpecialisationError
from tilewright.frontend import capture, recurrences
from tilewright.ir.dims import Dim
from tilewright.ir.graph.linear_attention import LinearAttentionOp

T = Dim("tokens", 1, 300)
IDS = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def mamba() -> Any:
    config = transformers.Mamba2Config(
        hidden_size=16, state_size=6, num_heads=4, head_dim=8, expand=2, n_groups=2, num_hidden_layers=1, chunk_size=4,
        **IDS,
    )  # fmt: skip
    return transformers.Mamba2ForCausalLM(config).eval()


def minimax() -> Any:
    config = transformers.MiniMaxConfig(
        hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, num_local_experts=3, num_experts_per_tok=1, block_size=4, layer_types=["linear_attention"], **IDS,
    )  # fmt: skip
    return transformers.MiniMaxForCausalLM(config).eval()


def capture_by_length(model: Any) -> Any:
    return capture(model, (), {"input_ids": torch.ones(2, 5, dtype=torch.long)}, {"input_ids": {1: T}})


@pytest.mark.parametrize("build", [mamba, minimax])
def test_a_recurrence_holds_at_every_length(build: Any, rng: np.random.Generator) -> None:
    model = build()
    found = capture_by_length(model)
    assert sum(isinstance(op, LinearAttentionOp) for op in found.module.walk()) == 1
    # below, at and beyond one chunk of ours, and no multiple of the model's
    for tokens in (1, 3, 64, 65, 201):
        call = {"input_ids": torch.from_numpy(rng.integers(3, 61, (2, tokens)))}
        with torch.no_grad():
            wanted = model(**call, use_cache=False).logits
        assert_same(run(found, **call).logits, wanted, rtol=5e-5, atol=5e-5)


def test_linear_attention_is_its_recurrence(rng: np.random.Generator) -> None:
    class Attends(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
            recurrences.define()
            return torch.ops.tilewright.linear_attention(q, k, v, decay)

    def drawn(tokens: int) -> tuple[torch.Tensor, ...]:
        shapes = [(2, tokens, 2, 5), (2, tokens, 2, 5), (2, tokens, 6, 3), (2, tokens, 6)]
        q, k, v, d = (torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in shapes)
        return q, k, v, -d.abs() * 3

    names = ("q", "k", "v", "decay")
    found = capture(Attends(), drawn(5), None, {name: {1: T} for name in names})
    for tokens in (1, 7, 63, 64, 130):
        q, k, v, decay = given = drawn(tokens)
        state, wanted = torch.zeros(2, 6, 5, 3).double(), []
        for t in range(tokens):
            keys, queries = (x[:, t].repeat_interleave(3, 1).double() for x in (k, q))
            state = (
                decay[:, t].double().exp()[..., None, None] * state + keys[..., None] * v[:, t].double()[..., None, :]
            )
            wanted.append((queries[..., None] * state).sum(-2))
        assert_same(run(found, *given), torch.stack(wanted, 1).float(), rtol=1e-4, atol=1e-4)


def test_a_source_that_nobody_has_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = tuple(dataclasses.replace(known, sources=frozenset({"0" * 16})) for known in recurrences.KNOWN)
    monkeypatch.setattr(recurrences, "KNOWN", other)
    model = mamba()
    module = __import__(type(model).__module__, fromlist=["mamba2_chunk_scan"])
    before = module.mamba2_chunk_scan
    with pytest.raises(SpecialisationError, match=r"mamba2_chunk_scan would be captured for one number.*none of those"):
        capture_by_length(model)
    assert module.mamba2_chunk_scan is before


def test_a_delta_rule_is_refused_with_its_reason() -> None:
    config = transformers.Qwen3NextConfig(
        hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=4, linear_value_head_dim=4,
        num_experts=3, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
        layer_types=["linear_attention"], **IDS,
    )  # fmt: skip
    with pytest.raises(SpecialisationError, match=r"torch_chunk_gated_delta_rule.*multiplied by a matrix"):
        capture_by_length(transformers.Qwen3NextForCausalLM(config).eval())
