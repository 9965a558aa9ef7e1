"""Tiny causal models of real families with random weights, and what transformers generates with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

VOCABULARY = 211
MOST_TOKENS = 256

# initializer_range: attention is then far from uniform, and a wrong mask or rotation is no rounding error
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": MOST_TOKENS,
    "initializer_range": 0.12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": _COMMON,
    "Qwen3": _COMMON | {"head_dim": 24},
    "Qwen3Moe": _COMMON
    | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "Mixtral": _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Gemma3": _COMMON
    | {
        "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "Phi3": _COMMON,
    "GPT2": {
        "vocab_size": VOCABULARY, "n_positions": MOST_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4,
        "initializer_range": 0.12,
    } | _ENDS,
    "OPT": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": MOST_TOKENS, "word_embed_proj_dim": 64, "init_std": 0.12,
    } | _ENDS,
    "Bloom": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.12,
    } | _ENDS,
    "DeepseekV3": _COMMON
    | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "moe_intermediate_size": 32, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
}  # fmt: skip
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_expand": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip
# what a request keeps is not, or not only, keys and values
_RECURRENT: dict[str, dict[str, Any]] = {
    "Mamba2": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "state_size": 16, "num_heads": 8, "head_dim": 16, "expand": 2,
        "n_groups": 2, "num_hidden_layers": 2, "chunk_size": 16, "initializer_range": 0.12,
    } | _ENDS,
    "Bamba": _COMMON | _MAMBA | {"attn_layer_indices": [1]},
    "Lfm2": _COMMON | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "MiniMax": _COMMON
    | {
        "head_dim": 16, "num_local_experts": 3, "num_experts_per_tok": 1, "block_size": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip
_CONFIGS |= _RECURRENT
RECURRENT = tuple(_RECURRENT)
FAMILIES = tuple(name for name in _CONFIGS if name not in _RECURRENT)
_CONFIG_CLASS = {"Gemma3": "Gemma3TextConfig"}
_MODEL_CLASS = {"GPT2": "GPT2LMHeadModel"}


def build(family: str, seed: int, **changed: Any) -> Any:
    """A model of a family. changed: of its config."""
    config_of = getattr(transformers, _CONFIG_CLASS.get(family, f"{family}Config"))
    model_of = getattr(transformers, _MODEL_CLASS.get(family, f"{family}ForCausalLM"))
    torch.manual_seed(seed)
    return model_of(config_of(**(_CONFIGS[family] | changed))).eval()


_ANSWERS = {"vocab_size": VOCABULARY, "decoder_start_token_id": 0, "tie_word_embeddings": False} | _ENDS
_SOURCED: dict[str, dict[str, Any]] = {
    "T5": {
        "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 24,
    } | _ANSWERS,
}  # fmt: skip
# an encoder reads a source, and a decoder answers it
SOURCED = tuple(_SOURCED)


def build_sourced(family: str, seed: int, **changed: Any) -> Any:
    """An encoder-decoder model of a family, its biases by distance as large as logits. changed: of its config."""
    config_of = getattr(transformers, f"{family}Config")
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config_of(**(_SOURCED[family] | changed))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                # as far from uniform as above, and what layers add is no smaller than what they add it to
                weight.normal_(std=1.0 if "relative_attention_bias" in name else 0.12)
    return model


def prompt(rng: np.random.Generator, tokens: int) -> list[int]:
    """Ids without the special ones: generate() would take a padding id in a prompt for padding."""
    return [int(token) for token in rng.integers(3, VOCABULARY, tokens)]


def greedy(model: Any, ids: Sequence[int], tokens: int) -> tuple[list[int], np.ndarray]:
    """What transformers generates greedily, and the logits [tokens, V] from which it did."""
    given = torch.tensor([ids])
    with torch.inference_mode():
        found = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return found.sequences[0, len(ids) :].tolist(), torch.cat(found.logits).double().numpy()


def greedy_answer(model: Any, source: Sequence[int], tokens: int) -> tuple[list[int], np.ndarray]:
    """The same of an encoder-decoder model."""
    given = torch.tensor([source])
    with torch.inference_mode():
        found = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
            num_beams=1, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return found.sequences[0, 1:].tolist(), torch.cat(found.logits).double().numpy()


def require_same(found: Sequence[int], wanted: Sequence[int], logits: np.ndarray) -> None:
    """Equal texts; they may part only where the reference itself was undecided, and say nothing of each other then."""
    assert len(found) == len(wanted)
    for at, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        if mine != theirs:
            first, second = np.sort(logits[at])[-1:-3:-1]
            # f32 rounding through a few layers stays far below this share of the logits' size
            assert first - second < 1e-4 * np.abs(logits[at]).max(), f"token {at}: {mine}, transformers {theirs}"
            return
