"""inline-layers: calls of layer functions are replaced by their bodies, so that later passes see one list of steps.

Passes before this one worked once per unique layer; lower-to-tile still lowers equal groups once, by their content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.errors import IRError
from tilewright.ir.graph.structure import CallOp, FuncOp, ReturnOp
from tilewright.ir.passing import Context, Pass
from tilewright.passes.rewriting import erase


@dataclass(frozen=True)
class InlineLayers(Pass):
    """Calls become the ops of the function they call."""

    name: ClassVar[str] = "inline-layers"
    needed: ClassVar[bool] = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        functions = {f.symbol: f for f in module.body.block.ops if isinstance(f, FuncOp)}
        for function in [f for f in functions.values() if f.kind.data != "layer"]:
            while calls := [op for op in function.block.ops if isinstance(op, CallOp)]:
                for call in calls:
                    _inline(call, functions)
        for function in list(functions.values()):
            if function.kind.data == "layer":
                erase(function)


def _inline(call: CallOp, functions: dict[str, FuncOp]) -> None:
    callee = functions.get(call.callee.data)
    if callee is None:
        raise IRError(
            f"graph.call of @{call.callee.data}, which the module does not define", step="define the function"
        )
    values: dict[SSAValue, SSAValue] = dict(zip(callee.block.args, call.args, strict=True))
    block = call.parent_block()
    assert block is not None  # a call stands in a function's block
    for op in callee.block.ops:
        if isinstance(op, ReturnOp):
            for result, value in zip(call.outs, op.values, strict=True):
                result.replace_all_uses_with(values.get(value, value))
        else:
            block.insert_op_before(op.clone(values), call)
    erase(call)
