"""Attention, whole, with every form of mask kept as a property or an operand, and rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import (
    AttrSizedOperandSegments,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_result_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Float, Int, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr, exact_div
from tilewright.ir.dtypes import F32, I1, promote
from tilewright.ir.graph.base import GraphOp, at_least_f32, broadcast_dims, show, tensor
from tilewright.ir.graph.reduction import SOFTMAX_FLOPS
from tilewright.ir.scalars import SCALARS
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch
    from xdsl.ir import SSAValue

MASKS = ("none", "causal", "sliding", "chunked")


def check_heads(op: GraphOp, q: TensorType, k: TensorType, v: TensorType) -> None:
    """Raises IRError where q [..., H, Tq, D], k [..., Hkv, Tk, D] and v [..., Hkv, Tk, Dv] are no attention's."""
    if q.rank < 3 or k.rank != q.rank or v.rank != q.rank or not (q.dtype == k.dtype == v.dtype):
        raise op.malformed(f"q, k, v need equal ranks of 3 or more and one dtype, got {q}, {k}, {v}")
    if not q.dtype.is_float:
        raise op.malformed(f"takes floats, got {q}")
    if not q.dims[:-3] == k.dims[:-3] == v.dims[:-3] or k.dims[-3:-1] != v.dims[-3:-1] or q.dims[-1] != k.dims[-1]:
        raise op.malformed(f"q [..., H, Tq, D], k [..., Hkv, Tk, D] and v [..., Hkv, Tk, Dv] do not fit: {q}, {k}, {v}")
    if query_heads(q.dims[-3], k.dims[-3]) is None:
        raise op.malformed(f"{q.dims[-3]} query heads are not a fixed multiple of {k.dims[-3]} key heads")


def check_softcap(op: GraphOp, cap: float) -> None:
    """Raises IRError for a cap of logits that is below 0 or no number."""
    if not 0 <= cap < float("inf"):
        raise op.malformed(f"softcap {cap} is not 0 (none) or a number above it")


def query_heads(heads: Expr, shared: Expr) -> int | None:
    """How many query heads share a key head, of so many of each; None where that is no fixed number of 1 or more."""
    if heads.constant == 0:
        return 1
    each = None if shared.constant == 0 else exact_div(heads, shared)
    return None if each is None else each.constant or None


@irdl_op_definition
class AttentionOp(GraphOp):
    """softmax(scale q k^T, masked) v over keys, per head; q [..., H, Tq, D], k [..., Hkv, Tk, D], v [..., Hkv, Tk, Dv].

    Results: out [..., H, Tq, Dv] in q's dtype and, with `lse`, the logarithm of the softmax's denominator [..., H, Tq]
    in f32 or wider. Query head h reads key head h // (H / Hkv). Logits: scale * q.k, then softcap * tanh(. / softcap)
    unless softcap is 0, then + bias. The softmax runs in f32 or wider.

    mask: none; causal (pos_k <= pos_q); sliding (causal and pos_q - pos_k < window); chunked (causal and both in one
    chunk of `window` positions). Without positions, keys count 0..Tk-1 and queries end where keys end.
    bias: floats, broadcastable to [..., H, Tq, Tk]. valid: i1 [..., Tk] (leading dims as q's or 1), or of q's rank and
    broadcastable to [..., H, Tq, Tk]. q_positions, k_positions: integers [T] or [..., T]. sinks: floats [H], one more
    logit a head in the denominator (and so in lse) that carries no value. segments: integers [T] or [..., T] where
    T = Tq = Tk; only pairs of one segment see each other.
    A key that no query may see contributes nothing, whatever it holds. A row without a key gives 0 and lse -inf (the
    sink where there is one).
    """

    name = "graph.attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    valid = opt_operand_def(TensorType)
    q_positions = opt_operand_def(TensorType)
    k_positions = opt_operand_def(TensorType)
    sinks = opt_operand_def(TensorType)
    segments = opt_operand_def(TensorType)
    out = result_def(TensorType)
    lse_out = opt_result_def(TensorType)
    scale = prop_def(Float)
    mask = prop_def(Str, default_value=Str("none"))
    window = prop_def(Int, default_value=Int(0))
    softcap = prop_def(Float, default_value=Float(0.0))
    lse = prop_def(Bool, default_value=Bool(False))
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        q, k, v = tensor(self.q), tensor(self.k), tensor(self.v)
        self._check_operands(q, k, v)
        lead, (heads, tq, _), (_, tk, _) = q.dims[:-3], q.dims[-3:], k.dims[-3:]
        logits = (*lead, heads, tq, tk)
        if self.bias is not None:
            self._check_float("bias", self.bias)
            self._check_broadcast("bias", tensor(self.bias), logits)
        if self.valid is not None:
            valid = tensor(self.valid)
            if valid.dtype != I1 or valid.rank not in (q.rank - 2, q.rank):
                raise self.malformed(f"valid must be i1 of rank {q.rank - 2} or {q.rank}, got {valid}")
            self._check_broadcast("valid", valid, (*lead, tk) if valid.rank == q.rank - 2 else logits)
        for what, value, size in (
            ("q_positions", self.q_positions, tq),
            ("k_positions", self.k_positions, tk),
            ("segments", self.segments, tq),
        ):
            if value is not None:
                self._check_integers(what, tensor(value), lead, size)
        if self.segments is not None and tq != tk:
            raise self.malformed(f"segments need as many queries as keys, got {tq} and {tk}")
        if self.sinks is not None:
            self._check_float("sinks", self.sinks)
            if tensor(self.sinks).dims != (heads,):
                raise self.malformed(f"sinks must have the dims [{heads}], got {tensor(self.sinks)}")
        out = TensorType.of((*lead, heads, tq, v.dims[-1]), q.dtype)
        return [out, TensorType.of((*lead, heads, tq), promote(q.dtype, F32))] if self.lse.data else [out]

    def _check_operands(self, q: TensorType, k: TensorType, v: TensorType) -> None:
        mask = self.check_choice("mask", self.mask.data, MASKS)
        if (mask in ("sliding", "chunked")) != (self.window.data > 0):
            raise self.malformed(f"mask {mask!r} with window {self.window.data}")
        check_softcap(self, self.softcap.data)
        check_heads(self, q, k, v)

    def _check_float(self, what: str, value: SSAValue) -> None:
        if not tensor(value).dtype.is_float:
            raise self.malformed(f"{what} must be floats, got {tensor(value)}")

    def _check_broadcast(self, what: str, given: TensorType, dims: tuple[Expr, ...]) -> None:
        if broadcast_dims(self, given.dims, dims) != dims:
            raise self.malformed(f"{what} {given} does not broadcast to {show(dims)}")

    def _check_integers(self, what: str, given: TensorType, lead: tuple[Expr, ...], size: Expr) -> None:
        if not given.dtype.is_integer or given.rank not in (1, len(lead) + 1) or given.dims[-1:] != (size,):
            raise self.malformed(f"{what} must be integers [{size}] or {show((*lead, size))}, got {given}")
        self._check_broadcast(what, given, (*lead, size))

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return query_heads(tensor(self.q).dims[-3], tensor(self.k).dims[-3]) or 1

    def reference(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        q_positions: torch.Tensor | None = None,
        k_positions: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        import torch

        group = q.shape[-3] // k.shape[-3] if k.shape[-3] else 1
        keys = at_least_f32(k).repeat_interleave(group, -3)
        values = at_least_f32(v).repeat_interleave(group, -3)
        logits = at_least_f32(q) @ keys.mT * self.scale.data
        if self.softcap.data:
            logits = self.softcap.data * (logits / self.softcap.data).tanh()
        if bias is not None:
            logits = logits + bias
        seen = self.visible(logits.shape, valid, q_positions, k_positions, segments, device=q.device)
        logits = logits.masked_fill(~seen, -torch.inf)
        values = values.masked_fill(~seen.any(-2)[..., None], 0)

        sink = logits.new_full((q.shape[-3], 1, 1), -torch.inf) if sinks is None else sinks[:, None, None]
        logits = torch.cat([logits, sink.to(logits.dtype).expand(*logits.shape[:-1], 1)], -1)
        # Shifted by the largest, which is exact, and not by lse: a logit of 1e4 has no digits left for a logarithm.
        # Where nothing is visible the shift would be -inf - -inf.
        largest = logits.amax(-1, keepdim=True)
        weights = (logits - largest.masked_fill(largest == -torch.inf, 0)).exp()
        total = weights.sum(-1, keepdim=True)
        out = (weights[..., :-1] @ values / total.masked_fill(total == 0, 1)).to(q.dtype)
        return (out, logits.logsumexp(-1)) if self.lse.data else out

    def visible(
        self,
        shape: Sequence[int],
        valid: torch.Tensor | None,
        q_positions: torch.Tensor | None,
        k_positions: torch.Tensor | None,
        segments: torch.Tensor | None,
        *,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """i1 of the logits' shape: which query may see which key."""
        import torch

        tq, tk = shape[-2:]
        seen = torch.ones(*shape, dtype=torch.bool, device=device)
        at_q = torch.arange(tk - tq, tk, device=device) if q_positions is None else q_positions.long()
        at_k = torch.arange(tk, device=device) if k_positions is None else k_positions.long()
        # [..., T] becomes [..., 1, T, 1] for queries and [..., 1, 1, T] for keys
        at_q, at_k = at_q[..., None, :, None], at_k[..., None, None, :]
        if self.mask.data != "none":
            seen = seen & (at_k <= at_q)
        if self.mask.data == "sliding":
            seen = seen & (at_q - at_k < self.window.data)
        if self.mask.data == "chunked":
            chunk = self.window.data
            seen = seen & (at_q.div(chunk, rounding_mode="floor") == at_k.div(chunk, rounding_mode="floor"))
        if segments is not None:
            seen = seen & (segments[..., None, :, None] == segments[..., None, None, :])
        if valid is not None:
            seen = seen & (valid[..., None, None, :] if valid.ndim == len(shape) - 2 else valid)
        return seen

    def cost(self) -> Cost:
        """The work of every query against every key; a mask's savings belong to the tiles that skip blocks."""
        q, k, v = tensor(self.q), tensor(self.k), tensor(self.v)
        logits = TensorType.of((*q.dims[:-1], k.dims[-2]), q.dtype).elements
        per_logit = SOFTMAX_FLOPS + 1 + (self.bias is not None)
        per_logit += SCALARS["tanh"].flops + 2 if self.softcap.data else 0
        return self.compulsory(matrix=logits * (q.dims[-1] + v.dims[-1]) * 2, vector=logits * per_logit)


@irdl_op_definition
class RotaryOp(GraphOp):
    """x [..., T, D] with pairs of features turned by angles; cos and sin broadcast to x, D even, in f32 or wider.

    half: pairs are (i, i + D/2): concat(x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2). interleaved: pairs are
    (2i, 2i + 1). Feature j uses cos[..., j] and sin[..., j] in both.
    """

    name = "graph.rotary"
    x = operand_def(TensorType)
    cos = operand_def(TensorType)
    sin = operand_def(TensorType)
    out = result_def(TensorType)
    style = prop_def(Str, default_value=Str("half"))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        self.check_choice("style", self.style.data, ("half", "interleaved"))
        features = x.dims[-1].constant if x.dims else None
        if not x.dtype.is_float or features is None or features % 2:
            raise self.malformed(f"takes floats with an even, fixed last dim, got {x}")
        for what, table in (("cos", tensor(self.cos)), ("sin", tensor(self.sin))):
            if not table.dtype.is_float or broadcast_dims(self, x.dims, table.dims) != x.dims:
                raise self.malformed(f"{what} {table} does not broadcast to {x}")
        return [x]

    def reference(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        import torch

        wide = at_least_f32(x)
        if self.style.data == "half":
            first, second = wide.chunk(2, -1)
            partner = torch.cat([-second, first], -1)
        else:
            first, second = wide[..., 0::2], wide[..., 1::2]
            partner = torch.stack([-second, first], -1).reshape(wide.shape)
        return (wide * at_least_f32(cos) + partner * at_least_f32(sin)).to(x.dtype)

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.x).elements * 3)


ATTENTION = [AttentionOp, RotaryOp]
