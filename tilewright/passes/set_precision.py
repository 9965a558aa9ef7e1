"""set-precision: operands of products and convolutions are rounded to a dtype; sums and results stay as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.errors import PassOptionError
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.routing import GroupedMatmulOp
from tilewright.ir.graph.shape import PadOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.passing import Context, Pass
from tilewright.passes.rewriting import defined, erase


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
        for op in list(module.walk()):
            if isinstance(op, (MatmulOp, GroupedMatmulOp)) or (isinstance(op, ConvolutionOp) and not op.depthwise):
                self._narrow(op, wanted, ctx)

    def _narrow(self, op: MatmulOp | GroupedMatmulOp | ConvolutionOp, wanted: DType, ctx: Context) -> None:
        block = op.parent_block()
        if tensor(op.operands[0]).dtype == wanted or block is None:
            return
        if not ctx.apply([op], f"operands in {self.dtype}"):
            return
        factors = [self._cast(value, op) for value in op.operands[:2]]
        bias = [self._cast(op.bias, op)] if isinstance(op, ConvolutionOp) and op.bias is not None else []
        rest = bias if isinstance(op, ConvolutionOp) else op.slots()[2:]
        stated: dict[str, Any] = {**op.properties, "result": tensor(op.out).dtype.name}
        made = type(op).make(*factors, *rest, like=op, **stated)
        block.insert_op_before(made, op)
        op.out.replace_all_uses_with(made.out)
        erase(op)

    def _cast(self, value: SSAValue, op: MatmulOp | GroupedMatmulOp | ConvolutionOp) -> SSAValue:
        """The value in the dtype; a padded one is cast before it is padded, where what computes it can do that."""
        block = op.parent_block()
        pad = defined(value, PadOp)
        inner = pad.x if pad is not None else value
        cast = CastOp.make(inner, dtype=self.dtype, like=op)
        made = cast if pad is None else PadOp.make(cast.out, low=pad.low, high=pad.high, value=pad.value, like=op)
        if block is not None:
            block.insert_ops_before([cast] if pad is None else [cast, made], op)
        return made.results[0]
