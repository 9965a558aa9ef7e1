"""Attention in its two captured forms: transformers' registry operator, and torch's scaled dot product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.written_attention import written_attention
from tilewright.frontend.builder import Builder
from tilewright.frontend.liveness import consecutive
from tilewright.frontend.operators import ATTENTION, MASK
from tilewright.frontend.registry import lowers
from tilewright.frontend.training import in_training
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I1, I64
from tilewright.ir.graph.attention import AttentionOp, query_heads
from tilewright.ir.graph.base import tensor


@dataclass
class Masking:
    """The mask operands and properties of a `graph.attention`."""

    kind: str = "none"
    window: int = 0
    valid: SSAValue | None = None
    bias: SSAValue | None = None
    q_positions: SSAValue | None = None
    k_positions: SSAValue | None = None
    segments: SSAValue | None = None


@dataclass(frozen=True)
class Rule:
    """What the mask operator states, with its operands lowered: kept until an attention or something else reads it."""

    kind: str
    window: int
    valid: SSAValue | None
    positions: SSAValue | None
    segments: SSAValue | None
    shift: SSAValue | None
    queries: Expr
    keys: Expr
    dims: tuple[Expr, ...]


@lowers(MASK)
def attention_mask(
    c: Builder,
    valid: Any,
    positions: Any,
    segments: Any,
    shift: Any,
    batch: Any,
    queries: Any,
    keys: Any,
    kind: str,
    window: int,
    **_: Any,
) -> SSAValue:
    """The mask as a tensor, for whoever reads it as one; attention reads the rule itself and leaves this unused."""
    given = c.node.args[1]
    if given is not None and consecutive(given):
        positions = segments = None
    rule = Rule(kind, window, valid, positions, segments, shift, Expr.of(queries), Expr.of(keys), c.result.dims)
    made = _materialised(c, rule)
    c.rules[made] = rule
    return made


def _materialised(c: Builder, rule: Rule) -> SSAValue:
    """i1 [B, 1, Tq, Tk] from counting and comparing."""
    at_q, at_k = _indices(c, rule, rule.queries), _indices(c, rule, rule.keys)
    # [B, T] or [T] against each other as [B, 1, T, 1] and [B, 1, 1, T]
    at_q, at_k = _column(c, at_q), _row(c, at_k)
    seen: list[SSAValue] = []
    if rule.kind != "none":
        seen.append(c.map("le", at_k, at_q, dtype=I64))
    if rule.kind == "sliding":
        seen.append(c.map("lt", c.map("sub", at_q, at_k, dtype=I64), rule.window, dtype=I64))
    if rule.kind == "chunked":
        chunk_q, chunk_k = (c.map("floordiv", at, rule.window, dtype=I64) for at in (at_q, at_k))
        seen.append(c.map("eq", chunk_q, chunk_k, dtype=I64))
    if rule.segments is not None:
        seen.append(c.map("eq", _column(c, rule.segments), _row(c, rule.segments), dtype=I64))
    if rule.valid is not None:
        seen.append(_row(c, rule.valid))
    if not seen:
        return c.full(True, rule.dims, I1)
    both = seen[0]
    for other in seen[1:]:
        both = c.map("and", both, other, dtype=I1)
    return c.broadcast(both, rule.dims)


def _indices(c: Builder, rule: Rule, length: Expr) -> SSAValue:
    """The numbers the rule compares: given positions, or 0, 1, ... less the row's shift."""
    if rule.positions is not None:
        return rule.positions
    counted = c.iota([length], 0)
    if rule.shift is None:
        return counted
    return c.map("sub", counted, c.reshape(rule.shift, [*tensor(rule.shift).dims, 1]), dtype=I64)


def _column(c: Builder, x: SSAValue) -> SSAValue:
    dims = tensor(x).dims
    return c.reshape(x, [*dims[:-1], 1, dims[-1], 1] if len(dims) > 1 else [1, 1, dims[-1], 1])


def _row(c: Builder, x: SSAValue) -> SSAValue:
    dims = tensor(x).dims
    return c.reshape(x, [*dims[:-1], 1, 1, dims[-1]] if len(dims) > 1 else [1, 1, 1, dims[-1]])


def _by_rule(c: Builder, rule: Rule) -> Masking:
    """The rule as operands of attention."""
    masking = Masking(rule.kind, rule.window, valid=rule.valid, segments=rule.segments)
    if rule.kind != "none" and (rule.positions is not None or rule.shift is not None or rule.queries != rule.keys):
        masking.q_positions, masking.k_positions = _indices(c, rule, rule.queries), _indices(c, rule, rule.keys)
    return masking


def _by_tensor(c: Builder, mask: SSAValue, rank: int) -> Masking:
    """A mask that is a tensor: truth says what may be seen, numbers are added to the logits."""
    given = tensor(mask)
    dims = [*[Expr.of(1)] * (rank - given.rank), *given.dims]
    full = c.reshape(mask, dims) if given.rank < rank else mask
    if given.dtype != I1:
        return Masking(bias=full)
    # the same for all heads and queries: it says which keys are valid
    if rank == 4 and dims[1].constant == 1 and dims[2].constant == 1:
        return Masking(valid=c.reshape(full, [dims[0], dims[3]]))
    return Masking(valid=full)


def _masking(c: Builder, mask: SSAValue | None, rank: int) -> Masking:
    if mask is None:
        return Masking()
    return _by_rule(c, c.rules[mask]) if mask in c.rules else _by_tensor(c, mask, rank)


def _from_the_front(c: Builder, masking: Masking, queries: Expr, keys: Expr) -> None:
    """Causal as torch means it: query t sees keys 0..t, also where there are more keys than queries."""
    masking.kind = "causal"
    if queries != keys:
        masking.q_positions, masking.k_positions = c.iota([queries], 0), c.iota([keys], 0)


def _attend(
    c: Builder,
    q: SSAValue,
    k: SSAValue,
    v: SSAValue,
    masking: Masking,
    *,
    scale: float,
    softcap: float = 0.0,
    sinks: SSAValue | None = None,
) -> SSAValue:
    """Brings k and v to q's leading dims and dtype and emits the op."""
    lead, dtype = tensor(q).dims[:-3], tensor(q).dtype
    k, v = (c.broadcast(c.cast(x, dtype), [*lead, *tensor(x).dims[-3:]]) for x in (k, v))
    return c.emit(
        AttentionOp,
        q,
        k,
        v,
        masking.bias,
        masking.valid,
        masking.q_positions,
        masking.k_positions,
        sinks,
        masking.segments,
        scale=scale,
        mask=masking.kind,
        window=masking.window,
        softcap=softcap,
    )


@lowers(ATTENTION)
def registry_attention(
    c: Builder,
    query: SSAValue,
    key: SSAValue,
    value: SSAValue,
    mask: SSAValue | None,
    bias: SSAValue | None,
    sinks: SSAValue | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> SSAValue:
    masking = _masking(c, mask, tensor(query).rank)
    if bias is not None:
        both = bias if masking.bias is None else c.map("add", bias, masking.bias, dtype=tensor(bias).dtype)
        masking.bias = both
    if causal:
        _from_the_front(c, masking, tensor(query).dims[-2], tensor(key).dims[-2])
    return _attend(c, query, key, value, masking, scale=scale, softcap=softcap, sinks=sinks)


@lowers("aten.scaled_dot_product_attention.default")
def scaled_dot_product(
    c: Builder,
    query: SSAValue,
    key: SSAValue,
    value: SSAValue,
    attn_mask: SSAValue | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> SSAValue:
    if dropout_p:
        does = f"drops attention weights with p={dropout_p}"
        raise in_training(c.node, does, "dropout_p=p if self.training else 0.0")
    width = tensor(query).dims[-1].constant
    if width is None or tensor(value).dims[-1].constant is None:
        return written_attention(c, query, key, value, attn_mask, causal=is_causal, scale=scale, grouped=enable_gqa)
    scale = scale if scale is not None else 1 / math.sqrt(width)
    if attn_mask is not None and tensor(query).rank == tensor(attn_mask).rank == 3:
        attn_mask = _with_heads(c, attn_mask)
    query, key, value = _with_heads(c, query), _with_heads(c, key), _with_heads(c, value)
    query, key, value = _aligned(c, query, key, value, grouped=enable_gqa)
    if query_heads(tensor(query).dims[-3], tensor(key).dims[-3]) is None:
        return written_attention(c, query, key, value, attn_mask, causal=is_causal, scale=scale, grouped=enable_gqa)
    masking = _masking(c, attn_mask, tensor(query).rank)
    if is_causal:
        _from_the_front(c, masking, tensor(query).dims[-2], tensor(key).dims[-2])
    return c.reshape(_attend(c, query, key, value, masking, scale=scale), c.result.dims)


@lowers("aten._scaled_dot_product_flash_attention_for_cpu.default")
def flash_attention_for_cpu(
    c: Builder,
    query: SSAValue,
    key: SSAValue,
    value: SSAValue,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: SSAValue | None = None,
    scale: float | None = None,
) -> tuple[SSAValue, None]:
    return scaled_dot_product(c, query, key, value, attn_mask, dropout_p, is_causal, scale=scale), None


def _with_heads(c: Builder, x: SSAValue) -> SSAValue:
    """Attention without a head axis is attention with one head."""
    dims = tensor(x).dims
    if len(dims) == 2:
        return c.reshape(x, [1, *dims])
    return c.reshape(x, [dims[0], 1, *dims[1:]]) if len(dims) == 3 else x


def _aligned(
    c: Builder, q: SSAValue, k: SSAValue, v: SSAValue, *, grouped: bool
) -> tuple[SSAValue, SSAValue, SSAValue]:
    """Leading dims (and, unless grouped, heads) stretched to each other's."""
    parts = [tensor(x).dims for x in (q, k, v)]
    width = 3 if grouped else 2
    rank = max(len(p) for p in parts)
    lead = [Expr.of(1)] * (rank - width)
    for dims in parts:
        for i, size in enumerate(dims[: len(dims) - width]):
            place = i + rank - len(dims)
            lead[place] = size if lead[place].constant == 1 else lead[place]
    q, k, v = (c.broadcast(x, [*lead, *dims[-width:]]) for x, dims in zip((q, k, v), parts, strict=True))
    return q, k, v
