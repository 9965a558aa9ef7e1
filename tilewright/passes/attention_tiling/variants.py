"""The variants of an attention's kernel by its number of queries: few of them need no large tile."""

from __future__ import annotations

from tilewright.ir.machine import TileRules

FEW = (4, 16)


def blocks_of(rules: TileRules, block_q: int) -> list[tuple[int | None, int]]:
    """(largest number of queries, rows of a tile of queries), ascending; the last has no limit and `block_q` rows."""
    few: list[tuple[int | None, int]] = [(n, n) for n in FEW if rules.dot_least <= n < block_q]
    return [*few, (None, block_q)]


def few_rows(rules: TileRules, block_q: int, queries: int) -> int | None:
    """Rows of the variant that so many queries get instead of the whole block; None where they get that."""
    return next((rows for limit, rows in blocks_of(rules, block_q) if limit is not None and queries <= limit), None)
