"""Attention over keys and values that lie in pages: what a step of generation does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xdsl.ir import SSAValue
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

from tilewright.ir.attributes import Float, Int, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import check_softcap, query_heads
from tilewright.ir.graph.base import GraphOp, at_least_f32, tensor
from tilewright.ir.graph.reduction import SOFTMAX_FLOPS
from tilewright.ir.scalars import SCALARS
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

PAGED_MASKS = ("causal", "sliding", "chunked")


@irdl_op_definition
class PagedAttentionOp(GraphOp):
    """graph.attention of several requests at once, whose tokens follow each other along one axis.

    q [T, H, D]: request r's tokens are offsets[r]..offsets[r+1]-1, offsets [R+1] rising from 0 to T. positions [T]: of
    each token in its request, never falling within it. k [P, Hkv, page, D] and v [P, Hkv, page, Dv]: pages, in which a
    head's rows lie side by side; the key at position p of request r is row p % page of page table[r, p // page], table
    [R, M]. A token sees the keys of its request up to its own position, and of those what mask and window leave (see
    graph.attention); rows that no token sees are not read. scale, softcap, sinks [H]: as in graph.attention. slopes
    [H], not beside sinks: a key's logit falls by the head's slope with every position between it and the token (ALiBi,
    Press et al. 2022). by_distance [H, L], not beside slopes: what is added to a key's logit by how many positions it
    lies before the token, which are less than L (T5, Raffel et al. 2020). log_counts [P, Hkv, page]: added to a key's
    logit, so that a key stands for so many equal ones. Without v, values are the first `values` features of k. The
    softmax runs in f32 or wider; results [T, H, Dv] have q's dtype. Integers are i32 or i64.
    """

    name = "graph.paged_attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = opt_operand_def(TensorType)
    positions = operand_def(TensorType)
    offsets = operand_def(TensorType)
    table = operand_def(TensorType)
    sinks = opt_operand_def(TensorType)
    slopes = opt_operand_def(TensorType)
    by_distance = opt_operand_def(TensorType)
    log_counts = opt_operand_def(TensorType)
    out = result_def(TensorType)
    page = prop_def(Int)
    scale = prop_def(Float)
    mask = prop_def(Str, default_value=Str("causal"))
    window = prop_def(Int, default_value=Int(0))
    softcap = prop_def(Float, default_value=Float(0.0))
    values = prop_def(Int, default_value=Int(0))
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        q, k = tensor(self.q), tensor(self.k)
        v = TensorType.of((*k.dims[:3], self.values.data), k.dtype) if self.v is None else tensor(self.v)
        if (self.v is None) != (self.values.data > 0) or (k.rank and self.values.data > (k.dims[-1].constant or 0)):
            raise self.malformed(f"the first {self.values.data} features of {k} as values, beside v {self.v}")
        mask = self.check_choice("mask", self.mask.data, PAGED_MASKS)
        if (mask != "causal") != (self.window.data > 0):
            raise self.malformed(f"mask {mask!r} with window {self.window.data}")
        check_softcap(self, self.softcap.data)
        wanted = "q [T, H, D], k [P, Hkv, page, D] and v [P, Hkv, page, Dv]"
        kinds = (q.rank, k.rank, v.rank) == (3, 4, 4) and q.dtype == k.dtype == v.dtype and q.dtype.is_float
        if not kinds:
            raise self.malformed(f"{wanted} must be floats of one dtype: {q}, {k}, {v}")
        if q.dims[2] != k.dims[3] or k.dims[:3] != v.dims[:3]:
            raise self.malformed(f"{wanted} do not fit: {q}, {k}, {v}")
        heads, groups = q.dims[1].constant, k.dims[1].constant
        if not heads or not groups or heads % groups:
            raise self.malformed(f"{q.dims[1]} query heads are not a fixed multiple of {k.dims[1]} key heads")
        if self.page.data < 1 or k.dims[2] != Expr.of(self.page.data):
            raise self.malformed(f"{k} has no pages of {self.page.data} rows")
        check_requests(self, {"positions": self.positions}, {"table": self.table})
        if self.by_distance is not None:
            added = tensor(self.by_distance)
            if added.rank != 2 or added.dims[0] != q.dims[1] or not added.dtype.is_float or self.slopes is not None:
                raise self.malformed(f"by_distance must be floats [{q.dims[1]}, L] without slopes beside, got {added}")
        if self.log_counts is not None:
            added = tensor(self.log_counts)
            if added.dims != k.dims[:3] or not added.dtype.is_float:
                raise self.malformed(f"log_counts must be floats {list(k.dims[:3])}, got {added}")
        return [TensorType.of((*q.dims[:2], v.dims[3]), q.dtype)]

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return query_heads(tensor(self.q).dims[1], tensor(self.k).dims[1]) or 1

    def reference(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor | None,
        positions: torch.Tensor,
        offsets: torch.Tensor,
        table: torch.Tensor,
        sinks: torch.Tensor | None = None,
        slopes: torch.Tensor | None = None,
        by_distance: torch.Tensor | None = None,
        log_counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        import torch

        k, v = by_row(k), by_row(k[..., : self.values.data] if v is None else v)
        log_counts = None if log_counts is None else by_row(log_counts)
        out = q.new_zeros((*q.shape[:2], v.shape[2]))
        for r in range(table.shape[0]):
            for t in range(int(offsets[r]), int(offsets[r + 1])):
                at = int(positions[t])
                keys = torch.tensor([s for s in range(at + 1) if self.sees(at, s)], dtype=torch.int64, device=q.device)
                rows = table[r].long()[keys // self.page.data] * self.page.data + keys % self.page.data
                near, held = (at_least_f32(x[rows]).repeat_interleave(self.group, 1).transpose(0, 1) for x in (k, v))
                logits = (near @ at_least_f32(q[t])[:, :, None])[..., 0] * self.scale.data
                if self.softcap.data:
                    logits = self.softcap.data * (logits / self.softcap.data).tanh()
                if slopes is not None:
                    logits = logits - slopes[:, None].to(logits.dtype) * (at - keys)
                if by_distance is not None:
                    logits = logits + by_distance[:, at - keys].to(logits.dtype)
                if log_counts is not None:
                    counted = log_counts[rows].to(logits.dtype).repeat_interleave(self.group, 1)
                    logits = logits + counted.transpose(0, 1)
                if sinks is not None:
                    logits = torch.cat([logits, sinks[:, None].to(logits.dtype)], 1)
                weights = logits.softmax(-1)[:, : len(keys)]
                out[t] = (weights[:, None] @ held)[:, 0].to(q.dtype)
        return out

    def sees(self, query: int, key: int) -> bool:
        """Whether a token at one position sees a key at another."""
        if self.mask.data == "sliding":
            return key <= query < key + self.window.data
        if self.mask.data == "chunked":
            return key <= query and key // self.window.data == query // self.window.data
        return key <= query

    def cost(self) -> Cost:
        """The work of every token against as many keys as its request's pages hold."""
        q, v, table = tensor(self.q), tensor(self.out), tensor(self.table)
        logits = q.dims[0] * q.dims[1] * table.dims[1] * self.page.data
        per_logit = SOFTMAX_FLOPS + 1 + (SCALARS["tanh"].flops + 2 if self.softcap.data else 0)
        per_logit += 3 if self.slopes is not None else 0
        per_logit += sum(1 for added in (self.by_distance, self.log_counts) if added is not None)
        return self.compulsory(matrix=logits * (q.dims[2] + v.dims[2]) * 2, vector=logits * per_logit)


def by_row(x: torch.Tensor) -> torch.Tensor:
    """Pages [P, heads, page, ..] as rows [P * page, heads, ..], those of page p from p * page on."""
    return x.transpose(1, 2).flatten(0, 1)


def check_requests(op: Any, by_token: dict[str, SSAValue], tables: dict[str, SSAValue]) -> None:
    """Raises where what an op over requests is told of tokens [T], pages [R, M], requests and heads does not fit."""
    q = tensor(op.q)
    requests = tensor(next(iter(tables.values()))).dims[0]
    wanted: dict[str, tuple[SSAValue, tuple[Expr, ...]]] = {
        what: (value, (q.dims[0],)) for what, value in by_token.items()
    }
    wanted["offsets"] = (op.offsets, (requests + 1,))
    wanted |= {what: (value, (requests, tensor(value).dims[-1])) for what, value in tables.items()}
    for what, (value, dims) in wanted.items():
        given = tensor(value)
        if not given.dtype.is_integer or given.dims != dims:
            raise op.malformed(f"{what} must be integers, by token [T], offsets [R+1], tables [R, M], got {given}")
    for what in ("sinks", "slopes"):
        value = getattr(op, what)
        if value is not None and (tensor(value).dims != q.dims[1:2] or not tensor(value).dtype.is_float):
            raise op.malformed(f"{what} must be floats [{q.dims[1]}], got {tensor(value)}")
    if op.sinks is not None and op.slopes is not None:
        # slopes are known up to a number a token, which a sink would weigh
        raise op.malformed("sinks and slopes exclude each other")


PAGING = [PagedAttentionOp]
