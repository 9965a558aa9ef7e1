"""Gated linear attention: a state per head that decays and takes in a key times a value with every token.

Mamba-2's state-space recurrence and attention without a softmax are this one op (Dao and Gu 2024; Yang et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import GraphOp, at_least_f32, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


class GatedOp(GraphOp):
    """Shared by both forms: queries and keys [.., T, G, N], values [.., T, H, P], decay [.., T, H], H a multiple of G.

    Head h reads the queries and keys of group h // (H / G). decay: a logarithm, 0 or less.
    """

    def check_gated(self) -> tuple[TensorType, TensorType]:
        """The types of queries and values, after a look at all four."""
        queries, keys, values, decay = (tensor(x) for x in self.operands[:4])
        if any(x.dtype != values.dtype for x in (queries, keys, decay)) or not values.dtype.is_float:
            raise self.malformed(f"operands must be floats of one dtype, got {queries}, {keys}, {values}, {decay}")
        fits = queries == keys and values.rank == queries.rank and queries.dims[:-2] == values.dims[:-2]
        if not fits or decay.dims != values.dims[:-1]:
            raise self.malformed(
                f"needs queries and keys [.., T, G, N], values [.., T, H, P] and decay [.., T, H], "
                f"got {queries}, {keys}, {values}, {decay}"
            )
        groups, heads = queries.dims[-2].constant, values.dims[-2].constant
        if not groups or not heads or heads % groups:
            raise self.malformed(f"{values.dims[-2]} heads are not a fixed multiple of {queries.dims[-2]} groups")
        return queries, values

    @property
    def each(self) -> int:
        """Heads of a group."""
        queries, values = tensor(self.operands[0]), tensor(self.operands[2])
        return (values.dims[-2].constant or 1) // (queries.dims[-2].constant or 1)

    def worked(self) -> Expr:
        """FLOPs of the recurrence token by token: the state's three, the result's two; one exponential."""
        values = tensor(self.operands[2])
        return values.elements * tensor(self.operands[0]).dims[-1] * 5 + tensor(self.operands[3]).elements


@irdl_op_definition
class LinearAttentionOp(GatedOp):
    """S[t] = exp(decay[t]) S[t-1] + keys[t] values[t]^T from S = 0, and queries[t] S[t], per head; f32 or wider inside.

    queries, keys [B, T, G, N], values [B, T, H, P], decay [B, T, H]; the result [B, T, H, P].
    """

    name = "graph.linear_attention"
    queries = operand_def(TensorType)
    keys = operand_def(TensorType)
    values = operand_def(TensorType)
    decay = operand_def(TensorType)
    out = result_def(TensorType)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        queries, values = self.check_gated()
        if queries.rank != 4:
            raise self.malformed(f"takes queries [B, T, G, N], got {queries}")
        return [values]

    def reference(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, decay: torch.Tensor
    ) -> torch.Tensor:
        batch, _, heads, width = values.shape
        state = at_least_f32(values).new_zeros(batch, heads, queries.shape[3], width)
        return _walked([queries, keys, values, decay], state, self.each)[0]

    def cost(self) -> Cost:
        return self.compulsory(vector=self.worked())


@irdl_op_definition
class ContinuedLinearAttentionOp(GatedOp):
    """graph.linear_attention of several requests at once, each from a state of its own, whose tokens follow each other.

    queries, keys [T, G, N], values [T, H, P], decay [T, H]: request r's tokens are offsets[r]..offsets[r+1]-1, offsets
    [R+1] rising from 0 to T. states [S, H, N, P], f32 or wider: request r begins from states[rows[r]], rows [R].
    Results: out [T, H, P], and ends [R, H, N, P] as states: each request's state after its last token. Integers are i32
    or i64.
    """

    name = "graph.continued_linear_attention"
    queries = operand_def(TensorType)
    keys = operand_def(TensorType)
    values = operand_def(TensorType)
    decay = operand_def(TensorType)
    states = operand_def(TensorType)
    offsets = operand_def(TensorType)
    rows = operand_def(TensorType)
    out = result_def(TensorType)
    ends = result_def(TensorType)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        queries, values = self.check_gated()
        states, offsets, rows = tensor(self.states), tensor(self.offsets), tensor(self.rows)
        if queries.rank != 3:
            raise self.malformed(f"takes queries [T, G, N], got {queries}")
        wanted = (values.dims[1], queries.dims[2], values.dims[2])
        if states.rank != 4 or states.dims[1:] != wanted or not states.dtype.is_float or states.dtype.bits < 32:
            raise self.malformed(f"states must be f32 or wider [S, {', '.join(map(str, wanted))}], got {states}")
        if not (offsets.dtype.is_integer and rows.dtype.is_integer) or rows.rank != 1:
            raise self.malformed(f"offsets [R+1] and rows [R] must be integers, got {offsets} and {rows}")
        if offsets.dims != (rows.dims[0] + 1,):
            raise self.malformed(f"offsets must be one more than rows, got {offsets} and {rows}")
        return [values, TensorType.of((rows.dims[0], *states.dims[1:]), states.dtype)]

    def reference(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        decay: torch.Tensor,
        states: torch.Tensor,
        offsets: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        out, ends = torch.zeros_like(values), states.new_zeros(len(rows), *states.shape[1:])
        for r, row in enumerate(rows.tolist()):
            mine = slice(int(offsets[r]), int(offsets[r + 1]))
            given = [x[mine][None] for x in (queries, keys, values, decay)]
            found, state = _walked(given, at_least_f32(states[row])[None], self.each)
            out[mine], ends[r] = found[0], state[0].to(states.dtype)
        return out, ends

    def cost(self) -> Cost:
        # of the states, the rows of the requests alone
        ends, states = tensor(self.ends), tensor(self.states)
        whole = self.compulsory(vector=self.worked())
        return Cost.of(vector=self.worked(), read=whole.read - states.bytes + ends.bytes, write=whole.write)


def _walked(given: Sequence[torch.Tensor], state: torch.Tensor, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Results [B, T, H, P] and the last state [B, H, N, P] of queries, keys, values and decay."""
    import torch

    queries, keys, values, decay = given
    out = torch.zeros_like(values)
    q, k = (at_least_f32(x).repeat_interleave(each, 2) for x in (queries, keys))
    v, d = at_least_f32(values), at_least_f32(decay)
    for t in range(values.shape[1]):
        state = d[:, t].exp()[..., None, None] * state + k[:, t, ..., None] * v[:, t, :, None]
        out[:, t] = (q[:, t, ..., None] * state).sum(-2).to(values.dtype)
    return out, state


LINEAR_ATTENTION: list[type[GraphOp]] = [LinearAttentionOp, ContinuedLinearAttentionOp]
