"""Equal pure ops on the same operands become one."""

from __future__ import annotations

from collections.abc import Hashable

from xdsl.ir import Block, Operation

from tilewright.ir.passing import Context
from tilewright.passes.rewriting import is_pure, replace


def identity(op: Operation) -> Hashable:
    """What decides the results of a pure op without regions: its class, operands, properties and result types."""
    properties = tuple(sorted(op.properties.items(), key=lambda item: item[0]))
    return op.name, tuple(map(id, op.operands)), properties, tuple(r.type for r in op.results)


def share_equal_ops(block: Block, ctx: Context) -> bool:
    """Has later equal ops use the first one's results; True if there were any."""
    first: dict[Hashable, Operation] = {}
    changed = False
    for op in list(block.ops):
        if not is_pure(op) or op.regions:
            continue
        known = first.setdefault(identity(op), op)
        if known is not op and ctx.apply([op], "share-equal-ops"):
            replace(op, list(known.results))
            changed = True
    return changed
