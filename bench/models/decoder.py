"""A Llama-shaped decoder of half a billion weights, drawn at random; logits of each prompt's last token."""

from __future__ import annotations

from collections.abc import Mapping

import torch

VOCABULARY = 32000


class LastLogits(torch.nn.Module):
    """What a prefill is asked for: the logits after the last token."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.decoder(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits
        return found


def build(layers: int = 28, positions: int = 4096) -> LastLogits:
    """Hidden 1024, FFN 3072, 28 layers, 16 heads, 8 heads of keys and values, head dim 128."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=VOCABULARY, max_position_embeddings=positions,
    )  # fmt: skip
    torch.manual_seed(0)
    return LastLogits(transformers.LlamaForCausalLM(config))


def arguments(sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Fixed ids."""
    generator = torch.Generator().manual_seed(sizes["tokens"])
    return {"input_ids": torch.randint(VOCABULARY, (sizes["batch"], sizes["tokens"]), generator=generator)}
