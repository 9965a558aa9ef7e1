"""Tilings played as a red-blue pebble game: legal within the words that their tiles are said to take, they move what
the closed forms say, and never less than the lower bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.passes.pebbles import Game, key_outer, query_outer
from tests.passes.test_attention_tiling import sees
from tilewright.ir.dtypes import F32
from tilewright.passes.attention_tiling.bounds import lower_bound
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import Tiling

WALKS = {"query-outer": query_outer, "key-outer": key_outer}


def drawn(rng: np.random.Generator) -> tuple[Sizes, int, int]:
    """One head of attention in words of 4 bytes, and tiles of which the queries are whole ones."""
    block_q, block_k = (int(n) for n in rng.integers(1, 7, 2))
    queries, keys = block_q * int(rng.integers(1, 4)), int(rng.integers(1, 20))
    features, value_features = (int(n) for n in rng.integers(1, 6, 2))
    mask = str(rng.choice(["none", "causal", "sliding", "chunked"]))
    window = int(rng.integers(1, 9)) if mask in ("sliding", "chunked") else 0
    keys = max(keys, queries)  # where every query sees a key
    return (
        Sizes(1, 1, 1, queries, keys, features, value_features, F32, mask, window, keys - queries), block_q, block_k
    )  # fmt: skip


def game_of(sizes: Sizes, capacity: int, part: int | None = None) -> Game:
    seen = {i: [j for j in range(sizes.keys) if sees(sizes, i, j)] for i in range(sizes.queries)}
    return Game(sizes, seen, capacity, part)


@pytest.mark.parametrize("order", list(WALKS))
def test_a_tiling_is_a_legal_game_that_moves_what_its_closed_form_says(order: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        sizes, block_q, block_k = drawn(rng)
        part = block_k if order == "key-outer" else None
        tiling = Tiling(sizes, order, block_q, block_k, part=part or 0)
        # beside its tiles a walk holds what is being computed: the row's next sums, and a logit's
        room = sum(tile.rows * tile.row for tile in tiling.tiles) // 4 + 4
        game = game_of(sizes, room, part)
        WALKS[order](game, block_q, block_k)
        game.finish()
        if order == "key-outer":
            # a row is stated to leave sums of every part; of one that it sees nothing of it has none
            assert game.moved * 4 <= tiling.once
            full = all(sees(sizes, i, j) for i in range(sizes.queries) for j in range(sizes.keys))
            assert not full or game.moved * 4 == tiling.once
        else:
            assert game.moved * 4 == tiling.named
        assert game.moved * 4 >= lower_bound(sizes, game.most * 4)


def test_moves_that_the_game_does_not_allow_are_found() -> None:
    sizes = Sizes(1, 1, 1, 2, 4, 2, 2, F32)
    enough = sum(tile.rows * tile.row for tile in Tiling(sizes, "query-outer", 2, 2).tiles) // 4 + 4
    with pytest.raises(AssertionError, match="one more than 9 words hold"):
        query_outer(game_of(sizes, 9), 2, 2)
    query_outer(game_of(sizes, enough), 2, 2)
    game = game_of(sizes, 10)
    with pytest.raises(AssertionError, match="in fast memory"):
        game.compute(("s", 0, 0, 0))
    with pytest.raises(AssertionError, match="nowhere to be loaded from"):
        game.load(("m", 0, 0))


def test_larger_fast_memories_move_less_and_stay_above_the_bound() -> None:
    sizes = Sizes(1, 1, 1, 24, 24, 2, 2, F32)
    moved = []
    for block in (1, 2, 4, 8, 24):
        game = game_of(sizes, 10_000)
        query_outer(game, block, 1)
        moved.append(game.moved)
        assert game.moved * 4 >= lower_bound(sizes, game.most * 4)
        assert game.moved * 4 == Tiling(replace(sizes), "query-outer", block, 1).named
    assert moved == sorted(moved, reverse=True)
