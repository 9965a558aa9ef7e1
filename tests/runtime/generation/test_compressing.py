"""Requests that give up tokens: what is left depends on their own tokens alone, and every page comes back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.runtime.generation.echo_program import EchoProgram, layout
from tilewright.errors import CacheFullError, OptionError, StepProgramError
from tilewright.runtime.generation.compression import Compression
from tilewright.runtime.generation.compressor import CompressedLayer, Compressor
from tilewright.runtime.generation.engine import Engine
from tilewright.runtime.generation.language_model import LanguageModel
from tilewright.runtime.generation.sampler import Sampler
from tilewright.runtime.generation.speculation import PromptLookup
from tilewright.runtime.generation.step import CacheGroup

RECENT = 3


def program(pages: int, **said: Any) -> GivingUp:
    compression = Compression(**{"budget": 0.4, "sinks": 1, "recent": RECENT} | said)
    groups = (
        CacheGroup("full", pages, 8, compact=True),
        CacheGroup("ring", 40, 8, window=6),
        CacheGroup("queries", 40, 8, window=RECENT + 1, observed=True),
    )
    return GivingUp(layout(groups=groups, compression=compression, max_tokens=48, page_size=4))


class GivingUp(EchoProgram):
    """Keeps what its contents decide by a hash, so that every key head might have kept something else."""

    def compressed(self, slots: np.ndarray, observed: np.ndarray, count: int) -> dict[str, np.ndarray]:
        rows = self.memory[0][slots]
        np.testing.assert_array_equal(self.memory[2][observed], rows[-RECENT:])
        scores = ((rows * 2654435761) % 10007).astype(np.float32)[None]
        assert self.layout.compression is not None
        (chosen,) = self.layout.compression.chosen(scores, 1, len(rows), count)
        assert chosen[0] == 0
        assert (np.diff(chosen) > 0).all()
        return {"rows": rows[chosen]}

    def put_back(self, slots: np.ndarray, left: Any) -> None:
        self.memory[0][slots] = left["rows"]


def draw(rng: np.random.Generator) -> tuple[list[int], int, int]:
    prompt = rng.integers(0, 2, rng.integers(1, 30)).tolist()
    return prompt, int(rng.integers(1, 48 - len(prompt))), int(rng.integers(1000))


def answer(engine: Engine, asked: tuple[list[int], int, int], **more: Any) -> Any:
    prompt, new, seed = asked
    return engine.submit(prompt, max_new_tokens=new, sampler=Sampler(temperature=1.0, seed=seed), end=(), **more)


@pytest.mark.parametrize("every", [None, 5])
@pytest.mark.parametrize("drafting", [None, PromptLookup()], ids=["plain", "guessed"])
def test_neighbours_preemption_prefixes_and_guesses_change_no_token(
    every: int | None, drafting: Any, rng: np.random.Generator
) -> None:
    # a prompt of 30 and 18 more tokens take 12 pages while it is read: two such requests do not fit
    engine = Engine(program(16, every=every), drafting=drafting)
    asked = [draw(rng) for _ in range(60)]
    handles: list[Any] = []
    while len(handles) < len(asked) or engine.live:
        if len(handles) < len(asked) and rng.integers(2):
            # who comes later goes first as often as not
            handles.append(answer(engine, asked[len(handles)], priority=int(rng.integers(3))))
        engine.step()
        pool = engine.book.pools[0]
        counted = [0] * len(pool.references)
        for request in engine._running:
            assert request.holding is not None
            for page in request.holding.pages[0].values():
                counted[page] += 1
        assert pool.references == counted
    for each, handle in zip(asked, handles, strict=True):
        alone = answer(Engine(program(40, every=every)), each).result()
        assert handle.tokens == alone
    assert engine.book.account.preempted > 0
    assert engine.book.account.reused > 0
    assert engine.book.held_bytes == 0


def test_pages_come_back_once_the_prompt_is_read(rng: np.random.Generator) -> None:
    engine = Engine(program(40))
    handle = engine.submit(rng.integers(0, 11, 30).tolist(), max_new_tokens=10, end=())
    stream, pool = iter(handle), engine.book.pools[0]
    for made in range(9):
        next(stream)
        # 12 tokens of 30 are left, and each new one but the last is among them
        assert pool.held == -(-(12 + made) // 4)
    handle.cancel()
    assert engine.book.held_bytes == 0


def test_a_cache_stays_at_its_budget_where_it_is_brought_back_to_it(rng: np.random.Generator) -> None:
    engine = Engine(program(40, budget=8, every=4))
    handle = engine.submit(rng.integers(0, 11, 10).tolist(), max_new_tokens=38, end=())
    held = [engine.book.pools[0].held for _ in handle]
    assert max(held) == 3
    assert held[10:].count(2) > 5


def test_a_budget_of_all_tokens_changes_nothing(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 11, 40).tolist()
    full = program(40)
    # the same memory seen by a program that gives up nothing
    plain = EchoProgram(layout(groups=tuple(dataclasses.replace(g, compact=False) for g in full.layout.groups)))
    wanted = LanguageModel(plain).logits(tokens)
    for lm in (LanguageModel(program(40, budget=1.0)), LanguageModel(program(40, budget=20, every=5))):
        np.testing.assert_array_equal(lm.logits(tokens, prompt=20)[:24], wanted[:24])
    np.testing.assert_array_equal(LanguageModel(program(40, budget=1.0)).logits(tokens, prompt=20), wanted)
    assert not np.array_equal(LanguageModel(full).logits(tokens, prompt=20)[20:], wanted[20:])


def test_the_next_turn_of_a_conversation_reads_its_whole_prompt_again(rng: np.random.Generator) -> None:
    from tilewright.runtime.generation.request import Conversation

    engine, talk = Engine(program(40)), Conversation()
    first = rng.integers(0, 11, 20).tolist()
    said = engine.submit(first, max_new_tokens=5, end=(), conversation=talk).result()
    assert talk.holding is None
    second = [*first, *said, 1, 2]
    again = engine.submit(second, max_new_tokens=5, end=(), conversation=talk).result()
    assert again == Engine(program(40)).submit(second, max_new_tokens=5, end=()).result()


def test_scoring_beside_running_requests_says_where_it_finds_no_room(rng: np.random.Generator) -> None:
    lm = LanguageModel(program(12))
    handle = lm.current.submit(rng.integers(0, 11, 30).tolist(), max_new_tokens=10, end=())
    next(iter(handle))
    with pytest.raises(CacheFullError):
        lm.logits(rng.integers(0, 11, 48).tolist(), prompt=40)
    handle.result()
    assert lm.current.book.held_bytes == 0


class Rows:
    """States as arrays by name."""

    def __init__(self, **rows: np.ndarray) -> None:
        self.rows = rows

    def take_tokens(self, name: str, at: np.ndarray) -> np.ndarray:
        return self.rows[name][at]


def nearest(kept: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By the definition of the cosine, in float64."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (kept.astype(float), others.astype(float)))
    cosine = np.einsum("ehd,khd->hek", b, a)
    return cosine.argmax(-1), cosine.max(-1)


def attended(q: np.ndarray, keys: np.ndarray, values: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """One query [heads, d] a key head, in float64."""
    logits = np.einsum("hd,nhd->hn", q, keys.astype(float)) + logs.T
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights / weights.sum(-1, keepdims=True), values.astype(float))


def test_equal_keys_that_are_merged_weigh_what_they_weighed(rng: np.random.Generator) -> None:
    heads, few, n = 3, 5, 60
    distinct = rng.normal(size=(few, heads, 8)).astype(np.float32)
    which = np.concatenate(
        [rng.integers(0, few, (n - few, heads)), np.stack([rng.permutation(few) for _ in range(heads)], 1)]
    )
    keys = np.take_along_axis(distinct, which[:, :, None], 0)
    values = rng.normal(size=(n, heads, 6)).astype(np.float32)
    merging = Compression(budget=few + 4, sinks=0, recent=few, scorer="recent", merge=0.999)
    layer = CompressedLayer("keys", "values", None, "logs", None, nearest)  # type: ignore[arg-type]
    compressor = Compressor(merging, (layer,))
    logs = np.zeros((n, heads), np.float32)
    # twice: what was merged before counts for as many
    for count in (few + 4, few):
        rows: Any = Rows(keys=keys, values=values, logs=logs)
        left = compressor.compressed(rows, np.arange(len(keys)), np.zeros(0, np.int64), count)
        q = rng.normal(size=(heads, 8))
        wanted = attended(q, keys, values, logs)
        keys, values, logs = left["keys"], left["values"], left["logs"]
        assert len(keys) == count
        np.testing.assert_allclose(attended(q, keys, values, logs), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.exp(logs.astype(float)).sum(0), n, rtol=1e-6)


def test_what_is_like_nothing_that_stays_is_dropped_and_changes_no_bit(rng: np.random.Generator) -> None:
    n, heads = 20, 2
    keys, values = (rng.normal(size=(n, heads, 16)).astype(np.float32) for _ in range(2))
    rows: Any = Rows(keys=keys, values=values, logs=np.zeros((n, heads), np.float32))
    layer = CompressedLayer("keys", "values", None, "logs", None, nearest)  # type: ignore[arg-type]
    merging = Compression(budget=8, sinks=2, recent=4, scorer="recent", merge=1.0)
    left = Compressor(merging, (layer,)).compressed(rows, np.arange(n), np.zeros(0, np.int64), 8)
    kept = np.r_[0:2, 14:20]
    np.testing.assert_array_equal(left["values"], values[kept])
    np.testing.assert_array_equal(left["keys"], keys[kept])
    assert not left["logs"].any()


def test_the_highest_scores_stay_the_earlier_of_equals_and_the_ends_always() -> None:
    rule = Compression(budget=6, sinks=1, recent=2)
    scores = np.array([[0, 1, 3, 2, 2, 2, 9, 9], [9, 9, 0, 0, np.nan, 5, 0, 0]], np.float32)
    assert rule.chosen(scores, 2, 8, 6).tolist() == [[0, 2, 3, 4, 6, 7], [0, 1, 2, 5, 6, 7]]
    assert rule.chosen(None, 2, 8, 6).tolist() == [[0, 3, 4, 5, 6, 7]] * 2


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"budget": 0.0}, "share of the prompt"),
        ({"budget": 1.5}, "share of the prompt"),
        ({"budget": 20}, "from sinks \\+ recent = 36 on"),
        ({"budget": True}, "from sinks"),
        ({"scorer": "snap"}, "'attention', 'recent'"),
        ({"scorer": 3}, "torch.nn.Module"),
        ({"recent": 0}, "recent=0"),
        ({"sinks": -1}, "sinks=-1"),
        ({"every": 0}, "every=0"),
        ({"merge": 2}, "cosine"),
    ],
    ids=str,
)
def test_options_out_of_range_are_told(said: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        Compression(**said)


def test_a_layout_needs_one_group_that_may_give_up_and_a_compression() -> None:
    with pytest.raises(StepProgramError, match="one compact group"):
        layout(groups=(CacheGroup("full", 4, 8, compact=True),))
    with pytest.raises(StepProgramError, match="one compact group"):
        layout(compression=Compression())
