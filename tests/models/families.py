"""Every family of models that must compile, made tiny: odd sizes, random weights, and the inputs each takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import tilewright as tw

VOCABULARY = 97
HIDDEN, INNER, LAYERS = 56, 92, 2
MOST_BATCH, MOST_TOKENS = 5, 40
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": MOST_TOKENS, "initializer_range": HIDDEN**-0.5,
} | IDS  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 24}
# the one of transformers' ways to run experts in eager that takes every dtype and every size
EAGER_EXPERTS = {"experts_implementation": "batched_mm"}

Call = dict[str, Any]
Draw = Callable[[np.random.Generator, int, int], Call]


@dataclass(frozen=True)
class Family:
    """One model: how to build it, what to call it with, and which axes of the call vary.

    model, config: names in transformers. axes: per argument, the axes that each of the two dims varies. layers,
    longest, roundings, sharpness: what a bound of rounding errors follows from: how many layers the data passes, the
    longest dot, roundings a layer, and the size of attention's scores.
    """

    name: str
    model: str
    config: str
    settings: dict[str, Any]
    draw: Draw
    axes: dict[str, dict[int, str]]
    most: tuple[int, int] = (MOST_BATCH, MOST_TOKENS)
    least: tuple[int, int] = (1, 1)
    package: str = "transformers"
    layers: int = LAYERS
    longest: int = 180
    roundings: int = 20
    sharpness: float = 1.0
    sizes: tuple[tuple[int, int], ...] = ((1, 1), (2, 7), (3, 19))

    def __str__(self) -> str:
        return self.name

    def build(self, seed: int) -> torch.nn.Module:
        import transformers

        torch.manual_seed(seed)
        settings = dict(self.settings)
        package = importlib.import_module(self.package)
        return getattr(package, self.model)(getattr(transformers, self.config)(**settings)).eval()

    def compile(self, model: torch.nn.Module, **options: Any) -> Any:
        example = self.draw(np.random.default_rng(0), max(2, self.least[0]), max(5, self.least[1]))
        made = {
            "batch": tw.Dim("batch", self.least[0], self.most[0]),
            "tokens": tw.Dim("tokens", self.least[1], self.most[1]),
        }
        dims = {name: {axis: made[dim] for axis, dim in axes.items()} for name, axes in self.axes.items()}
        return tw.compile(model, kwargs=example, dims=dims, **options)


def _mask(rng: np.random.Generator, batch: int, tokens: int) -> torch.Tensor:
    """Rows padded on the right, on the left, or not at all; every row attends to something."""
    lengths = rng.integers(1, tokens + 1, (batch, 1))
    left, whole = rng.random((batch, 1)) < 0.5, rng.random((batch, 1)) < 0.3
    place = np.arange(tokens)
    mask = np.where(left, place >= tokens - lengths, place < lengths) | whole
    return torch.from_numpy(mask.astype(np.int64))


def _ids(rng: np.random.Generator, batch: int, tokens: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(3, VOCABULARY, (batch, tokens)))


def text(rng: np.random.Generator, batch: int, tokens: int) -> Call:
    return {"input_ids": _ids(rng, batch, tokens), "attention_mask": _mask(rng, batch, tokens)}


def decoder(rng: np.random.Generator, batch: int, tokens: int) -> Call:
    return text(rng, batch, tokens) | {"use_cache": False}


def two_texts(rng: np.random.Generator, batch: int, tokens: int) -> Call:
    return decoder(rng, batch, tokens) | {"decoder_input_ids": _ids(rng, batch, 6)}


def images(rng: np.random.Generator, batch: int, size: int) -> Call:
    return {"pixel_values": torch.from_numpy(rng.standard_normal((batch, 3, size, size)).astype(np.float32))}


def sound(rng: np.random.Generator, batch: int, frames: int) -> Call:
    return {"input_features": torch.from_numpy(rng.standard_normal((batch, 20, frames)).astype(np.float32))}


TEXT = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "tokens"}}
IMAGES = {"pixel_values": {0: "batch"}}
TWO = TEXT | {"decoder_input_ids": {0: "batch"}}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 36, "decoder_sparse_step": 1}
EXPERTS |= EAGER_EXPERTS
GPT = {
    "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": MOST_TOKENS,
    "initializer_range": HIDDEN**-0.5,
} | IDS  # fmt: skip
DEEPSEEK = SMALL | EAGER_EXPERTS | {
    "num_key_value_heads": 4, "moe_intermediate_size": 36, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "n_shared_experts": 1, "kv_lora_rank": 24,
    "q_lora_rank": 40, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 20,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 12, "d_ff": INNER, "num_layers": LAYERS, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
} | IDS  # fmt: skip
# an encoder's and a decoder's layer, and scores that are not divided by the root of the heads' size
CROSSED: dict[str, Any] = {"roundings": 50, "sharpness": 12**0.5}

FAMILIES = [
    Family("llama", "LlamaForCausalLM", "LlamaConfig", GROUPED, decoder, TEXT),
    Family("qwen3", "Qwen3ForCausalLM", "Qwen3Config", GROUPED, decoder, TEXT),
    Family("qwen3-moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", GROUPED | EXPERTS, decoder, TEXT),
    Family(
        "mixtral", "MixtralForCausalLM", "MixtralConfig",
        GROUPED | EAGER_EXPERTS | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 6},
        decoder, TEXT,
    ),
    Family("deepseek-v3", "DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK, decoder, TEXT),
    Family(
        "gemma-3", "Gemma3ForCausalLM", "Gemma3TextConfig",
        GROUPED | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}, decoder, TEXT,
    ),
    Family("gpt-2", "GPT2LMHeadModel", "GPT2Config", GPT, decoder, TEXT),
    Family("phi-3", "Phi3ForCausalLM", "Phi3Config", SMALL | {"num_key_value_heads": 2}, decoder, TEXT),
    Family(
        "opt", "OPTForCausalLM", "OPTConfig",
        SMALL | {"ffn_dim": INNER, "word_embed_proj_dim": 40, "init_std": HIDDEN**-0.5}, decoder, TEXT,
    ),
    Family(
        "bloom", "BloomForCausalLM", "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 60, "n_layer": LAYERS, "n_head": 6} | IDS, decoder, TEXT,
    ),
    Family("bert", "BertModel", "BertConfig", SMALL, text, TEXT),
    Family(
        "roberta", "RobertaModel", "RobertaConfig",
        SMALL | {"max_position_embeddings": MOST_TOKENS + 2}, text, TEXT,
    ),
    Family(
        "modernbert", "ModernBertModel", "ModernBertConfig",
        SMALL | {"local_attention": 8, "global_attn_every_n_layers": 2}, text, TEXT,
    ),
    Family("t5", "T5ForConditionalGeneration", "T5Config", T5, two_texts, TWO, **CROSSED),
    Family(
        "t5-gated", "T5ForConditionalGeneration", "T5Config",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, two_texts, TWO, **CROSSED,
    ),
    Family(
        "vit", "ViTModel", "ViTConfig",
        SMALL | {"image_size": 24, "patch_size": 8}, lambda rng, b, t: images(rng, b, 24), IMAGES,
        longest=192,
    ),
    Family(
        "convnext", "ConvNextModel", "ConvNextConfig",
        {"hidden_sizes": [12, 20, 28, 36], "depths": [1, 1, 2, 1], "image_size": 64},
        lambda rng, b, t: images(rng, b, 64), IMAGES, layers=5,
    ),
    Family(
        "swin", "SwinModel", "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        lambda rng, b, t: images(rng, b, 32), IMAGES, layers=4,
    ),
    Family(
        "whisper-encoder", "WhisperEncoder", "WhisperConfig",
        {
            "vocab_size": VOCABULARY, "num_mel_bins": 20, "d_model": HIDDEN, "encoder_layers": LAYERS,
            "decoder_layers": 1,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER,
            "max_source_positions": 15, "max_target_positions": 20, "decoder_start_token_id": 1,
        } | IDS,
        lambda rng, b, t: sound(rng, b, 30), {"input_features": {0: "batch"}},
        package="transformers.models.whisper.modeling_whisper",
    ),
    Family(
        "mamba-2", "Mamba2ForCausalLM", "Mamba2Config",
        {
            "vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 12, "num_heads": 8, "head_dim": 8, "expand": 2,
            "n_groups": 2, "num_hidden_layers": LAYERS, "chunk_size": 8, "conv_kernel": 4,
        } | IDS,
        decoder, TEXT, roundings=40,
    ),
    Family(
        "minimax", "MiniMaxForCausalLM", "MiniMaxConfig",
        GROUPED | EAGER_EXPERTS | {
            "num_local_experts": 5, "num_experts_per_tok": 2, "block_size": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        decoder, TEXT, roundings=40,
    ),
    Family(
        "llama-4", "Llama4ForCausalLM", "Llama4TextConfig",
        GROUPED | EAGER_EXPERTS | {
            "intermediate_size_mlp": INNER, "num_local_experts": 4, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2, "attention_chunk_size": 8, "no_rope_layers": [1, 0],
        },
        decoder, TEXT,
    ),
    Family("deepseek-v2", "DeepseekV2ForCausalLM", "DeepseekV2Config", DEEPSEEK | {"head_dim": 8}, decoder, TEXT),
    Family(
        "gpt-oss", "GptOssForCausalLM", "GptOssConfig",
        GROUPED | EAGER_EXPERTS | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6, "rope_scaling": None,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        decoder, TEXT,
    ),
    Family("qwen2", "Qwen2ForCausalLM", "Qwen2Config", GROUPED, decoder, TEXT),
    Family("mistral", "MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 6}, decoder, TEXT),
    Family(
        "stablelm", "StableLmForCausalLM", "StableLmConfig",
        SMALL | {"num_key_value_heads": 2, "partial_rotary_factor": 0.5, "hidden_size": 64, "qk_layernorm": True},
        decoder, TEXT,
    ),
    Family(
        "falcon", "FalconForCausalLM", "FalconConfig",
        SMALL | {"ffn_hidden_size": INNER, "new_decoder_architecture": False, "multi_query": True}, decoder, TEXT,
    ),
    Family(
        "cohere", "CohereForCausalLM", "CohereConfig", GROUPED | {"hidden_size": 64, "use_qk_norm": True}, decoder, TEXT
    ),
    Family("olmo-2", "Olmo2ForCausalLM", "Olmo2Config", SMALL | {"num_key_value_heads": 2}, decoder, TEXT),
    Family(
        "granite", "GraniteForCausalLM", "GraniteConfig",
        SMALL | {"num_key_value_heads": 2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}, decoder, TEXT,
    ),
    Family(
        "smollm-3", "SmolLM3ForCausalLM", "SmolLM3Config",
        SMALL | {"num_key_value_heads": 2, "no_rope_layer_interval": 2}, decoder, TEXT,
    ),
]  # fmt: skip
NAMED = {family.name: family for family in FAMILIES}
