"""An attention at given sizes, and which keys a tile of its queries visits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.dtypes import DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import IotaOp, PositionsOp


@dataclass(frozen=True)
class Sizes:
    """An attention's sizes and mask.

    batch: of everything in front of the heads. features, value_features: of a row of k and of v. dtype: of q, k and
    v. shift: the position of the first query, where keys count from 0; None where positions are not known, so
    that no key can be left out. packed: whether sequences lie in one row, so that keys of others are left out when a
    call runs: what is counted is then the most that it can be.
    """

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    features: int
    value_features: int
    dtype: DType
    mask: str = "none"
    window: int = 0
    shift: int | None = None
    lse: bool = False
    packed: bool = False

    @staticmethod
    def of(op: AttentionOp, dims: Mapping[str, int]) -> Sizes:
        """Those of an op whose head dims are fixed numbers, at given dims."""
        q, k, v = (tensor(value) for value in (op.q, op.k, op.v))
        queries, keys = (n.evaluate(dims) for n in (q.dims[-2], k.dims[-2]))
        where = placed(op)
        shift = None if where is None else keys - queries if where == "end" else 0
        return Sizes(
            product(q.dims[:-3]).evaluate(dims), q.dims[-3].evaluate(dims), k.dims[-3].evaluate(dims), queries, keys,
            q.dims[-1].evaluate(dims), v.dims[-1].evaluate(dims), q.dtype, op.mask.data, op.window.data, shift,
            op.lse.data, op.segments is not None,
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return self.dtype.bytes

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.key_heads if self.key_heads else 1

    @property
    def rows(self) -> int:
        """Queries of all heads."""
        return self.batch * self.heads * self.queries

    @cached_property
    def seen(self) -> int:
        """Pairs of a query and a key that it may see, of one head; all of them where positions are not known."""
        if self.mask == "none" or self.shift is None:
            return self.queries * self.keys
        at = np.arange(self.queries, dtype=np.int64) + self.shift
        low = np.zeros_like(at)
        if self.mask == "sliding":
            low = np.maximum(low, at - self.window + 1)
        elif self.mask == "chunked":
            low = np.maximum(low, at // self.window * self.window)
        return int(np.maximum(np.minimum(at + 1, self.keys) - low, 0).sum())

    def visited(self, block_q: int, block_k: int, packed: int = 1) -> Visited:
        """What tiles of queries visit, one head of keys after the other, by the rule of the lowering: keys from the
        first that any query of a tile may see, on a border of key tiles, to the last.

        packed: query heads of one key head in a tile, whose rows are (query, head) pairs, queries outermost.
        """
        count = -(-self.queries * packed // block_q)
        first = np.arange(count, dtype=np.int64) * block_q
        rows = np.minimum(block_q, self.queries * packed - first)
        low, high = np.zeros_like(first), np.full_like(first, self.keys)
        if self.mask != "none" and self.shift is not None:
            begin = first // packed + self.shift
            end = -(-(first + block_q) // packed) + self.shift
            high = np.minimum(self.keys, np.maximum(0, end))
            if self.mask == "sliding":
                low = np.maximum(0, (begin - self.window + 1) // block_k * block_k)
            elif self.mask == "chunked":
                low = np.maximum(0, begin // self.window * self.window // block_k * block_k)
        steps = -(-np.maximum(0, high - low) // block_k)
        keys = np.where(steps > 0, np.minimum(low + steps * block_k, self.keys) - low, 0)
        return Visited(rows, steps, keys, low)


@dataclass(frozen=True)
class Visited:
    """For each tile of queries of one head: its rows, the tiles of keys it visits, their keys, and the first key."""

    rows: Any
    steps: Any
    keys: Any
    first: Any

    def parts(self, keys: int) -> Any:
        """For each tile of queries, how many parts of so many keys it sees any of."""
        return np.where(self.steps > 0, -(-(self.first + self.keys) // keys) - self.first // keys, 0)

    @cached_property
    def touched(self) -> int:
        """Keys that any tile visits."""
        if not self.steps.any():
            return 0
        used = self.steps > 0
        begin, end = self.first[used], (self.first + self.keys)[used]
        # both grow: what a tile adds is what lies beyond all tiles before it
        reached = np.maximum.accumulate(np.concatenate(([0], end[:-1])))
        return int(np.maximum(end - np.maximum(begin, reached), 0).sum())


def hides_keys(op: AttentionOp) -> bool:
    """Whether a mask says of keys, for all queries, that they do not count."""
    if op.valid is None:
        return False
    dims = tensor(op.valid).dims
    return len(dims) == tensor(op.q).rank - 2 or dims[-2].constant == 1


def shared_by_queries(op: AttentionOp) -> bool:
    """Whether all queries of a key head's query heads meet the same keys and values: no mask hides keys from some
    heads, and no sequences are packed, whose queries meet their own alone."""
    if op.segments is not None:
        return False
    if op.valid is None or not hides_keys(op) or op.group == 1:
        return True
    dims = tensor(op.valid).dims
    return len(dims) == tensor(op.q).rank - 2 or dims[-3].constant == 1


def placed(op: AttentionOp) -> str | None:
    """Where queries stand, as far as it is known by construction: "end", the last at the last key; "zero", the first at
    the first key; None."""
    if op.q_positions is None and op.k_positions is None:
        return "end"
    return "zero" if counts_from_zero(op.q_positions) and counts_from_zero(op.k_positions) else None


def counts_from_zero(value: SSAValue | None) -> bool:
    """True for positions that are 0, 1, 2, ... by construction."""
    if value is None:
        return False
    match value.owner:
        case PositionsOp():
            return True
        case IotaOp() as op:
            return op.start.data[0] == Expr.of(0) and op.step.data == 1
        case _:
            return False
