"""Contractions: matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def

from tilewright.ir.attributes import Bool
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import GraphOp, broadcast_dims, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class MatmulOp(GraphOp):
    """a [..., M, K] times b [..., K, N], or [..., N, K] with transpose_b; leading dims broadcast, accumulation in f32 or wider."""

    name = "graph.matmul"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    out = result_def(TensorType)
    transpose_b = prop_def(Bool)

    def sizes(self) -> tuple[tuple[Expr, ...], Expr, Expr, Expr]:
        """Leading dims, M, N and K."""
        a, b = tensor(self.a), tensor(self.b)
        if a.rank < 2 or b.rank < 2:
            raise self.malformed(f"operands need rank 2 or more, got {a} and {b}")
        m, k = a.dims[-2:]
        n, kb = b.dims[-2:] if self.transpose_b.data else (b.dims[-1], b.dims[-2])
        if k != kb:
            raise self.malformed(f"the contracted dims differ: {a} has {k}, {b} has {kb}")
        if a.dtype != b.dtype:
            raise self.malformed(f"operand dtypes differ: {a.dtype} and {b.dtype}")
        lead = broadcast_dims(self, a.dims[:-2], b.dims[:-2])
        return lead, m, n, k

    def infer(self) -> Sequence[TensorType]:
        lead, m, n, _ = self.sizes()
        return [TensorType.of((*lead, m, n), tensor(self.a).dtype)]

    def reference(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ (b.mT if self.transpose_b.data else b)

    def cost(self) -> Cost:
        _, _, _, k = self.sizes()
        return self.compulsory(matrix=tensor(self.out).elements * k * 2)
