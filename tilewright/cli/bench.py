"""`tilewright bench MODEL -p 512 -n 128`: how fast a prompt is read and an answer written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright.cli.generate import KVType, ModelFolder
from tilewright.cli.language_folder import LanguageFolder, require_kv_type
from tilewright.cli.options import Threads

if TYPE_CHECKING:
    from tilewright.runtime.generation.language_model import LanguageModel

PromptTokens = Annotated[int, typer.Option("-p", "--prompt", metavar="N", min=1, help="Tokens of a prompt.")]
AnswerTokens = Annotated[int, typer.Option("-n", "--tokens", metavar="N", min=1, help="Tokens of an answer.")]
Requests = Annotated[int, typer.Option("-r", "--requests", metavar="N", min=1, help="Requests at the same time.")]
Rounds = Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Measured rounds, after one that is not.")]


@dataclass(frozen=True)
class Round:
    """Seconds of one round: until every request had its first token, and from there to the end."""

    reading: float
    writing: float


def bench(
    model: ModelFolder,
    prompt: PromptTokens = 512,
    tokens: AnswerTokens = 128,
    requests: Requests = 1,
    rounds: Rounds = 5,
    kv_dtype: KVType = "model",
    threads: Threads = None,
) -> None:
    """Tokens a second of prompts and of answers, with their spread."""
    require_kv_type(kv_dtype)
    folder = LanguageFolder.of(model)
    folder.require_room(prompt, tokens)
    lm = folder.compiled(kv_dtype, threads)
    show_rounds(measure(lm, prompt, tokens, requests, rounds), prompt, tokens, requests)


def measure(
    lm: LanguageModel,
    prompt: int,
    tokens: int,
    requests: int = 1,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Round]:
    """Rounds of random prompts, each read once: none finds its prefix in the cache. The first is thrown away.

    Sizes are from 1 on. Raises PromptError and CacheFullError where the model does not hold them.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    found = []
    for _ in range(rounds + 1):
        prompts = rng.integers(0, lm.program.layout.vocabulary, (requests, prompt)).tolist()
        begin = clock()
        # an end token would shorten a round
        reads = bool(lm.program.layout.source_tokens)
        handles = [
            lm.current.submit([] if reads else ids, source=ids if reads else (), max_new_tokens=tokens, end=())
            for ids in prompts
        ]
        while not all(handle.tokens for handle in handles):
            lm.current.step()
        first = clock()
        for handle in handles:
            handle.result()
        found.append(Round(first - begin, clock() - first))
    return found[1:]


def show_rounds(rounds: list[Round], prompt: int, tokens: int, requests: int) -> None:
    """A table on stdout: medians, and the slowest and fastest round."""
    import statistics

    from tilewright.cli.tables import show

    rows = []
    for name, count, seconds in (
        (f"prompt {prompt}", requests * prompt, [each.reading for each in rounds]),
        (f"answer {tokens}", requests * (tokens - 1), [each.writing for each in rounds]),
    ):
        if count:
            rates = sorted(count / max(each, 1e-9) for each in seconds)
            rows.append((name, requests, f"{statistics.median(seconds):.4f}", *(f"{rate:.1f}" for rate in (
                statistics.median(rates), rates[0], rates[-1]
            ))))  # fmt: skip
    show(("what", "requests", "seconds", "tokens/s", "least", "most"), rows, numbers=(1, 2, 3, 4, 5))
