"""The proof that an op treats tokens one by one: what it computes for a token depends on that token alone.

Outside attention this is what allows a program to see any tokens of any requests at once. A value carries tokens along
the axis whose size is the tokens' dim. `fault` says of an op why it mixes tokens, or None.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.graph import (
    attention,
    contraction,
    elementwise,
    experts,
    indexing,
    quantization,
    reduction,
    shape,
    structure,
)  # fmt: skip
from tilewright.ir.graph.base import tensor

ELEMENTWISE = (elementwise.MapOp, elementwise.CastOp, attention.RotaryOp, shape.BroadcastOp)
ALONG = (reduction.SoftmaxOp, reduction.CumulativeOp, reduction.SortOp, reduction.TopkOp)


class Tokens:
    """The tokens' dim, and questions about axes that count it."""

    def __init__(self, dim: str) -> None:
        self.dim = dim

    def axes(self, value: SSAValue) -> list[int]:
        """The axes whose sizes depend on the number of tokens."""
        return [axis for axis, size in enumerate(tensor(value).dims) if self.dim in size.symbols]

    def axis(self, value: SSAValue) -> int | None:
        """The axis that counts tokens; None where the value is the same for all of them."""
        found = self.axes(value)
        return found[0] if found else None

    def fault(self, op: Operation) -> str | None:
        """Why the op mixes tokens, or cannot be shown not to; None where it treats them one by one."""
        values = [*op.operands, *op.results]
        for value in values:
            axes = self.axes(value)
            if len(axes) > 1:
                return f"{tensor(value)} relates tokens to tokens"
            if axes and tensor(value).dims[axes[0]] != Expr.of(self.dim):
                return f"{tensor(value)} mixes tokens with something else along axis {axes[0]}"
        if not any(self.axes(value) for value in values):
            return None
        return self._mixing(op)

    def _mixing(self, op: Operation) -> str | None:
        match op:
            case _ if isinstance(op, ELEMENTWISE):
                (out,) = op.results
                return None if all(self._aligned(x, out) for x in op.operands) else "its operands' tokens do not align"
            case structure.ConstantOp():
                return None if op.splat is not None else "it gives every token a number of its own"
            case structure.IotaOp():
                return "it counts tokens" if op.axis.data == self.axis(op.out) else None
            case structure.DimOp():
                return "it computes with the number of tokens"
            case reduction.NormOp():
                return self._off(op.x, [tensor(op.x).rank - 1], "it normalises over tokens")
            case _ if isinstance(op, ALONG):
                return self._off(op.operands[0], [op.axis.data], "it works along the tokens")
            case reduction.ReduceOp():
                return self._off(op.x, op.axes.data, "it reduces over tokens")
            case contraction.MatmulOp():
                return self._matmul(op)
            case shape.ReshapeOp():
                return self._reshape(op)
            case shape.TransposeOp():
                return None
            case shape.SliceOp():
                return self._slice(op)
            case shape.ConcatOp():
                return self._off(op.xs[0], [op.axis.data], "it puts tokens beside each other")
            case shape.PadOp():
                axis = self.axis(op.x)
                zero = axis is None or op.low.data[axis] == op.high.data[axis] == Expr.of(0)
                return None if zero else "it adds tokens"
            case indexing.GatherOp():
                return self._off(op.x, [op.axis.data], "it picks tokens")
            case indexing.TakeAlongOp():
                return self._off(op.x, [op.axis.data], "it picks tokens")
            case indexing.PutAlongOp():
                return self._off(op.x, [op.axis.data], "it writes to other tokens")
            case experts.ExpertsOp():
                return None
            case quantization.QuantizeOp() | quantization.DequantizeOp():
                return self._off(op.operands[0], [op.axis.data], "its scales run along the tokens")
            case _:
                return "it is not known to treat tokens one by one"

    def _off(self, value: SSAValue, axes: Sequence[int], otherwise: str) -> str | None:
        return otherwise if self.axis(value) in axes else None

    def _aligned(self, operand: SSAValue, out: SSAValue) -> bool:
        """Whether the operand's tokens lie along the result's, counted from the last axis, or it has none."""
        axis, there = self.axis(operand), self.axis(out)
        return axis is None or (there is not None and axis - tensor(operand).rank == there - tensor(out).rank)

    def _matmul(self, op: contraction.MatmulOp) -> str | None:
        axis, rank = self.axis(op.a), tensor(op.a).rank
        if self.axis(op.b) is not None:
            return "its right-hand side has tokens"
        return "it adds up over tokens" if axis == rank - 1 and rank > 1 else None

    def _reshape(self, op: shape.ReshapeOp) -> str | None:
        before, after = self.axis(op.x), self.axis(op.out)
        if before is None or after is None:
            return "it makes the tokens' axis disappear"
        same = product(tensor(op.x).dims[:before]) == product(tensor(op.out).dims[:after])
        return None if same else "it moves numbers between tokens"

    def _slice(self, op: shape.SliceOp) -> str | None:
        axis = self.axis(op.x)
        if axis is None:
            return "it gives tokens that its operand has not"
        whole = op.starts.data[axis] == Expr.of(0) and op.stops.data[axis] == tensor(op.x).dims[axis]
        step = op.steps.data[axis] if op.steps.data else 1
        return None if whole and step == 1 else "it picks tokens"
