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
