"""Attention whose exponential is a polynomial of degree 2, where a flag does not ask for the exact one.

p(q.k) = c0 + c1 q.k + c2 (q.k)^2 is a product of features of q and of k: 1, q_a, and q_a q_b. So the sums over keys are
taken once, for all queries, and the work grows with their number instead of its square. The features are numbered in
blocks: block 0 is 1 and the q_a, the others are the products of two parts of `PART` features. A memory that holds the
sums of a few blocks only takes a few at a time, each op adding to what the one before it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Final

from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Float, Int, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.graph.attention import check_heads, query_heads
from tilewright.ir.graph.base import GraphOp, at_least_f32, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

PART: Final = 16
"""Features of a part."""


def parts(features: int) -> list[tuple[int, int]]:
    """The parts of a row of features, first and one past the last of each."""
    return [(at, min(at + PART, features)) for at in range(0, features, PART)]


def pairs(features: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The pairs of parts, the first one not after the second: blocks 1, 2, ..."""
    return list(combinations_with_replacement(parts(features), 2))


@irdl_op_definition
class PolynomialAttentionOp(GraphOp):
    """graph.attention with c0 + c1 x + c2 x^2 in place of exp(x), x = scale q.k; q [..., H, T, D], k [..., Hkv, S, D].

    v [..., Hkv, S, Dv]; exact: i64 [..., Hkv], 1 where a key head's attention is to be exact, else 0. mask: none, or
    causal, where T = S. The polynomial is positive where logits are as small as it was made for.

    first, last: the blocks of features that this op adds, [first, last). Under a causal mask a query and the keys of
    its own chunk of `chunk` positions meet in the first op, by all blocks, and in no other. All but the first op of a
    chain take `partial`, f32 [..., H, T, Dv + 1], the numerators and in the last column the denominator up to here;
    all but the last result in it, and the last in [..., H, T, Dv] of q's dtype. What partial sums are where exactness
    is asked for is open; 0.
    """

    name = "graph.polynomial_attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    exact = operand_def(TensorType)
    partial = opt_operand_def(TensorType)
    out = result_def(TensorType)
    scale = prop_def(Float)
    c0 = prop_def(Float)
    c1 = prop_def(Float)
    c2 = prop_def(Float)
    mask = prop_def(Str, default_value=Str("none"))
    first = prop_def(Int, default_value=Int(0))
    last = prop_def(Int)
    chunk = prop_def(Int)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        q, k, v = tensor(self.q), tensor(self.k), tensor(self.v)
        check_heads(self, q, k, v)
        mask = self.check_choice("mask", self.mask.data, ("none", "causal"))
        lead, (heads, queries, features), keys = q.dims[:-3], q.dims[-3:], k.dims[-2]
        if mask == "causal" and queries != keys:
            raise self.malformed(f"mask 'causal' needs as many queries as keys, got {queries} and {keys}")
        if features.constant is None or v.dims[-1].constant is None:
            raise self.malformed(f"head dims must be fixed numbers: {q}, {v}")
        if tensor(self.exact) != TensorType.of((*lead, k.dims[-3]), I64):
            raise self.malformed(f"exact must be i64 of the dims of k without its last two, got {tensor(self.exact)}")
        blocks, first, last = 1 + len(pairs(features.constant)), self.first.data, self.last.data
        if self.chunk.data < 1:
            raise self.malformed(f"chunks of {self.chunk.data} keys")
        if not 0 <= first < last <= blocks:
            raise self.malformed(f"blocks {first} to {last} of {blocks}")
        sums = TensorType.of((*lead, heads, queries, v.dims[-1] + 1), F32)
        if (self.partial is None) != (first == 0) or (self.partial is not None and tensor(self.partial) != sums):
            raise self.malformed(f"partial must be {sums} from block 1 on, and absent at block 0")
        return [TensorType.of((*lead, heads, queries, v.dims[-1]), q.dtype) if self.ends else sums]

    @property
    def ends(self) -> bool:
        """Whether it is the last of its chain."""
        return self.last.data == 1 + len(pairs(self.features))

    @property
    def features(self) -> int:
        """Of a row of q."""
        return tensor(self.q).dims[-1].constant or 0

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return query_heads(tensor(self.q).dims[-3], tensor(self.k).dims[-3]) or 1

    def reference(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        exact: torch.Tensor,
        partial: torch.Tensor | None = None,
    ) -> torch.Tensor:
        import torch

        wide, keys, values = (at_least_f32(x) for x in (q, k, v))
        keys, values = (x.repeat_interleave(self.group, -3) for x in (keys, values))
        asked = exact.repeat_interleave(self.group, -1)[..., None, None] != 0
        x = self.scale.data * (wide @ keys.mT)
        seen = torch.ones(x.shape[-2:], dtype=torch.bool, device=q.device)
        earlier = seen
        if self.mask.data == "causal":
            chunks = torch.arange(x.shape[-1], device=q.device) // self.chunk.data
            seen, earlier = seen.tril(), chunks[:, None] > chunks
        weights = torch.zeros_like(x)
        for block in range(self.first.data, self.last.data):
            if block == 0:
                weights = weights + self.c0.data + self.c1.data * x
                continue
            (a, a_end), (b, b_end) = pairs(self.features)[block - 1]
            products = [self.scale.data * (wide[..., i:j] @ keys[..., i:j].mT) for i, j in ((a, a_end), (b, b_end))]
            weights = weights + self.c2.data * (1 if a == b else 2) * products[0] * products[1]
        weights = weights.masked_fill(~earlier, 0)
        if self.first.data == 0:
            whole = self.c0.data + x * (self.c1.data + self.c2.data * x)
            weights = torch.where(seen & ~earlier, whole, weights)
        sums = torch.cat([weights @ values, weights.sum(-1, keepdim=True)], -1)
        sums = sums if partial is None else sums + partial
        if not self.ends:
            return sums.masked_fill(asked, 0)
        true = x.masked_fill(~seen, -torch.inf)
        true = (true - true.amax(-1, keepdim=True)).exp() if x.shape[-1] else true
        true = true @ values / (true.sum(-1, keepdim=True) if x.shape[-1] else 1)
        total = sums[..., -1:]
        rough = sums[..., :-1] / total.masked_fill(total == 0, 1)
        return torch.where(asked, true, rough).to(q.dtype)

    def cost(self) -> Cost:
        """Both products of every row with its features: sums over keys, and over features for every query."""
        q, k, v = tensor(self.q), tensor(self.k), tensor(self.v)
        features = 0
        for block in range(self.first.data, self.last.data):
            (a, a_end), (b, b_end) = pairs(self.features)[block - 1] if block else ((0, self.features), (0, 1))
            features += (a_end - a) * (b_end - b)
        rows = TensorType.of(q.dims[:-1], q.dtype).elements + TensorType.of(k.dims[:-1], k.dtype).elements
        return self.compulsory(matrix=rows * (v.dims[-1] + 1) * (2 * features), vector=rows * features)


POLYNOMIAL = [PolynomialAttentionOp]
