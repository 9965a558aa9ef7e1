"""Models of transformers under torch.compile(model, backend="tilewright"): varying sizes, caches that grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._dynamo as dynamo

from tests.compiler.test_torch_backend import compiled, counted, fresh, same, tensor  # noqa: F401  (fresh: a fixture)


def test_keys_and_values_that_grow_by_symbols_of_their_own(rng: np.random.Generator) -> None:
    """torch's rule of attention compares no sizes of keys, values and masks: they are held equal by a guard of ours."""

    def step(q: torch.Tensor, old: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, ...]:
        keys, values = torch.cat([old, q], -2), torch.cat([v, q], -2)
        whole = torch.nn.functional.scaled_dot_product_attention(q, keys, values)
        return torch.nn.functional.scaled_dot_product_attention(q, keys, values, seen), whole, keys.sum(-1)

    run = compiled(step)
    for past in (3, 4, 9):
        q, old, v = tensor(rng, 1, 2, 1, 8), tensor(rng, 1, 2, past, 8), tensor(rng, 1, 2, past, 8)
        seen = torch.arange(past + 1)[None, None, None] != 1
        same(run(q, old, v, seen), step(q, old, v, seen))
    assert counted("graphs") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertModel", "LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"])
def test_transformers_models_at_any_batch_and_length(name: str, rng: np.random.Generator) -> None:
    import transformers

    kind = getattr(transformers, name)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = kind.config_class(vocab_size=100, bos_token_id=0, eos_token_id=99, pad_token_id=99, **sizes)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = 2
    model = kind(config).eval()
    generates = name != "BertModel"
    for extra in ({}, {"use_cache": False}) if generates else ({},):
        for masked in (False, True):
            dynamo.reset()
            run = compiled(model)
            for shape in ((2, 5), (3, 9), (1, 7)):
                given = {"input_ids": torch.from_numpy(rng.integers(0, 99, shape)), **extra}
                if masked:
                    given["attention_mask"] = torch.ones(shape, dtype=torch.int64)
                    given["attention_mask"][0, : shape[0] - 1] = 0
                with torch.no_grad():
                    same(run(**given)[0], model(**given)[0])
    if generates:
        dynamo.reset()
        ids = torch.from_numpy(rng.integers(0, 99, (2, 5)))
        how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
        expected = model.generate(ids, **how)
        model.forward = compiled(model.forward)
        assert torch.equal(model.generate(ids, **how), expected)
