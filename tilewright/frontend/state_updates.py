"""Buffers that a model changes in part: what is written back to a state becomes an update of it in place.

`cache.index_copy_(2, positions, keys)`, `cache[:, :, positions] = keys`, `cache[:, :, a:b] = keys`, `cache[i] = row`
and `cache.scatter_(2, index, keys)` arrive as functions of the whole buffer, whose result the exporter writes back.
Where that result is the buffer with one scatter after the other, only what they put is written; any other result is a
new value of the whole buffer.
"""

from __future__ import annotations

from xdsl.ir import Block, SSAValue

from tilewright.ir.graph.indexing import PutAlongOp, ScatterOp, StateUpdateOp
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import StateReadOp


def state_of(value: SSAValue) -> str | None:
    """The state that a value is with scatters and reshapes on the way; None for other values."""
    while isinstance(value.owner, (ReshapeOp, ScatterOp, PutAlongOp, StateUpdateOp)):
        value = value.owner.operands[0]
    return value.owner.label.data if isinstance(value.owner, StateReadOp) else None


def update_in_place(block: Block, name: str, value: SSAValue) -> dict[SSAValue, SSAValue]:
    """Turns the scatters between the read of a state and the value written back to it into updates in place.

    Gives what every value that was replaced became; nothing where the value is no chain of scatters on this state.
    """
    if state_of(value) != name:
        return {}
    became: dict[SSAValue, SSAValue] = {}
    while isinstance(value.owner, (ReshapeOp, ScatterOp, PutAlongOp, StateUpdateOp)):
        op = value.owner
        value = op.operands[0]
        if isinstance(op, (ScatterOp, PutAlongOp)):
            update = StateUpdateOp.make(
                op.x, op.indices, op.updates, axis=op.axis, mode=op.mode, along=isinstance(op, PutAlongOp), like=op
            )
            block.insert_op_before(update, op)
            became[op.out] = update.out
            op.out.replace_all_uses_with(update.out)
    return became
