"""Attention over sequences that lie one after the other along one axis of tokens: torch's varlen_attn."""

from __future__ import annotations

import math
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor


@lowers("torch_attn._varlen_attn.default")
def varlen_attention(
    c: Builder,
    query: SSAValue,
    key: SSAValue,
    value: SSAValue,
    cu_seq_q: SSAValue,
    cu_seq_k: SSAValue | None,
    max_q: Any,
    max_k: Any,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: SSAValue | None = None,
    block_table: SSAValue | None = None,
    num_splits: int | None = None,
) -> tuple[SSAValue, SSAValue | None, None]:
    """q [T, H, D], k and v [T, Hkv, D], cu_seq_q the tokens before each sequence and in all: to [T, H, D].

    A token's segment is how many sequences have begun where it stands; the longest lengths are of no use here. Within
    a sequence queries and keys stand alike, so that what is causal along the row is causal in each.
    """
    if seqused_k is not None or block_table is not None:
        raise Unsupported("keys in pages, or fewer of them than there are: tw.compile_lm keeps keys in pages")
    if cu_seq_k is not cu_seq_q or tensor(query).dims[0] != tensor(key).dims[0]:
        raise Unsupported("sequences of keys that begin elsewhere than those of queries: write a mask")
    left, right = window_size or (-1, -1)
    right = 0 if is_causal else right
    if right > 0 or (right < 0 <= left):
        raise Unsupported("a window that has keys behind the query: write a mask")
    kind = "none" if right < 0 else "causal" if left < 0 else "sliding"
    tokens, heads, features = tensor(query).dims
    starts = c.reshape(cu_seq_q, [1, *tensor(cu_seq_q).dims])
    places = c.reshape(c.iota([tokens], 0), [tokens, 1])
    begun = c.map("le", c.cast(starts, I64), places, dtype=I64)
    segments = c.reduce("sum", c.cast(begun, I64), [1])
    width = features.constant
    if scale is None and width is None:
        raise Unsupported("head dims that vary")
    wanted = any(user.args[1:] == (1,) and user.users for user in c.node.users)
    by_head = [c.reshape(c.transpose(x, [1, 0, 2]), [1, *_turned(x)]) for x in (query, key, value)]
    made = AttentionOp.make(
        *by_head, None, None, None, None, None, segments,
        scale=scale if scale is not None else 1 / math.sqrt(width or 1), mask=kind,
        window=left + 1 if kind == "sliding" else 0, lse=wanted,
    )  # fmt: skip
    c.add(made)
    last = tensor(value).dims[-1]
    out = c.transpose(c.reshape(made.out, [heads, tokens, last]), [1, 0, 2])
    return out, None if made.lse_out is None else c.reshape(made.lse_out, [heads, tokens]), None


def _turned(x: SSAValue) -> list[Expr]:
    tokens, heads, features = tensor(x).dims
    return [heads, tokens, features]
