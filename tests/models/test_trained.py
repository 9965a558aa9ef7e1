"""Caches of codes on a model that has learnt something: how much less it knows of a text. Trains for minutes, once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import tilewright as tw
from tilewright.cli.eval import surprise
from tilewright.runtime.generation.language_model import LanguageModel

EXAMPLE = Path(__file__).parents[2] / "examples" / "byte_model.py"
BYTES = 40_000


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("byte_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder() -> Path:
    module = example()
    found: Path = module.prepared(module.default_folder())
    return found


def perplexity(folder: Path, kv: tw.KVCache) -> float:
    lm: LanguageModel = tw.compile_lm(str(folder), kv=kv)
    text = (folder / "held_out.txt").read_bytes()[:BYTES].decode(errors="ignore")
    return surprise(lm, text).perplexity


@pytest.mark.slow
def test_codes_cost_little_of_what_a_model_knows(folder: Path) -> None:
    as_it_is = perplexity(folder, tw.KVCache())
    # less than three bits a byte: it has learnt from its text
    assert as_it_is < 8
    assert abs(perplexity(folder, tw.KVCache(dtype="int8", recent=16)) / as_it_is - 1) < 0.001
    assert abs(perplexity(folder, tw.KVCache(dtype="int4", recent=16)) / as_it_is - 1) < 0.01


@pytest.mark.slow
def test_its_tokenizer_gives_the_bytes_of_a_text(folder: Path) -> None:
    lm = tw.compile_lm(str(folder))
    text = "def f(x):\n\treturn 'äß€' + x\n"
    assert lm.encode(text) == list(text.encode())
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode(list(text.encode())) == text
