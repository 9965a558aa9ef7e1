"""Our generation: a language model with its cache in pages of 16, one in one piece, and attention over long caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.generation.sizes import ANSWER, LONG, LONG_LAYERS, PROMPT, REQUESTS, TOKENS

_TIMED = 3  # of what takes less than a token


class OurGeneration:
    """Programs and their caches: `paged` and `contiguous` of the whole model, `long` of few layers and many keys."""

    def __init__(self) -> None:
        self._seed = 0

    def prepare(self) -> dict[str, Any]:
        import tilewright as tw
        from bench.cases import Case
        from bench.models import arguments, axes, build, decoder, example

        model = decoder.build().decoder.bfloat16().eval()
        settings = {"paged": tw.KVCache(page=16), "contiguous": tw.KVCache(layout="contiguous")}
        self._models = {name: self._compiled(model, TOKENS, REQUESTS, kv) for name, kv in settings.items()}
        few = decoder.build(layers=LONG_LAYERS, positions=LONG).decoder.bfloat16().eval()
        kept = {"bf16": tw.KVCache(), "int8": tw.KVCache(dtype="int8"), "int4": tw.KVCache(dtype="int4")}
        self._long = {name: _LongStep(self._compiled(few, LONG, 1, kv)) for name, kv in kept.items()}
        del model, few
        case = Case("llama-0.5b", (("batch", 1), ("tokens", PROMPT)), "bf16")
        reading = tw.compile(
            build(case), kwargs=example(case), dims=axes(case, tw.Dim), precision=case.dtype, cache=False
        )
        given = arguments(case)
        self._read = lambda: reading(**given)
        for what in ("paged", "contiguous", "attention", "together", "first", "prefill"):
            self.measure(what)
        return {"version": tw.__version__, "token_bytes": self._token_bytes()}

    def _compiled(self, model: Any, tokens: int, batch: int, kv: Any) -> Any:
        import tilewright as tw

        return tw.compile_lm(model, max_tokens=tokens, max_batch=batch, kv=kv, cache=False)

    def measure(self, what: str) -> dict[str, float]:
        found: dict[str, float] = getattr(self, f"_{what}")()
        return found

    def _prompts(self, count: int) -> list[list[int]]:
        """New ones each time: none finds its prefix in the cache."""
        import numpy as np

        from bench.models.decoder import VOCABULARY

        self._seed += 1
        found: list[list[int]] = np.random.default_rng(self._seed).integers(0, VOCABULARY, (count, PROMPT)).tolist()
        return found

    def _written(self, name: str, requests: int) -> float:
        """Seconds of a step in which every request writes a token, after all prompts are read."""
        engine = self._models[name].current
        with self._writing(name, requests):
            return statistics.median(_seconds(engine.step) for _ in range(ANSWER))

    @contextmanager
    def _writing(self, name: str, requests: int) -> Iterator[None]:
        """Requests that have read their prompts, and write a token a step."""
        engine = self._models[name].current
        handles = [engine.submit(ids, max_new_tokens=2 * ANSWER + 2, end=()) for ids in self._prompts(requests)]
        while not all(handle.tokens for handle in handles):
            engine.step()
        yield
        for handle in handles:
            handle.cancel()

    def _paged(self) -> dict[str, float]:
        """token: seconds. kernels: those of a step in which kernels ran; steps with and without a clock in turns."""
        lm = self._models["paged"]
        tokens, kernels = [], []
        with self._writing("paged", 1):
            for _ in range(ANSWER):
                tokens.append(_seconds(lm.current.step))
                with _clocked(lm) as clocked:
                    lm.current.step()
                kernels += clocked
        return {"token": statistics.median(tokens), "kernels": statistics.median(kernels)}

    def _contiguous(self) -> dict[str, float]:
        return {"token": self._written("contiguous", 1)}

    def _together(self) -> dict[str, float]:
        return {"step": self._written("paged", REQUESTS)}

    def _first(self) -> dict[str, float]:
        """Seconds from a request to its first token, nothing else running."""
        engine = self._models["paged"].current
        seconds = []
        for _ in range(_TIMED):
            (ids,) = self._prompts(1)
            begin = time.perf_counter()
            handle = engine.submit(ids, max_new_tokens=2, end=())
            while not handle.tokens:
                engine.step()
            seconds.append(time.perf_counter() - begin)
            handle.cancel()
        return {"first": statistics.median(seconds)}

    def _prefill(self) -> dict[str, float]:
        """Seconds of the same prompt in the program that only reads."""
        return {"seconds": statistics.median(_seconds(self._read) for _ in range(_TIMED))}

    def _attention(self) -> dict[str, float]:
        return {name: step.attention() for name, step in self._long.items()}

    def _token_bytes(self) -> float:
        """Bytes that a step has to move for one token in the middle of an answer: what the report counts, and of keys
        and values, which it counts by the size of the page tables, those of the tokens that are there."""
        lm = self._models["paged"]
        rows = lm.report.at(**{dim.name: 1 for dim in lm.report.code.program.dims}).rows
        alone = sum(row.bound or 0 for row in rows if "paged_attention" not in row.kernel)
        return float(alone + (PROMPT + ANSWER) * sum(group.token_bytes for group in lm.program.layout.groups))


class _LongStep:
    """One token's step after LONG - 1 others, whose keys and values are drawn: only their number decides its time."""

    def __init__(self, lm: Any) -> None:
        import torch

        from tilewright.runtime.generation.holding import Holding, chain_root
        from tilewright.runtime.generation.step_inputs import Segment, step_inputs

        self._lm = lm
        states, generator = lm.compiled.executable.state, torch.Generator().manual_seed(0)
        for name in states:
            kept = states[name]
            if kept.dtype.name == "uint8":
                states[name] = torch.randint(256, kept.shape, dtype=torch.uint8, generator=generator)
            else:
                states[name] = (torch.rand(kept.shape, generator=generator) / 100).bfloat16()
        holding, layout = Holding(lm.current.book, chain_root("")), lm.program.layout
        tokens = [0] * LONG
        for end in [*range(layout.step_tokens, LONG - 1, layout.step_tokens), LONG - 1]:
            if not holding.reserve(end):
                raise SystemExit(f"the cache does not hold {LONG} tokens")
            holding.commit(tokens, end)
        holding.reserve(LONG)
        self._inputs = step_inputs(layout, [Segment(holding, [0], 1)])

    def attention(self) -> float:
        """Seconds of all attention kernels."""
        return statistics.median(_steps(self._lm, self._inputs, "attention") for _ in range(_TIMED))


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _steps(lm: Any, inputs: Any, name: str = "") -> float:
    """Seconds of the steps of a call whose name contains this."""
    _, profile = lm.compiled.executable.profile(*lm.program.arguments(inputs))
    return float(sum(step.seconds for step in profile.steps if name in step.name))


@contextmanager
def _clocked(lm: Any) -> Iterator[list[float]]:
    """Seconds in kernels, as the driver's clock has them, of the calls made meanwhile."""
    found: list[float] = []
    program = lm.program

    def step(inputs: Any) -> Any:
        logits, profile = lm.compiled.executable.profile(*program.arguments(inputs))
        found.append(float(sum(step.seconds for step in profile.steps)))
        return logits

    program.step = step
    try:
        yield found
    finally:
        del program.step
