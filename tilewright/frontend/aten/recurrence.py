"""Gated linear attention, which recurrences of models are replaced by (see `frontend/recurrences.py`)."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder
from tilewright.frontend.recurrences import LINEAR_ATTENTION
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.linear_attention import LinearAttentionOp


@lowers(LINEAR_ATTENTION)
def linear_attention(c: Builder, queries: SSAValue, keys: SSAValue, values: SSAValue, decay: SSAValue) -> SSAValue:
    groups, heads = tensor(queries).dims[2], tensor(values).dims[2]
    if groups.constant is None or heads.constant is None or not groups.constant or heads.constant % groups.constant:
        raise Unsupported(f"{heads} heads that are no fixed multiple of {groups} groups")
    return c.emit(LinearAttentionOp, queries, keys, values, decay)
