"""What a step keeps so that tokens can be given up later: the last queries, and how many keys a key stands for.

Layers that see all tokens write to places that the caller tells, because tokens move together where others are given
up. Positions stay absolute: keys are turned by them before they are kept, and nothing else of attention reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from tilewright.errors import Problem, StepError
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import BroadcastOp
from tilewright.ir.graph.structure import ConstantOp
from tilewright.passes.kv_cache.distances import distances_of
from tilewright.passes.kv_cache.latents import latent_of
from tilewright.passes.kv_cache.layout import LATENTS, NAMES, Compact, Compressible, Kept, PagedLayout, names
from tilewright.passes.kv_cache.slopes import slopes_of

if TYPE_CHECKING:
    from tilewright.passes.kv_cache.step import Stepper

LOG_COUNTS, QUERIES = "log_counts", "queries"


def compact_groups(
    op: AttentionOp, layer: int, group: Kept, layout: PagedLayout, compact: Compact
) -> dict[tuple[str, int], Kept]:
    """What a layer keeps whose tokens may be given up. StepError where its logits hang on distances, or where tokens
    are to be merged whose keys are their values.
    """
    latent, fault = latent_of(op), None
    if slopes_of(op) is not None or distances_of(op) is not None:
        fault, step = "its bias hangs on distances, and tokens move together", "leave compress= out of tw.KVCache()"
    elif latent is not None and compact.counted:
        fault, step = "its keys are its values, and only values may be averaged", "leave merge= out of compress="
    if fault is not None:
        raise StepError(Problem(fault, op=op.name, where=op.loc), step=step)
    states, size = group.states, group.token_bytes
    if compact.counted:
        states = (*states, *names(layer, [LOG_COUNTS]))
        size += tensor(op.k).dims[1].evaluate({}) * F32.bytes
    found = {("causal", 0): replace(group, states=states, token_bytes=size, compact=True)}
    if compact.observed:
        # one more, because a window counts the token that looks
        window, q = compact.observed + 1, tensor(op.q)
        features, unit = q.dims[3].evaluate({}) if latent is None else latent.width, layout.unit(window)
        found[QUERIES, 0] = Kept(
            QUERIES, window, unit, layout.columns(window, unit), (layer,), tuple(names(layer, [QUERIES])),
            q.dims[1].evaluate({}) * features * q.dtype.bits // 8, read=False,
        )  # fmt: skip
    return found


def compressible_of(op: AttentionOp, layer: int, compact: Compact) -> Compressible:
    """What an attention without a window keeps, by name."""
    keys, *values = names(layer, NAMES if latent_of(op) is None else LATENTS)
    (queries,), (counts,) = names(layer, [QUERIES]), names(layer, [LOG_COUNTS])
    return Compressible(
        keys, values[0] if values else None, queries if compact.observed else None,
        counts if compact.counted else None, op.scale.data, op.softcap.data,
    )  # fmt: skip


def log_counts(step: Stepper, op: AttentionOp, layer: int, group: Kept, k: SSAValue) -> SSAValue | None:
    """Of keys k [tokens, heads, features] and those before them, where tokens may be merged: 0 for new ones."""
    (name,) = names(layer, [LOG_COUNTS])
    if name not in group.states:
        return None
    rows = BroadcastOp.make(step.add(ConstantOp.of(0.0, [], F32)), dims=[*tensor(k).dims[:2]], like=op)
    return step.kept(name, group, step.add(rows), op)


def observe(step: Stepper, op: AttentionOp, layer: int, groups: Sequence[Kept], q: SSAValue) -> None:
    """Keeps the queries q [tokens, heads, features] of a layer whose tokens may be given up. groups: the layer's."""
    if step.layout.compact is None or not groups[0].compact:
        return
    step.compressible.append(compressible_of(op, layer, step.layout.compact))
    (name,) = names(layer, [QUERIES])
    for group in groups[1:]:
        step.kept(name, group, q, op)
