"""hoist-weights: what depends on weights and constants alone moves to @prepare, which runs when weights are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue

from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import (
    CallOp,
    ConstantOp,
    DimOp,
    FuncOp,
    IotaOp,
    PackedOp,
    PositionsOp,
    ReturnOp,
    WeightOp,
)
from tilewright.ir.passing import Context, Pass
from tilewright.passes.prepare import Prepare
from tilewright.passes.rewriting import erase_dead, is_pure


@dataclass(frozen=True)
class HoistWeights(Pass):
    """Ops on weights alone run in @prepare; constants of several elements become packed tensors."""

    name: ClassVar[str] = "hoist-weights"
    needed: ClassVar[bool] = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"]:
            fixed = _fixed_values(function)
            prepare = Prepare(module)
            for op in list(function.block.ops):
                if (isinstance(op, (WeightOp, ConstantOp)) and not _several(op)) or renames_weight(op):
                    continue
                for result in op.results:
                    users = [use.operation for use in result.uses]
                    if result in fixed and any(not _moves(user, fixed) for user in users):
                        if not ctx.apply([op], "to @prepare", saves=ctx.bytes(result)):
                            continue
                        name = prepare.add(result, f"{op.name.partition('.')[2]}")
                        packed = PackedOp.make(name=name, result_types=[result.type], like=op)
                        function.block.insert_op_after(packed, op)
                        for use in list(result.uses):
                            if not _moves(use.operation, fixed):
                                use.operation.operands[use.index] = packed.out
            erase_dead(function.block)


def renames_weight(op: Operation) -> bool:
    """A reshape of a weight is the weight's own bytes: there is nothing to compute or to store again."""
    while isinstance(op, ReshapeOp) and isinstance(op.x.owner, Operation):
        op = op.x.owner
        if isinstance(op, (WeightOp, PackedOp)):
            return True
    return False


def _several(op: Operation) -> bool:
    """A constant whose elements differ: it cannot be a number inside a kernel."""
    return isinstance(op, ConstantOp) and op.splat is None


def _fixed_values(function: FuncOp) -> set[SSAValue]:
    """Values that depend on weights and constants alone, have fixed sizes, and are not just constants."""
    fixed: set[SSAValue] = set()
    weighty: set[SSAValue] = set()
    for op in function.block.ops:
        if isinstance(op, (CallOp, ReturnOp, DimOp, PositionsOp)) or not is_pure(op):
            continue
        static = all(d.is_static for r in op.results for d in tensor(r).dims)
        if isinstance(op, (WeightOp, PackedOp)) or (
            isinstance(op, GraphOp) and static and all(o in fixed for o in op.operands)
        ):
            fixed.update(op.results)
            if isinstance(op, (WeightOp, PackedOp)) or _several(op) or any(o in weighty for o in op.operands):
                weighty.update(op.results)
            elif isinstance(op, IotaOp):
                fixed.difference_update(op.results)
    return fixed & weighty


def _moves(op: Operation, fixed: set[SSAValue]) -> bool:
    """Whether the op itself goes to @prepare."""
    return bool(op.results) and all(r in fixed for r in op.results)
