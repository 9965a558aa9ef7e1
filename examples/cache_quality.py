"""What a smaller cache costs in quality: a trained model's perplexity with its keys and values as codes, and given up.

    python examples/cache_quality.py [--folder DIR] [--windows N]

The model is that of byte_model.py, trained where it is not there yet; the text is what it was not trained on, in
windows as long as the model's context. A model looks far back most where something is said again, so each table
has a second text, whose windows end in a passage of their own beginning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import byte_model
import numpy as np
import typer

import tilewright as tw

# tokens of a window that are the prompt; what follows them is predicted
PROMPT, ANSWER = 384, 128
# where a passage lies that is said again
SAID = 192
# keys and values beyond so many tokens are codes: all but a window's last pages
RECENT = 16
BUDGETS = (1.0, 0.5, 0.25, 0.1)
SCORERS: tuple[tuple[str, float | None], ...] = (("recent", None), ("attention", None), ("attention", 0.9))


@dataclass(frozen=True)
class Row:
    """A cache and the perplexities with it, of text and of what is said again; apart: how much they are above those of
    the cache that loses nothing.
    """

    cache: str
    perplexity: tuple[float, float]
    apart: tuple[float, float]


def windows(folder: Path, count: int, *, again: bool = False) -> list[list[int]]:
    """So many windows of text that the model has not seen, evenly apart. again: they end in a part of their prompt."""
    text = (folder / "held_out.txt").read_bytes()
    length = PROMPT + ANSWER
    starts = np.linspace(0, len(text) - length, count).astype(int)
    # ids are bytes
    found = [list(text[start : start + length]) for start in starts.tolist()]
    return [[*one[:PROMPT], *one[SAID : SAID + ANSWER]] for one in found] if again else found


def perplexity(lm: Any, texts: Sequence[list[int]]) -> float:
    """Of what follows the prompt of each text, with a cache that gives up tokens of the prompt, if it does."""
    nats = 0.0
    for text in texts:
        found = lm.logits(text, prompt=PROMPT)[PROMPT - 1 : -1].astype(np.float64)
        found -= found.max(-1, keepdims=True)
        nats += float((np.log(np.exp(found).sum(-1)) - found[np.arange(ANSWER), text[PROMPT:]]).sum())
    return math.exp(nats / (len(texts) * ANSWER))


def rows(folder: Path, count: int, caches: Iterable[tuple[str, Any]]) -> Iterator[Row]:
    """A row for each cache. The first one is what the others are compared with."""
    texts, base = (windows(folder, count), windows(folder, count, again=True)), None
    for name, kv in caches:
        lm = tw.compile_lm(str(folder), kv=kv, max_batch=1)
        plain, again = (perplexity(lm, each) for each in texts)
        base = base or (plain, again)
        yield Row(name, (plain, again), (plain / base[0] - 1, again / base[1] - 1))


def coded() -> list[tuple[str, Any]]:
    """Keys and values as codes."""
    kinds: tuple[Any, ...] = ("model", "int8", "int4")
    return [(kind, tw.KVCache(dtype=kind, recent=RECENT)) for kind in kinds]


def given_up() -> Iterator[tuple[str, Any]]:
    """Tokens of the prompt given up."""
    yield "all tokens", tw.KVCache()
    for budget, (scorer, merge) in product(BUDGETS, SCORERS):
        merged = "" if merge is None else f", merged from a cosine of {merge} on"
        kept = tw.Compression(budget=budget, scorer=scorer, merge=merge, recent=RECENT)
        yield f"{budget:.0%}, {scorer}{merged}", tw.KVCache(compress=kept)


def main(
    folder: Annotated[Path | None, typer.Option(help="Where the model is.", show_default="in the cache")] = None,
    count: Annotated[int, typer.Option("--windows", help="Windows of text.")] = 100,
) -> None:
    at = byte_model.prepared(folder or byte_model.default_folder())
    for caches in (coded(), given_up()):
        print("| cache | perplexity | more | said again | more |\n| --- | ---: | ---: | ---: | ---: |")
        for row in rows(at, count, caches):
            cells = [f"{found:.4f} | {apart:+.3%}" for found, apart in zip(row.perplexity, row.apart, strict=True)]
            print(f"| {row.cache} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
