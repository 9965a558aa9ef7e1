"""set-precision: operands of matrix products are rounded to a dtype; sums, results and the rest stay as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from tilewright.errors import PassOptionError
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.routing import GroupedMatmulOp
from tilewright.ir.passing import Context, Pass
from tilewright.passes.rewriting import erase


@dataclass(frozen=True)
class SetPrecision(Pass):
    """Casts the factors of every matmul to `dtype`, keeping the result in the dtype it had."""

    name: ClassVar[str] = "set-precision"
    dtype: str = "bf16"

    def run(self, module: ModuleOp, ctx: Context) -> None:
        wanted = DTYPES.get(self.dtype)
        if wanted is None or not wanted.is_float:
            raise PassOptionError(
                f"set-precision: {self.dtype!r} is not a float dtype", step="use dtype=bf16 or dtype=f32"
            )
        for op in [o for o in module.walk() if isinstance(o, (MatmulOp, GroupedMatmulOp))]:
            before = tensor(op.a).dtype
            block = op.parent_block()
            if before == wanted or block is None:
                continue
            if not ctx.apply([op], f"operands in {self.dtype}"):
                continue
            casts = [CastOp.make(value, dtype=self.dtype, like=op) for value in (op.a, op.b)]
            block.insert_ops_before(casts, op)
            made = type(op).make(
                *(c.out for c in casts),
                *op.slots()[2:],
                transpose_b=op.transpose_b.data,
                result=tensor(op.out).dtype.name,
                like=op,
            )
            block.insert_op_before(made, op)
            op.out.replace_all_uses_with(made.out)
            erase(op)
