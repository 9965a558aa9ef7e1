"""What routed experts are made of: sorting slots by expert, and products whose right-hand side an expert picks.

A *slot* is one (token, choice) pair, counted row-major. No row moves: a product reads the rows of a segment where they
lie and writes each result to its own slot's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Int, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DTYPES, I32
from tilewright.ir.graph.base import GraphOp, Setting, at_least_f32, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class RouteOp(GraphOp):
    """Where each slot stands when slots are sorted by expert, stably: integers [S] to places [S] and offsets [E + 1].

    Expert e's slots stand at places offsets[e] to offsets[e + 1] - 1. An index below 0 counts as 0, one above the last
    expert as the last: every slot is some expert's. Results are i32.
    """

    name = "graph.route"
    indices = operand_def(TensorType)
    places = result_def(TensorType)
    offsets = result_def(TensorType)
    experts = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        indices = tensor(self.indices)
        if indices.rank != 1 or not indices.dtype.is_integer or self.experts.data < 1:
            raise self.malformed(f"takes integers [S] and one expert or more, got {indices}, {self.experts.data}")
        return [TensorType.of(indices.dims, I32), TensorType.of([self.experts.data + 1], I32)]

    def reference(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        experts = self.experts.data
        known = indices.long().clamp(0, experts - 1)
        places = torch.empty_like(known)
        places[known.argsort(stable=True)] = torch.arange(known.numel(), device=known.device)
        counts = torch.stack([(known < e).sum() for e in range(experts + 1)])
        return places.int(), counts.int()

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.indices).elements * (self.experts.data + 1) * 3)


@irdl_op_definition
class SlotsOp(GraphOp):
    """A permutation's inverse: places [S] (each of 0..S-1 once) to order [S] with order[places[s]] = s, and rows.

    rows[i] = order[i] // each: the row of the operand that slot i reads, where every row has `each` slots.
    """

    name = "graph.slots"
    places = operand_def(TensorType)
    order = result_def(TensorType)
    rows = result_def(TensorType)
    each = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        places = tensor(self.places)
        if places.rank != 1 or places.dtype != I32 or self.each.data < 1:
            raise self.malformed(f"takes i32 [S] and one slot a row or more, got {places}, {self.each.data}")
        return [places, places]

    def reference(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        slots = torch.empty_like(places)
        slots[places.long()] = torch.arange(places.numel(), dtype=places.dtype, device=places.device)
        return slots, slots // self.each.data

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.places).elements)


@irdl_op_definition
class GroupedMatmulOp(GraphOp):
    """Row targets[i] of the result is row rows[i] of a times the matrix of the expert whose segment i lies in.

    a [R, K]; b [E, K, N] (with transpose_b [E, N, K]); rows, targets i32 [S]; offsets i32 [E + 1]: expert e has i from
    offsets[e] to offsets[e + 1] - 1; bias [E, N] is added. Result [S, N] in a's dtype or `result`, f32 or wider inside.
    The targets of all segments are all rows of the result, each once.
    """

    name = "graph.grouped_matmul"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    rows = operand_def(TensorType)
    targets = operand_def(TensorType)
    offsets = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    out = result_def(TensorType)
    transpose_b = prop_def(Bool, default_value=Bool(False))
    result = prop_def(Str, default_value=Str(""))
    traits = traits_def(Pure())

    def sizes(self) -> tuple[Expr, Expr, Expr]:
        """Experts, N and K."""
        a, b = tensor(self.a), tensor(self.b)
        if a.rank != 2 or b.rank != 3 or a.dtype != b.dtype or not a.dtype.is_float:
            raise self.malformed(f"a [R, K] and b of rank 3 need one float dtype, got {a} and {b}")
        n, k = b.dims[1:] if self.transpose_b.data else b.dims[:0:-1]
        if k != a.dims[1]:
            raise self.malformed(f"the contracted dims differ: {a} has {a.dims[1]}, {b} has {k}")
        return b.dims[0], n, k

    def infer(self) -> Sequence[TensorType]:
        experts, n, _ = self.sizes()
        rows, targets, offsets = tensor(self.rows), tensor(self.targets), tensor(self.offsets)
        if rows != targets or targets.rank != 1 or targets.dtype != I32 or offsets != TensorType.of([experts + 1], I32):
            raise self.malformed(
                f"rows and targets i32 [S] and offsets i32 [{experts + 1}] needed, got {rows}, {targets}"
            )
        dtype = tensor(self.a).dtype
        if self.bias is not None and tensor(self.bias) != TensorType.of([experts, n], dtype):
            raise self.malformed(f"bias must be {TensorType.of([experts, n], dtype)}, got {tensor(self.bias)}")
        if self.result.data:
            found = DTYPES.get(self.result.data)
            if found is None or not found.is_float:
                raise self.malformed(f"result {self.result.data!r} is not a float dtype")
            dtype = found
        return [TensorType.of((targets.dims[0], n), dtype)]

    def reference(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        rows: torch.Tensor,
        targets: torch.Tensor,
        offsets: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sums before they are rounded to the result's dtype."""
        left, right = at_least_f32(a), at_least_f32(b)
        right = right.mT if self.transpose_b.data else right
        out = left.new_zeros(targets.shape[0], right.shape[-1])
        for expert in range(b.shape[0]):
            segment = slice(int(offsets[expert]), int(offsets[expert + 1]))
            product = left[rows[segment].long()] @ right[expert]
            out[targets[segment].long()] = product if bias is None else product + bias[expert]
        return out

    def evaluate(self, setting: Setting, *operands: torch.Tensor | None) -> torch.Tensor:
        return self.reference(*operands).to(setting.torch(tensor(self.out).dtype))  # type: ignore[arg-type]

    def cost(self) -> Cost:
        """The work of every slot; matrices are counted as read once each, as when all experts are hit."""
        _, _, k = self.sizes()
        out = tensor(self.out).elements
        return self.compulsory(matrix=out * k * 2, vector=out if self.bias is not None else 0)


ROUTING = [RouteOp, SlotsOp, GroupedMatmulOp]
