"""What a smaller cache costs in quality: a trained model's perplexity with its keys and values as codes, and given up.

    python examples/cache_quality.py [--folder DIR] [--windows N]

The model is that of byte_model.py, trained where it is not there yet; the text is what it was not trained on, in
windows as long as the model's context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
# keys and values beyond so many tokens are codes: all but a window's last pages
RECENT = 16
BUDGETS = (1.0, 0.5, 0.25, 0.1)
SCORERS: tuple[tuple[str, float | None], ...] = (("recent", None), ("attention", None), ("attention", 0.9))


@dataclass(frozen=True)
class Row:
    """A cache and the perplexity with it; apart: what it is more than that of the cache without any loss."""

    cache: str
    perplexity: float
    apart: float


def windows(folder: Path, count: int) -> list[list[int]]:
    """So many windows of text that the model has not seen, evenly apart."""
    text = (folder / "held_out.txt").read_bytes()
    length = PROMPT + ANSWER
    starts = np.linspace(0, len(text) - length, count).astype(int)
    # ids are bytes
    return [list(text[start : start + length]) for start in starts.tolist()]


def perplexity(folder: Path, kv: Any, texts: Sequence[list[int]], first: int) -> float:
    """Of each text's tokens from `first` on, with a cache that gives up tokens after PROMPT of them, if it does."""
    lm = tw.compile_lm(str(folder), kv=kv, max_batch=1)
    nats, count = 0.0, 0
    for text in texts:
        rows = lm.logits(text, prompt=PROMPT)[first - 1 : -1].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), text[first:]]
        nats += float((np.log(np.exp(rows).sum(-1)) - chosen).sum())
        count += len(rows)
    return math.exp(nats / count)


def coded(folder: Path, count: int) -> list[Row]:
    """Keys and values as codes: all tokens of a window, those at its beginning with little to look back on included."""
    texts = windows(folder, count)
    kinds: tuple[Any, ...] = ("model", "int8", "int4")
    found = [perplexity(folder, tw.KVCache(dtype=kind, recent=RECENT), texts, 1) for kind in kinds]
    return [Row(kind, each, each / found[0] - 1) for kind, each in zip(kinds, found, strict=True)]


def given_up(folder: Path, count: int) -> Iterator[Row]:
    """Tokens of the prompt given up: what follows the prompt."""
    texts = windows(folder, count)
    base = perplexity(folder, tw.KVCache(), texts, PROMPT)
    for budget, (scorer, merge) in product(BUDGETS, SCORERS):
        kept = tw.Compression(budget=budget, scorer=scorer, merge=merge, recent=RECENT)
        found = perplexity(folder, tw.KVCache(compress=kept), texts, PROMPT)
        merged = "" if merge is None else f", merged from a cosine of {merge} on"
        yield Row(f"{budget:.0%}, {scorer}{merged}", found, found / base - 1)


def main(
    folder: Annotated[Path | None, typer.Option(help="Where the model is.", show_default="in the cache")] = None,
    count: Annotated[int, typer.Option("--windows", help="Windows of text.")] = 100,
) -> None:
    at = byte_model.prepared(folder or byte_model.default_folder())
    for rows in (coded(at, count), given_up(at, count)):
        print("| cache | perplexity | more than uncoded |\n| --- | ---: | ---: |")
        for row in rows:
            print(f"| {row.cache} | {row.perplexity:.4f} | {row.apart:+.3%} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
