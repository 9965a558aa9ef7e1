"""Routed experts as one op, as models and the frontend hand them over; `routing` holds what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import (
    AttrSizedOperandSegments,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Str
from tilewright.ir.cost import Cost
from tilewright.ir.graph.base import GraphOp, at_least_f32, tensor
from tilewright.ir.scalars import SCALARS
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class ExpertsOp(GraphOp):
    """Routed feed-forward: token t is the sum over its k slots of weights[t,j] * expert indices[t,j] of x[t].

    x [T, D]; indices integers [T, k]; weights floats [T, k]; gate_up [E, 2F, D] (gate rows, then up rows) or [E, F, D]
    when not gated; down [E, D, F]; gate_up_bias [E, 2F] or [E, F]; down_bias [E, D]. An expert is
    down @ (activation(gate @ x) * (up @ x)), or down @ activation(gate @ x). A slot whose index is no expert (below 0,
    or E and above) adds nothing. Slots add up in order, in f32 or wider; the result [T, D] has x's dtype.
    """

    name = "graph.experts"
    x = operand_def(TensorType)
    indices = operand_def(TensorType)
    weights = operand_def(TensorType)
    gate_up = operand_def(TensorType)
    down = operand_def(TensorType)
    gate_up_bias = opt_operand_def(TensorType)
    down_bias = opt_operand_def(TensorType)
    out = result_def(TensorType)
    activation = prop_def(Str)
    gated = prop_def(Bool, default_value=Bool(True))
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, indices, weights = tensor(self.x), tensor(self.indices), tensor(self.weights)
        gate_up, down = tensor(self.gate_up), tensor(self.down)
        function = SCALARS.get(self.activation.data)
        if function is None or function.arity != 1 or not x.dtype.is_float or function.result([x.dtype]) != x.dtype:
            raise self.malformed(f"activation {self.activation.data!r} is not a function of one float like {x}")
        if x.rank != 2 or indices.rank != 2 or indices.dims[0] != x.dims[0] or not indices.dtype.is_integer:
            raise self.malformed(f"x [T, D] and integer indices [T, k] do not fit: {x}, {indices}")
        if weights.dims != indices.dims or not weights.dtype.is_float:
            raise self.malformed(f"weights must be floats with the dims of {indices}, got {weights}")
        if gate_up.rank != 3 or down.rank != 3 or not (x.dtype == gate_up.dtype == down.dtype):
            raise self.malformed(f"gate_up and down must be {x.dtype} of rank 3, got {gate_up} and {down}")
        experts, width = gate_up.dims[0], gate_up.dims[1]
        hidden = down.dims[2]
        if gate_up.dims[2] != x.dims[1] or down.dims[:2] != (experts, x.dims[1]):
            raise self.malformed(f"gate_up {gate_up} and down {down} do not fit {x}")
        if width != (hidden * 2 if self.gated.data else hidden):
            raise self.malformed(f"gate_up {gate_up} has {width} rows an expert, down {down} takes {hidden}")
        for what, value, size in (
            ("gate_up_bias", self.gate_up_bias, width),
            ("down_bias", self.down_bias, x.dims[1]),
        ):
            if value is not None and tensor(value) != TensorType.of([experts, size], x.dtype):
                raise self.malformed(f"{what} must be {TensorType.of([experts, size], x.dtype)}, got {tensor(value)}")
        return [x]

    def reference(
        self,
        x: torch.Tensor,
        indices: torch.Tensor,
        weights: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        wide, activation = at_least_f32(x), SCALARS[self.activation.data].torch
        out = wide.new_zeros(wide.shape)
        for token in range(x.shape[0]):
            for slot in range(indices.shape[1]):
                expert = int(indices[token, slot])
                if not 0 <= expert < gate_up.shape[0]:
                    continue
                hidden = at_least_f32(gate_up[expert]) @ wide[token]
                if gate_up_bias is not None:
                    hidden = hidden + gate_up_bias[expert]
                if self.gated.data:
                    gate, up = hidden.chunk(2)
                    hidden = activation(gate) * up
                else:
                    hidden = activation(hidden)
                answer = at_least_f32(down[expert]) @ hidden
                if down_bias is not None:
                    answer = answer + down_bias[expert]
                out[token] += weights[token, slot] * answer
        return out.to(x.dtype)

    def cost(self) -> Cost:
        """The work of every routed slot; weights are counted as read once each, as when all experts are hit."""
        slots = tensor(self.indices).elements
        gate_up, down = tensor(self.gate_up), tensor(self.down)
        per_slot = (gate_up.dims[1] * gate_up.dims[2] + down.dims[1] * down.dims[2]) * 2
        activation = down.dims[2] * (SCALARS[self.activation.data].flops + self.gated.data) + down.dims[1] * 2
        return self.compulsory(matrix=slots * per_slot, vector=slots * activation)


EXPERTS: list[type[GraphOp]] = [ExpertsOp]
