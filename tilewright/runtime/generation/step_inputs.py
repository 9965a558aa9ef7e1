"""The arguments of one step, from what each request contributes to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.runtime.generation.holding import Holding
from tilewright.runtime.generation.step import GroupStep, StepInputs, StepLayout


@dataclass(frozen=True)
class Segment:
    """New tokens of one request, whose places `holding` has reserved; logits of the last `wanted` of them."""

    holding: Holding
    tokens: Sequence[int]
    wanted: int


def step_inputs(layout: StepLayout, segments: Sequence[Segment]) -> StepInputs:
    """All requests of a step on one flat axis, in this order."""
    counts = [len(segment.tokens) for segment in segments]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    first = [segment.holding.length for segment in segments]
    groups = []
    for g in range(len(layout.groups)):
        slots = [s.holding.slots(g, s.holding.length, s.holding.length + len(s.tokens)) for s in segments]
        tables, gone = np.stack([s.holding.table(g) for s in segments]), [s.holding.gone[g] for s in segments]
        groups.append(GroupStep(np.concatenate(slots), tables, np.array(gone, np.int32)))
    wanted = [np.arange(end - s.wanted, end) for s, end in zip(segments, offsets[1:].tolist(), strict=True)]
    return StepInputs(
        ids=np.concatenate([np.asarray(s.tokens, np.int32) for s in segments]),
        positions=np.concatenate([np.arange(f, f + n, dtype=np.int32) for f, n in zip(first, counts, strict=True)]),
        offsets=offsets,
        lengths=np.add(first, counts, dtype=np.int32),
        groups=tuple(groups),
        states=np.array([-1 if s.holding.row is None else s.holding.row for s in segments], np.int32),
        wanted=np.concatenate(wanted).astype(np.int32),
    )
