"""compile_lm with codes for old keys and values: bits by a row's own tokens alone, and bytes by their formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.test_language_model import logits
from tests.models.language_models import build, prompt
from tilewright.errors import OptionError

MOST, PAGE, RECENT = 160, 8, 16


@pytest.fixture(scope="module")
def model() -> Any:
    return build("Llama", 5, num_hidden_layers=1)


@pytest.fixture(scope="module")
def lm(model: Any) -> Any:
    kv = tw.KVCache(dtype="int4", page=PAGE, recent=RECENT)
    return tw.compile_lm(model, max_tokens=MOST, max_batch=7, max_step=96, kv=kv)


def test_recent_tokens_are_seen_as_they_are_and_old_ones_nearly(lm: Any, model: Any, rng: np.random.Generator) -> None:
    ids = prompt(rng, 120)
    with torch.inference_mode():
        wanted = model.double()(torch.tensor([ids])).logits[0].numpy()
    model.float()
    far = np.abs(lm.logits(ids) - wanted).max(axis=1) / np.abs(wanted).max()
    # a token sees 3 pages as they are: its own and RECENT tokens' before it
    assert far[: 3 * PAGE].max() < 1e-4
    assert 1e-4 < far[3 * PAGE :].max() < 0.3


def test_chunks_and_neighbours_do_not_change_a_bit(lm: Any, rng: np.random.Generator) -> None:
    texts = [prompt(rng, n) for n in (130, 61, 5)]
    alone = [logits(lm.program, [text], [96])[0] for text in texts]
    for chunks in ([1, 1, 1], [16, 7, 2], [61, 20, 5]):
        found = logits(lm.program, texts, chunks)
        assert [x.tobytes() for x in found] == [x.tobytes() for x in alone]


def test_a_prefix_that_is_taken_up_again_does_not_change_the_text(lm: Any, rng: np.random.Generator) -> None:
    shared, end = prompt(rng, 64), prompt(rng, 3)
    fresh = list(lm.generate(shared + end, max_new_tokens=20, end=(), salt="alone"))
    lm.current.submit(shared + end, max_new_tokens=20, end=()).result()
    again = lm.current.submit(shared + end, max_new_tokens=20, end=())
    assert again.result() == fresh
    assert again.reused == 64
    # all of a prompt's pages are found but its last token, which is computed again into a copy of the page
    whole = lm.current.submit(shared, max_new_tokens=20, end=())
    assert whole.result() == list(lm.generate(shared, max_new_tokens=20, end=(), salt="whole"))


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"threads": 1}, {"threads": 2}], ids=str)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_threads_do_not_change_a_bit(
    model: Any, rng: np.random.Generator, changed: dict[str, Any], dtype: Any, precision: str
) -> None:
    kv = tw.KVCache(dtype=dtype, page=3, recent=10)
    one, two = (
        tw.compile_lm(model, max_tokens=MOST, max_step=96, kv=kv, precision=precision, **more) for more in ({}, changed)
    )
    ids = prompt(rng, 140)
    assert logits(one.program, [ids], [7])[0].tobytes() == logits(two.program, [ids], [96])[0].tobytes()


def test_the_cache_is_as_large_as_its_formula(lm: Any) -> None:
    # 2 key heads of 16 numbers, keys and values: codes of half a byte, and scale and lowest number of 2 bytes each
    groups = {group.name: group for group in lm.program.layout.groups}
    assert groups["full"].token_bytes == 2 * (2 * 16 // 2 + 4)
    assert groups["full"].page_extra == 2 * 16 * 4
    assert groups["near"].token_bytes == 2 * 2 * 16 * 4
    layout = lm.program.layout
    held = sum(layout.page_bytes(g) * group.pages for g, group in enumerate(layout.groups))
    assert sum(state.spec.bytes.evaluate({}) for state in lm.compiled.executable.program.states) == held
    assert "in codes of 4 bits" in " ".join(str(lm.report).split())


def test_codes_that_cannot_be_are_told() -> None:
    with pytest.raises(OptionError, match="int3"):
        tw.KVCache(dtype="int3")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="a page at a time"):
        tw.KVCache(dtype="int8", layout="contiguous")
    with pytest.raises(OptionError, match="recent=0"):
        tw.KVCache(dtype="int8", recent=0)
