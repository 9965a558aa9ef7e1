"""transformers' own `generate`, eager, the whole model in bf16, greedy."""

from __future__ import annotations

import time
from typing import Any

from bench.generation.sizes import ANSWER, PROMPT


class TransformersGeneration:
    """Eager PyTorch behind `generate` with its dynamic cache."""

    def prepare(self) -> dict[str, Any]:
        import transformers

        from bench.models import decoder

        self._model: Any = decoder.build().decoder.bfloat16().eval()
        self.measure("generate")
        return {"version": transformers.__version__}

    def measure(self, what: str) -> dict[str, float]:
        """Seconds until the first token after a prompt, and of every further one."""
        import torch

        from bench.models import decoder

        ids = decoder.arguments({"batch": 1, "tokens": PROMPT})["input_ids"]
        given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        seconds = []
        for count in (1, 1 + ANSWER):
            begin = time.perf_counter()
            with torch.inference_mode():
                self._model.generate(ids, min_new_tokens=count, max_new_tokens=count, **given)
            seconds.append(time.perf_counter() - begin)
        return {"first": seconds[0], "token": (seconds[1] - seconds[0]) / ANSWER}
