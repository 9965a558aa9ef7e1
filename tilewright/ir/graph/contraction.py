"""Contractions: matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.graph.base import GraphOp, Setting, at_least_f32, broadcast_dims, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class MatmulOp(GraphOp):
    """a [..., M, K] times b [..., K, N] (with transpose_b [..., N, K]); leading dims broadcast, f32 or wider inside.

    result: the dtype of the result where it is not the operands' ("f32" of bf16 operands keeps the sums unrounded).
    """

    name = "graph.matmul"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    out = result_def(TensorType)
    transpose_b = prop_def(Bool, default_value=Bool(False))
    result = prop_def(Str, default_value=Str(""))
    traits = traits_def(Pure())

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
        dtype = tensor(self.a).dtype
        if self.result.data:
            found = DTYPES.get(self.result.data)
            if found is None or not found.is_float or not dtype.is_float:
                raise self.malformed(f"result {self.result.data!r} of {dtype} operands: both must be floats")
            dtype = found
        return [TensorType.of((*lead, m, n), dtype)]

    def reference(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The sums before they are rounded to the result's dtype."""
        wide_a, wide_b = at_least_f32(a), at_least_f32(b)
        return wide_a @ (wide_b.mT if self.transpose_b.data else wide_b)

    def evaluate(self, setting: Setting, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.reference(a, b).to(setting.torch(tensor(self.out).dtype))

    def cost(self) -> Cost:
        _, _, _, k = self.sizes()
        return self.compulsory(matrix=tensor(self.out).elements * k * 2)


CONTRACTION = [MatmulOp]
