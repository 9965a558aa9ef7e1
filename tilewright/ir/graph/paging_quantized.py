"""Attention over pages of quantized keys and values, the last pages before a token in full precision."""

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

from tilewright.ir.attributes import Float, Int
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import U8
from tilewright.ir.graph.attention import check_softcap, query_heads
from tilewright.ir.graph.base import GraphOp, at_least_f32, tensor
from tilewright.ir.graph.paging import by_row, check_requests
from tilewright.ir.graph.reduction import SOFTMAX_FLOPS
from tilewright.ir.scalars import SCALARS
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class QuantizedPagedAttentionOp(GraphOp):
    """graph.paged_attention, causal, where old pages are quantized.

    The token at position t sees the key at position s quantized where s // page <= t // page - recent, else in full
    precision: what it sees depends on t and s alone.

    q [T, H, D]. Quantized: k [P, Hkv, page, D * bits / 8] and v [P, Hkv, page, Dv * bits / 8], u8 with 8 / bits codes a
    byte, lowest bits first; a number is low + code * scale, with k_scales and k_lows [P, Hkv, D] of each feature in a
    page, v_scales and v_lows [P, Hkv, page] of each row. Pages by table [R, M]. In full precision: near_k [N, Hkv,
    page, D] and near_v [N, Hkv, page, Dv] in q's dtype, pages by near_table [R, L], whose first page begins at
    position - places [T], a multiple of `page`. positions, offsets, scale, softcap, sinks, slopes and the result: as in
    graph.paged_attention. bits: 4 or 8.
    """

    name = "graph.quantized_paged_attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    k_scales = operand_def(TensorType)
    k_lows = operand_def(TensorType)
    v_scales = operand_def(TensorType)
    v_lows = operand_def(TensorType)
    near_k = operand_def(TensorType)
    near_v = operand_def(TensorType)
    positions = operand_def(TensorType)
    places = operand_def(TensorType)
    offsets = operand_def(TensorType)
    table = operand_def(TensorType)
    near_table = operand_def(TensorType)
    sinks = opt_operand_def(TensorType)
    slopes = opt_operand_def(TensorType)
    out = result_def(TensorType)
    page = prop_def(Int)
    recent = prop_def(Int)
    bits = prop_def(Int)
    scale = prop_def(Float)
    softcap = prop_def(Float, default_value=Float(0.0))
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        q, k, near_k, near_v = (tensor(x) for x in (self.q, self.k, self.near_k, self.near_v))
        page, bits = self.page.data, self.bits.data
        if bits not in (4, 8) or page < 1 or self.recent.data < 1:
            raise self.malformed(f"bits {bits} (4 or 8), pages of {page}, {self.recent.data} recent ones")
        check_softcap(self, self.softcap.data)
        if not ((q.rank, near_k.rank, near_v.rank) == (3, 4, 4) and q.dtype == near_k.dtype == near_v.dtype) or (
            not q.dtype.is_float or q.dims[2] != near_k.dims[3] or near_k.dims[:3] != near_v.dims[:3]
        ):
            raise self.malformed(f"q, near_k and near_v do not fit: {q}, {near_k}, {near_v}")
        pages, shared, features, wide = k.dims[0], near_k.dims[1], near_k.dims[3], near_v.dims[3]
        heads, groups = q.dims[1].constant, shared.constant
        if not heads or not groups or heads % groups:
            raise self.malformed(f"{q.dims[1]} query heads are not a fixed multiple of {shared} key heads")
        if features * bits % 8 != Expr.of(0) or wide * bits % 8 != Expr.of(0):
            raise self.malformed(f"{features} and {wide} codes of {bits} bits fill no whole bytes")
        if near_k.dims[2] != Expr.of(page):
            raise self.malformed(f"{near_k} has no pages of {page} rows")
        rows = (pages, shared, Expr.of(page))
        stored = {
            "k": (self.k, (*rows, features * bits // 8)), "v": (self.v, (*rows, wide * bits // 8)),
            "k_scales": (self.k_scales, (pages, shared, features)), "v_scales": (self.v_scales, rows),
            "k_lows": (self.k_lows, (pages, shared, features)), "v_lows": (self.v_lows, rows),
        }  # fmt: skip
        for what, (value, dims) in stored.items():
            given = tensor(value)
            if given.dims != dims or (given.dtype != U8 if len(what) == 1 else not given.dtype.is_float):
                raise self.malformed(f"{what} must be {'u8' if len(what) == 1 else 'floats'} {dims}, got {given}")
        check_requests(
            self, {"positions": self.positions, "places": self.places},
            {"table": self.table, "near_table": self.near_table},
        )  # fmt: skip
        return [TensorType.of((*q.dims[:2], wide), q.dtype)]

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return query_heads(tensor(self.q).dims[1], tensor(self.near_k).dims[1]) or 1

    def reference(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_scales: torch.Tensor,
        k_lows: torch.Tensor,
        v_scales: torch.Tensor,
        v_lows: torch.Tensor,
        near_k: torch.Tensor,
        near_v: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        offsets: torch.Tensor,
        table: torch.Tensor,
        near_table: torch.Tensor,
        sinks: torch.Tensor | None = None,
        slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        import torch

        page = self.page.data
        k, v, v_scales, v_lows, near_k, near_v = (by_row(x) for x in (k, v, v_scales, v_lows, near_k, near_v))
        out = q.new_zeros((*q.shape[:2], near_v.shape[2]))
        for r in range(table.shape[0]):
            for t in range(int(offsets[r]), int(offsets[r + 1])):
                at, begin = int(positions[t]), int(positions[t] - places[t])
                border = max(0, (at // page + 1 - self.recent.data) * page)
                old, near = torch.arange(border), torch.arange(border, at + 1)
                rows = table[r].long()[old // page] * page + old % page
                pages = rows // page
                close = near_table[r].long()[(near - begin) // page] * page + near % page
                keys = self._decoded(k[rows]) * at_least_f32(k_scales[pages]) + at_least_f32(k_lows[pages])
                # keys are of q's precision, as they are in the products
                keys = torch.cat([at_least_f32(keys.to(q.dtype)), at_least_f32(near_k[close])])
                held = self._decoded(v[rows]) * at_least_f32(v_scales[rows, :, None])
                # codes are numbers of any dtype, their scale belongs to the weights
                held = torch.cat([held + at_least_f32(v_lows[rows, :, None]), at_least_f32(near_v[close])])
                keys, held = (x.repeat_interleave(self.group, 1).transpose(0, 1) for x in (keys, held))
                logits = (keys @ at_least_f32(q[t])[:, :, None])[..., 0] * self.scale.data
                if self.softcap.data:
                    logits = self.softcap.data * (logits / self.softcap.data).tanh()
                if slopes is not None:
                    logits = logits - slopes[:, None].to(logits.dtype) * (at - torch.arange(at + 1))
                if sinks is not None:
                    logits = torch.cat([logits, sinks[:, None].to(logits.dtype)], 1)
                weights = logits.softmax(-1)[:, : at + 1]
                out[t] = (weights[:, None] @ held)[:, 0].to(q.dtype)
        return out

    def _decoded(self, words: torch.Tensor) -> torch.Tensor:
        """Codes [.., n * 8 / bits] as f32 of bytes [.., n]."""
        import torch

        if self.bits.data == 8:
            return words.float()
        return torch.stack([words % 16, words // 16], -1).flatten(-2).float()

    def cost(self) -> Cost:
        """The work of every token against as many keys as its request's pages hold."""
        q, v, table = tensor(self.q), tensor(self.out), tensor(self.table)
        logits = q.dims[0] * q.dims[1] * table.dims[1] * self.page.data
        per_logit = SOFTMAX_FLOPS + 1 + (SCALARS["tanh"].flops + 2 if self.softcap.data else 0)
        per_logit += 3 if self.slopes is not None else 0
        return self.compulsory(matrix=logits * (q.dims[2] + v.dims[2]) * 2, vector=logits * per_logit)


QUANTIZED_PAGING = [QuantizedPagedAttentionOp]
