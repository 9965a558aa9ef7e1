"""The variants of an attention's kernel by its number of queries: few of them need no large tile."""

from __future__ import annotations

from math import gcd
from typing import Final, NamedTuple

from tilewright.ir.dtypes import DType
from tilewright.ir.machine import TileRules

FEW = (4, 16)

_LOW_TILES: Final = 8  # the most tiles of queries that are low


class Block(NamedTuple):
    """What a tile of queries is in one variant: its rows, the query heads of a key head that it has, each of as many
    queries, and the largest number of queries that the variant serves (None: any). paired: whether keys and values
    come in pairs already."""

    limit: int | None
    rows: int
    heads: int = 1
    paired: bool = False


def blocks_of(rules: TileRules, block_q: int, heads: int, *, paired: bool = False) -> list[Block]:
    """The variants, ascending; the last has no limit and `block_q` rows. heads: of a tile where there is one query, so
    that the keys and values of a head are read once for all of them. paired: whether those are brought into pairs once
    where there is more than one tile of queries. Tiles are then lower where a head has few of them, which are shared
    out more evenly, and leave out more of what a mask hides."""
    packed = [Block(1, heads, heads)] if heads > 1 else []
    few = [Block(n, n) for n in FEW if rules.dot_least <= n < block_q]
    if not paired:
        return [*packed, *few, Block(None, block_q)]
    band = 0 if rules.matrix is None else rules.matrix.band
    low = block_q // 2 if block_q % (2 * band) == 0 else block_q
    between = [Block(_LOW_TILES * low, low, paired=True)] if low < block_q else []
    return [*packed, *few, Block(low, low), *between, Block(None, block_q, paired=True)]


def block_for(rules: TileRules, block_q: int, heads: int, queries: int, *, paired: bool = False) -> Block:
    """The variant that so many queries get."""
    every = blocks_of(rules, block_q, heads, paired=paired)
    return next(b for b in every if b.limit is None or queries <= b.limit)


class Tile(NamedTuple):
    """A buffer that a program keeps near: rows of so many bytes."""

    name: str
    rows: int
    row: int


def scratch_tiles(
    rules: TileRules, rows: int, keys: int, features: int, value_features: int, dtype: DType
) -> tuple[Tile, ...]:
    """The private memory that a program needs at most, with so many rows of queries and of keys.

    The sums of a part and of the parts before it, queries, keys with their features first, and logits, in f32. Of
    dtypes of fewer bytes also operands as they are, and logits with their weights: on a matrix unit, which
    takes keys and values in pairs, as they are alone, and logits of a band of rows.
    """
    each, unit = 2 * value_features + 20, rules.attention_unit(features, value_features, dtype.name, keys)
    if dtype.bytes >= 4:
        every = Tile("queries, sums and logits", rows, 4 * (each + keys + features))
        return every, Tile("keys and values", keys, 4 * features), Tile("room for a last vector", 1, 256)
    each += features // 2
    if unit is not None:
        band = Tile("logits of a band", gcd(rows, unit.band), 8 * keys)
        pairs = Tile("keys and values", keys, 2 * (features + value_features))
        return Tile("queries and sums", rows, 4 * each), band, pairs
    every = Tile("queries, sums and logits", rows, 4 * (each + 2 * keys))
    return every, Tile("keys and values", keys, 4 * (2 * features + value_features))


def own_block(rules: TileRules, features: int, value_features: int, dtype: DType) -> int:
    """The rows of a tile of queries where nothing states them: the machine's, or as many fewer as its scratch holds."""
    rows, room = rules.query_block, rules.scratch
    keys = rules.segment(features, value_features, dtype.name)
    while room is not None and rows // 2 >= max(rules.dot_least, 1):
        if sum(t.rows * t.row for t in scratch_tiles(rules, rows, keys, features, value_features, dtype)) <= room:
            break
        rows //= 2
    return rows
