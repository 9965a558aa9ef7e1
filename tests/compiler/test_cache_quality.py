"""A trained model's perplexity with a smaller cache: that of codes is nearly its own, and far tokens matter to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import tilewright as tw

EXAMPLES = Path(__file__).parents[2] / "examples"
WINDOWS = 40


@pytest.fixture(scope="module")
def quality() -> Any:
    """examples/cache_quality.py as a module."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import cache_quality
    finally:
        sys.path.remove(str(EXAMPLES))
    return cache_quality


@pytest.fixture(scope="module")
def folder(quality: Any) -> Path:
    """The trained model: some minutes where it is not in the cache."""
    made: Path = quality.byte_model.prepared(quality.byte_model.default_folder())
    return made


@pytest.mark.slow
def test_codes_cost_little_perplexity(quality: Any, folder: Path) -> None:
    _, int8, int4 = quality.coded(folder, WINDOWS)
    assert abs(int8.apart) < 0.001, int8
    assert abs(int4.apart) < 0.01, int4


@pytest.mark.slow
def test_the_model_looks_back_so_that_what_is_kept_matters(quality: Any, folder: Path) -> None:
    texts = quality.windows(folder, WINDOWS)

    def found(**said: Any) -> float:
        kv = tw.KVCache(compress=tw.Compression(recent=quality.RECENT, **said) if said else None)
        perplexity: float = quality.perplexity(folder, kv, texts, quality.PROMPT)
        return perplexity

    whole, all_kept = found(), found(budget=1.0)
    assert all_kept == whole
    looked_at, latest = (found(budget=0.25, scorer=scorer) for scorer in ("attention", "recent"))
    assert latest > 1.02 * whole
    assert looked_at < latest
