"""set-precision: operands of products and convolutions are rounded to a dtype; sums and results stay as they were.

A value is rounded once, where it is computed and before the views of it that products read, so that the kernel that
computes it can store it rounded. Attention's products are rounded where the machine multiplies that dtype on a matrix
unit; elsewhere its sums of f32 cost no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue

from tilewright.errors import PassOptionError
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.routing import GroupedMatmulOp
from tilewright.ir.graph.shape import PadOp, ReshapeOp, TransposeOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.passing import Context, Pass
from tilewright.passes.lower_to_tile.matrix_tiles import attention_unit
from tilewright.passes.rewriting import defined, erase, erase_dead


@dataclass(frozen=True)
class SetPrecision(Pass):
    """Casts the operands of matrix products and convolutions to `dtype`, keeping the result in the dtype it had.

    Depthwise convolutions, which move more than they multiply, stay as they are.
    """

    name: ClassVar[str] = "set-precision"
    dtype: str = "bf16"

    def run(self, module: ModuleOp, ctx: Context) -> None:
        wanted = DTYPES.get(self.dtype)
        if wanted is None or not wanted.is_float:
            raise PassOptionError(
                f"set-precision: {self.dtype!r} is not a float dtype", step="use dtype=bf16 or dtype=f32"
            )
        rounded: dict[SSAValue, SSAValue] = {}
        for op in list(module.walk()):
            if isinstance(op, (MatmulOp, GroupedMatmulOp)) or (isinstance(op, ConvolutionOp) and not op.depthwise):
                self._narrow(op, wanted, ctx, rounded)
            elif isinstance(op, AttentionOp) and attention_unit(ctx.machine, op, dtype=wanted) is not None:
                self._narrow_attention(op, wanted, ctx, rounded)
        if rounded:
            for block in {op.parent for op in module.walk() if isinstance(op, CastOp) and op.parent is not None}:
                erase_dead(block)

    def _narrow(
        self,
        op: MatmulOp | GroupedMatmulOp | ConvolutionOp,
        wanted: DType,
        ctx: Context,
        rounded: dict[SSAValue, SSAValue],
    ) -> None:
        block = op.parent_block()
        if tensor(op.operands[0]).dtype == wanted or block is None:
            return
        if not ctx.apply([op], f"operands in {self.dtype}"):
            return
        factors = [self._cast(value, op, rounded) for value in op.operands[:2]]
        bias = [self._cast(op.bias, op, rounded)] if isinstance(op, ConvolutionOp) and op.bias is not None else []
        rest = bias if isinstance(op, ConvolutionOp) else op.slots()[2:]
        stated: dict[str, Any] = {**op.properties, "result": tensor(op.out).dtype.name}
        made = type(op).make(*factors, *rest, like=op, **stated)
        block.insert_op_before(made, op)
        op.out.replace_all_uses_with(made.out)
        erase(op)

    def _narrow_attention(
        self, op: AttentionOp, wanted: DType, ctx: Context, rounded: dict[SSAValue, SSAValue]
    ) -> None:
        """Rounds q, k and v, and with them the result, which is a mean of values; widened again for who reads it."""
        block = op.parent_block()
        if tensor(op.q).dtype == wanted or block is None or not ctx.apply([op], f"q, k and v in {self.dtype}"):
            return
        slots = op.slots()
        factors = [self._cast(value, op, rounded) for value in (op.q, op.k, op.v)]
        stated: dict[str, Any] = {**op.properties}
        made = AttentionOp.make(*factors, *slots[3:], like=op, **stated)
        widened = CastOp.make(made.out, dtype=tensor(op.out).dtype.name, like=op)
        block.insert_ops_before([made, widened], op)
        op.out.replace_all_uses_with(widened.out)
        if op.lse_out is not None and made.lse_out is not None:
            op.lse_out.replace_all_uses_with(made.lse_out)
        erase(op)

    def _cast(self, value: SSAValue, op: Operation, rounded: dict[SSAValue, SSAValue]) -> SSAValue:
        """The value in the dtype; cast where it is computed, before padding and views of it, and once for all readers.

        A padded one is cast before it is padded, where what computes it can do that.
        """
        found = rounded.get(value)
        if found is None or found.owner.parent_block() is not op.parent_block():
            found = rounded[value] = self._made(value, op, rounded)
        return found

    def _made(self, value: SSAValue, op: Operation, rounded: dict[SSAValue, SSAValue]) -> SSAValue:
        owner, block = value.owner, op.parent_block()
        assert block is not None  # asked by the callers
        cast = defined(value, CastOp)
        if cast is not None and tensor(cast.x).dtype.name == self.dtype:
            return cast.x  # it was widened from the dtype, so nothing is lost on the way back
        view = owner if isinstance(owner, (TransposeOp, ReshapeOp, PadOp)) and owner.parent is block else None
        made: GraphOp
        if view is not None:
            stated: dict[str, Any] = {**view.properties}
            made = type(view).make(self._cast(view.x, op, rounded), like=view, **stated)
        else:
            made = CastOp.make(value, dtype=self.dtype, like=owner if isinstance(owner, GraphOp) else op)
        _after(value, made, block, op)
        return made.results[0]


def _after(value: SSAValue, made: Operation, block: Block, op: Operation) -> None:
    """Puts an op behind the one that computes its operand: first of all for an argument of the block.

    Before its reader where the operand is computed elsewhere.
    """
    owner = value.owner
    if isinstance(owner, Operation) and owner.parent is block:
        block.insert_op_after(made, owner)
    elif owner is block and block.first_op is not None:
        block.insert_op_before(made, block.first_op)
    else:
        block.insert_op_before(made, op)
