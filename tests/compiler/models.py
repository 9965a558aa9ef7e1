"""Small models that the tests of the compiler share, and the arguments they are compiled with."""

from __future__ import annotations

from typing import Any

import torch

import tilewright as tw


class Mlp(torch.nn.Module):
    """Two layers, a norm, a buffer that no state dict holds, and a layer that forward does not read."""

    def __init__(self, width: int = 24, hidden: int = 40, out: int = 7) -> None:
        super().__init__()
        self.up = torch.nn.Linear(width, hidden)
        self.norm = torch.nn.LayerNorm(hidden)
        self.down = torch.nn.Linear(hidden, out)
        self.unused = torch.nn.Linear(3, 3)
        self.register_buffer("basis", torch.randn(out, 70), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.gelu(self.norm(self.up(x)))) @ (self.basis * 2)


def mlp(seed: int, **sizes: int) -> Mlp:
    torch.manual_seed(seed)
    return Mlp(**sizes).eval()


def compile_mlp(model: Mlp, largest: int = 33, **options: Any) -> Any:
    return tw.compile(model, (torch.randn(3, 24),), dims={"x": (tw.Dim("batch", 1, largest), 24)}, **options)


def bert(seed: int, layers: int = 2) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=71, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config).eval()


def llama(seed: int, layers: int = 2) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=83, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=56, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def dims(batch: int = 6, tokens: int = 40) -> tuple[tw.Dim, tw.Dim]:
    return tw.Dim("batch", 1, batch), tw.Dim("tokens", 1, tokens)


def token_inputs(batch: int, tokens: int, vocabulary: int = 71) -> dict[str, torch.Tensor]:
    mask = (torch.rand(batch, tokens) < 0.8).long()
    mask[:, 0] = 1
    return {"input_ids": torch.randint(0, vocabulary, (batch, tokens)), "attention_mask": mask}


def compile_bert(model: torch.nn.Module, **options: Any) -> Any:
    return tw.compile(
        model, kwargs=token_inputs(2, 8), dims=dict.fromkeys(("input_ids", "attention_mask"), dims()), **options
    )


def compile_llama(model: torch.nn.Module, **options: Any) -> Any:
    example = {**token_inputs(2, 8), "use_cache": False}
    return tw.compile(model, kwargs=example, dims=dict.fromkeys(("input_ids", "attention_mask"), dims()), **options)


def close(found: torch.Tensor, wanted: torch.Tensor, steps: int = 512) -> None:
    """Equal but for rounding: `steps` units in the last place of f32 at the largest magnitude."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    bound = steps * torch.finfo(torch.float32).eps * max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(found, wanted, atol=bound, rtol=0, equal_nan=True)
