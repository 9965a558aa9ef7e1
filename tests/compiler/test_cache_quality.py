"""A trained model's perplexity with a smaller cache: with codes nearly its own, with all tokens exactly."""

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
    _, int8, int4 = quality.rows(folder, WINDOWS, quality.coded())
    assert max(map(abs, int8.apart)) < 0.001, int8
    assert max(map(abs, int4.apart)) < 0.01, int4


@pytest.mark.slow
def test_giving_up_costs_nothing_where_nothing_is_given_up(quality: Any, folder: Path) -> None:
    def kept(budget: float) -> Any:
        return tw.KVCache(compress=tw.Compression(budget=budget, recent=1, sinks=0, scorer="recent"))

    caches = [("all", tw.KVCache()), ("100%", kept(1.0)), ("next to nothing", kept(0.005))]
    whole, all_of_them, little = quality.rows(folder, WINDOWS, caches)
    assert all_of_them.perplexity == whole.perplexity
    # what is kept matters: the first bytes after the prompt are then predicted from one or two before them
    assert little.apart[0] > 0.01, little
