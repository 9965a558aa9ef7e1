"""Experts of transformers models arrive whole, or as grouped products around a gate of the model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from tests.frontend.against_eager import assert_same, run
from tilewright.frontend import capture
from tilewright.ir.dims import Dim
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.ir.graph.routing import GroupedMatmulOp
from tilewright.ir.verifier import verify

T = Dim("tokens", 1, 64)
SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.2, "num_local_experts": 5, "num_experts_per_tok": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def captured(model: Any, rng: np.random.Generator) -> Any:
    """The captured model, after comparing it with eager's at three lengths."""
    before = dict(model.config.__dict__)
    found = capture(model, (), {"input_ids": torch.ones(2, 5, dtype=torch.long)}, {"input_ids": {1: T}})
    verify(found.module)
    assert model.config.__dict__ == before
    for tokens in (1, 4, 33):
        call = {"input_ids": torch.from_numpy(rng.integers(3, 61, (2, tokens)))}
        with torch.no_grad():
            wanted = model(**call, use_cache=False).logits
        assert_same(run(found, **call).logits, wanted)
    return found


def test_mixtral_has_one_op_a_layer(rng: np.random.Generator) -> None:
    found = captured(transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL)).eval(), rng)
    (op,) = [o for o in found.module.walk() if isinstance(o, ExpertsOp)]
    assert (op.activation.data, op.gated.data) == ("silu", True)
    assert op.path == "model.layers.0.mlp.experts"
    names = {o.name for o in found.module.walk()}
    assert not {"graph.sort", "graph.scatter", "graph.grouped_matmul"} & names


def test_a_gate_of_its_own_stands_between_grouped_products(rng: np.random.Generator) -> None:
    config = transformers.GptOssConfig(**SMALL, sliding_window=4)
    found = captured(transformers.GptOssForCausalLM(config).eval(), rng)
    products = [o for o in found.module.walk() if isinstance(o, GroupedMatmulOp)]
    assert len(products) == 2 * config.num_hidden_layers
    assert all(op.bias is not None for op in products)
    assert not any(isinstance(o, ExpertsOp) for o in found.module.walk())
