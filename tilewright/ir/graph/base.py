"""What every graph op shares: tensor-typed operands, a torch reference, and compulsory traffic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xdsl.ir import SSAValue

from tilewright.errors import IRError
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr, ExprLike
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType


def tensor(value: SSAValue) -> TensorType:
    """The tensor type of a value."""
    if not isinstance(value.type, TensorType):
        raise IRError(f"expected a graph.tensor, got {value.type}", step="check the op that produces this operand")
    return value.type


def broadcast_dims(op: TwOperation, *shapes: Sequence[Expr]) -> tuple[Expr, ...]:
    """The common shape of several: trailing axes align, 1 stretches, anything else must be proved equal."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Expr] = []
    for axis in range(-rank, 0):
        size = Expr.of(1)
        for shape in shapes:
            if -axis > len(shape) or shape[axis].constant == 1:
                continue
            if size.constant != 1 and size != shape[axis]:
                listed = ", ".join("[" + ", ".join(map(str, s)) + "]" for s in shapes)
                raise op.malformed(f"shapes do not broadcast: {listed} (axis {axis}: {size} and {shape[axis]})")
            size = shape[axis]
        result.append(size)
    return tuple(result)


class GraphOp(TwOperation):
    """A graph op: `reference` takes torch tensors in operand order and gives the result, or a tuple of results.

    The reference is slow and obviously right. It computes in the dtype of the tensors it is given, so that feeding
    float64 gives the higher-precision answer that tests compare with.
    """

    def reference(self, *operands: Any) -> Any:
        """The op's meaning on torch tensors; ops with regions are the interpreter's to run."""
        raise IRError(f"{self.name} has no reference of its own", step="run it through the graph interpreter")

    def compulsory(self, *, matrix: ExprLike = 0, vector: ExprLike = 0) -> Cost:
        """The given work, with every operand read once and every result written once."""
        read = sum((v.type.bytes for v in self.operands if isinstance(v.type, TensorType)), Expr.of(0))
        write = sum((v.type.bytes for v in self.results if isinstance(v.type, TensorType)), Expr.of(0))
        return Cost.of(matrix=matrix, vector=vector, read=read, write=write)
