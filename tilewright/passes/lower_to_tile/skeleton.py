"""What a skeleton declares of itself: the ops that anchor its kernels, what it refuses, how fuse may grow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from xdsl.ir import Operation

from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.passes.lower_to_tile.frame import Lowered

Trait: TypeAlias = Literal["epilogue", "pair", "rows", "lines", "elements", "turned", "turnable", "rereads", "panels"]
"""What fuse and plan-layout know of a skeleton.

- epilogue: its result is in registers, where pointwise ops run on it.
- pair: two of one left-hand side share a kernel.
- rows: it has whole rows on chip, and takes what runs on them before and after.
- lines: it folds along an axis, and takes what feeds it alone and what runs on its result.
- elements: it computes element by element, and joins what it feeds.
- turned: it stores its result with the axes in another order at no cost.
- turnable: it can, where its reader needs them so in memory.
- rereads: it reads its operands many times, so they are computed once, before it.
- panels: it reads a weight that lies in panels.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a skeleton does not lower an op that it anchors, and what to do."""

    reason: str
    step: str = "report the model, and this line of it"


@dataclass(frozen=True, slots=True)
class Skeleton:
    """One shape that kernels have.

    kind: what groups call it. doc: a line. anchors: the ops its kernels are made around. emit: a group's kernels, given
    the group, the kernels' name and the pass's context. takes: of the anchors, those it is for; another skeleton, later
    in the table, may have the rest. refuses: of those it is for, what it cannot do. traits: see `Trait`.
    """

    kind: str
    doc: str
    anchors: tuple[type[Operation], ...]
    emit: Callable[[GroupOp, str, Context], Lowered]
    takes: Callable[[Operation], bool] = lambda op: True
    refuses: Callable[[Operation], Refusal | None] = lambda op: None
    traits: frozenset[Trait] = frozenset()
