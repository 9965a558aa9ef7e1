"""Multi-head latent attention: keys and values that are one product of a small latent, which is kept in their place.

Keys are W_k c beside a rotated part r that all heads share, values W_v c (DeepSeek-V2, 2405.04434, section 2.1). Of a
query in two parts, q . (W_k c, r) = (W_k^T q1, q2) . (c, r), and a sum of values W_v c is W_v times the sum of c. So
attention runs over (c, r) as the one key head of all query heads, whose values are c: the cheapest cut of what feeds
keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.passes.rewriting import defined, wide_dims


@dataclass(frozen=True)
class Latent:
    """What an attention's keys and values are made of.

    latent: [.., tokens, size], units before the tokens. shared: the rotated part [batch, 1, tokens, rotated], None for
    none. weight: [heads * each, size], of whose `each` features a head's keys are `key_features` from `keys` on, its
    values `value_features` from `values` on.
    """

    latent: SSAValue
    shared: SSAValue | None
    weight: SSAValue
    heads: int
    each: int
    size: int
    rotated: int
    keys: int
    key_features: int
    values: int
    value_features: int

    @property
    def width(self) -> int:
        """Numbers that a token keeps."""
        return self.size + self.rotated


def latent_of(op: AttentionOp) -> Latent | None:
    """The latent of an attention whose keys and values are cut from one product of it; None where they are not, where
    it would be no smaller than they are, or where head dims are no fixed numbers.
    """
    if op.bias is not None or tensor(op.k).rank != 4:
        return None
    joined = defined(op.k, ConcatOp)
    shared: SSAValue | None = None
    keys = op.k
    if joined is not None and joined.axis.data == 3 and len(joined.xs) == 2:
        spread = defined(joined.xs[1], BroadcastOp)
        if spread is None or tensor(spread.x).rank != 4 or tensor(spread.x).dims[1].constant != 1:
            return None
        keys, shared = joined.xs[0], spread.x
    (root, first), (other, second) = _cut(keys), _cut(op.v)
    turn = defined(root, TransposeOp)
    apart = None if turn is None else defined(turn.x, ReshapeOp)
    product = None if apart is None else defined(apart.x, MatmulOp)
    if root is not other or turn is None or apart is None or product is None or not product.transpose_b.data:
        return None
    if tuple(turn.permutation.data) != (0, 2, 1, 3) or tensor(product.b).rank != 2:
        return None
    batch, tokens, heads, each = tensor(apart.out).dims
    size, rotated = tensor(product.a).dims[-1], Expr.of(0) if shared is None else tensor(shared).dims[-1]
    sizes = [x.constant for x in (heads, each, size, rotated, tensor(keys).dims[-1], tensor(op.v).dims[-1])]
    if any(x is None for x in sizes) or wide_dims(tensor(product.a).dims) != wide_dims([batch, tokens, size]):
        return None
    count, per, width, turned, key_features, value_features = (x or 0 for x in sizes)
    if width + turned >= count * (key_features + turned + value_features):
        return None
    return Latent(product.a, shared, product.b, count, per, width, turned, first, key_features, second, value_features)


def _cut(value: SSAValue) -> tuple[SSAValue, int]:
    """What features are cut from, and the first of them."""
    first, size = 0, tensor(value).dims[-1]
    while True:
        cut, joined = defined(value, SliceOp), defined(value, ConcatOp)
        if cut is not None and _of_features(cut):
            first, value = first + (cut.starts.data[-1].constant or 0), cut.x
        elif joined is not None and joined.axis.data == tensor(value).rank - 1:
            begin = 0
            for part in joined.xs:
                width = tensor(part).dims[-1].constant
                if width is None or size.constant is None:
                    return value, first
                if begin <= first and first + size.constant <= begin + width:
                    value, first = part, first - begin
                    break
                begin += width
            else:
                return value, first
        else:
            return value, first


def _of_features(op: SliceOp) -> bool:
    """Whether it cuts along the last axis alone, and leaves nothing out between."""
    dims = tensor(op.x).dims
    whole = all(
        a == Expr.of(0) and b == n for a, b, n in list(zip(op.starts.data, op.stops.data, dims, strict=True))[:-1]
    )
    return whole and all(step == 1 for step in op.strides) and op.starts.data[-1].constant is not None
