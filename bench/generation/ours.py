"""Our generation: a language model with its cache in pages of 16, one in one piece, and attention over long caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
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
        self._long = {
            name: _LongStep(self._compiled(few, LONG, 1, tw.KVCache(dtype=dtype)))
            for name, dtype in (("bf16", "model"), ("int8", "int8"), ("int4", "int4"))
        }
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
        return getattr(self, f"_{what}")()  # type: ignore[no-any-return]

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
        handles = [engine.submit(ids, max_new_tokens=ANSWER + 2, end=()) for ids in self._prompts(requests)]
        while not all(handle.tokens for handle in handles):
            engine.step()
        seconds = []
        for _ in range(ANSWER):
            begin = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - begin)
        for handle in handles:
            handle.cancel()
        return statistics.median(seconds)

    def _paged(self) -> dict[str, float]:
        """token: seconds. kernels: those of a step in which threads computed."""
        token = self._written("paged", 1)
        return {"token": token, "kernels": self._kernels("paged")}

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
        seconds = []
        for _ in range(_TIMED):
            begin = time.perf_counter()
            self._read()
            seconds.append(time.perf_counter() - begin)
        return {"seconds": statistics.median(seconds)}

    def _attention(self) -> dict[str, float]:
        return {name: step.attention() for name, step in self._long.items()}

    def _kernels(self, name: str) -> float:
        """Seconds of all steps of one token's call, as the driver's clock has them."""
        lm = self._models[name]
        with _seen(lm.program) as calls:
            self._written_once(name)
        return min(_steps(lm, calls[-1]) for _ in range(_TIMED))

    def _written_once(self, name: str) -> None:
        handle = self._models[name].current.submit(self._prompts(1)[0], max_new_tokens=ANSWER, end=())
        while len(handle.tokens) < ANSWER // 2:
            self._models[name].current.step()
        handle.cancel()

    def _token_bytes(self) -> float:
        """Bytes that a step has to move for one token in the middle of an answer, as the report counts them."""
        lm = self._models["paged"]
        with _seen(lm.program) as calls:
            self._written_once("paged")
        sizes = lm.compiled.executable.profile(*lm.program.arguments(calls[-1]))[1].sizes
        return float(sum(row.bound or 0 for row in lm.report.at(**sizes).rows))


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


def _steps(lm: Any, inputs: Any, name: str = "") -> float:
    """Seconds of the steps of a call whose name contains this."""
    _, profile = lm.compiled.executable.profile(*lm.program.arguments(inputs))
    return float(sum(step.seconds for step in profile.steps if name in step.name))


@contextmanager
def _seen(program: Any) -> Iterator[list[Any]]:
    """The inputs of the calls made meanwhile."""
    calls: list[Any] = []
    run = program.step

    def step(inputs: Any) -> Any:
        calls.append(inputs)
        return run(inputs)

    program.step = step
    try:
        yield calls
    finally:
        del program.step
