"""The variants of an attention's kernel by its number of queries: few of them need no large tile."""

from __future__ import annotations

from typing import NamedTuple

from tilewright.ir.machine import TileRules

FEW = (4, 16)


class Block(NamedTuple):
    """What a tile of queries is in one variant: its rows, the query heads of a key head that it has, each of as many
    queries, and the largest number of queries that the variant serves (None: any)."""

    limit: int | None
    rows: int
    heads: int = 1


def blocks_of(rules: TileRules, block_q: int, heads: int) -> list[Block]:
    """The variants, ascending; the last has no limit and `block_q` rows. heads: of a tile where there is one query, so
    that the keys and values of a head are read once for all of them."""
    packed = [Block(1, heads, heads)] if heads > 1 else []
    few = [Block(n, n) for n in FEW if rules.dot_least <= n < block_q]
    return [*packed, *few, Block(None, block_q)]


def block_for(rules: TileRules, block_q: int, heads: int, queries: int) -> Block:
    """The variant that so many queries get."""
    return next(b for b in blocks_of(rules, block_q, heads) if b.limit is None or queries <= b.limit)


def scratch_of(rows: int, keys: int, features: int, value_features: int) -> int:
    """Bytes of private memory that a program may need at most: its tiles in f32, the logits with their mask and their
    weights, the sums of a part and of the parts before it."""
    return 4 * (rows * (3 * value_features + features + 4 + 3 * keys) + keys * (features + value_features))


def own_block(rules: TileRules, features: int, value_features: int) -> int:
    """The rows of a tile of queries where nothing states them: the machine's, or as many fewer as its scratch holds."""
    rows, least = rules.query_block, max(rules.dot_least, 1)
    while (
        rules.scratch is not None
        and rows // 2 >= least
        and scratch_of(rows, rules.key_segment, features, value_features) > rules.scratch
    ):
        rows //= 2
    return rows
