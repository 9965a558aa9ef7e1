"""Counting along the tokens' axis is counting positions: made explicit before canonicalize folds the counts away."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue
from xdsl.rewriter import Rewriter

from tilewright.ir.dtypes import I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp
from tilewright.ir.graph.structure import ConstantOp, IotaOp, PositionsOp
from tilewright.ir.module import functions
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType


def name_positions(module: ModuleOp) -> None:
    """Where ids [batch, tokens] are the model's last argument, every 0, 1, 2, ... of tokens numbers becomes their
    positions.

    Both are the same numbers in a whole sequence; a step knows positions and has no such count.
    """
    block = functions(module)["main"].block
    if not block.args or tensor(block.args[-1]).rank != 2:
        return
    tokens = tensor(block.args[-1]).dims[1]
    for op in list(block.ops):
        if not isinstance(op, IotaOp) or op.step.data != 1 or tensor(op.out).dims[op.axis.data] != tokens:
            continue
        kind, axis, start = tensor(op.out), op.axis.data, op.start.data[0].constant
        if start is None or not kind.dtype.is_integer:
            continue
        made: list[TwOperation] = [PositionsOp.make(result_types=[TensorType.of([tokens], I64)], like=op)]
        if start:
            made.append(ConstantOp.of(start, [], I64))
            made.append(MapOp.make([made[0].results[0], made[1].results[0]], fn="add", like=op))
        if kind.dtype != I64:
            made.append(CastOp.make(made[-1].results[0], dtype=kind.dtype.name, like=op))
        if kind.rank > 1:
            dims = [tokens if i == axis else 1 for i in range(kind.rank)]
            made.append(ReshapeOp.make(made[-1].results[0], dims=dims, like=op))
            made.append(BroadcastOp.make(made[-1].results[0], dims=list(kind.dims), like=op))
        block.insert_ops_before(made, op)
        found: SSAValue = made[-1].results[0]
        op.out.replace_all_uses_with(found)
        Rewriter.erase_op(op)
