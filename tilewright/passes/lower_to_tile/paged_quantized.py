"""Attention over quantized pages: a segment of keys is decoded once for all rows of a tile; values stay codes, which
are numbers of every float dtype, and their scales, one a token, go into the weights.

Tokens of a block see the same key decoded or in full precision, each by its own place. So two loops run, one after the
other: segments of codes up to the last token's border, then segments in full precision from the first one's on. A
segment of which a row sees nothing changes none of its bits, as everywhere, and so a token's bits depend on it alone.
"""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import DimSpace, Expr, floordiv, maximum
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.formats import UnpackOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.online_softmax import Segment
from tilewright.passes.lower_to_tile.paged import Requests, variants


def lower_quantized_paged_attention(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """graph.quantized_paged_attention: a kernel of its own."""
    op = next(o for o in group.block.ops if isinstance(o, QuantizedPagedAttentionOp))

    def kernel(called: str, tokens: int) -> KernelOp:
        return _kernel(op, Requests.begin(group, op, called, machine, dims, tokens))

    return variants(group, op, name, machine, dims, kernel)


def _kernel(op: QuantizedPagedAttentionOp, r: Requests) -> KernelOp:
    b, softmax, segment = r.b, r.softmax, r.softmax.segment
    most_old, most_near = (
        r.dims.interval(tensor(table).dims[1] * op.page.data)[1] for table in (op.table, op.near_table)
    )
    with b.loop(0, r.count, r.tokens) as block:
        scaled = r.scaled(block.at)
        of, near = r.block(block.at, op.positions), r.block(block.at, op.places)
        last = b.index(Expr.of("a0") - 1, of.end)
        old_end = _border(r, op, last)
        decoded = _Decoded(r, op, old_end)

        def old_at(key: SSAValue) -> Segment:
            k_at = b.coordinates(key, 1, (1, segment))
            logits = r.sloped(softmax.logits(scaled, decoded.keys(key)), of.q_at, k_at)
            return Segment(logits, b.map("lt", k_at, _borders(r, op, of.q_at)), *decoded.values(key))

        so_far = softmax.over(b.index(0), old_end, r.sinks, old_at, most_old)
        lowest = _border(r, op, near.first)
        keys, values = (r.rows(x, op.near_table, near.end) for x in (op.near_k, op.near_v))

        def near_at(key: SSAValue) -> Segment:
            k_at = b.coordinates(key, 1, (1, segment))
            seen = b.map("and", b.map("le", k_at, near.q_at), b.map("ge", k_at, _borders(r, op, near.q_at)))
            logits = r.sloped(softmax.logits(scaled, r.taken(keys, key, r.features)), near.q_at, k_at)
            return Segment(logits, seen, r.from_key(r.taken(values, key, r.wide), lowest, key))

        first = b.index(floordiv("a0", segment) * segment, lowest)
        r.store(block.at, softmax.over(first, near.end, None, near_at, most_near, before=so_far))
    return b.finish()


def _border(r: Requests, op: QuantizedPagedAttentionOp, at: SSAValue) -> SSAValue:
    """The first key that a token at a place sees in full precision."""
    return r.b.index(maximum(0, (floordiv("a0", op.page.data) + 1 - op.recent.data) * op.page.data), at)


def _borders(r: Requests, op: QuantizedPagedAttentionOp, at: SSAValue) -> SSAValue:
    """The same of a tile of tokens, i32 [rows, 1]; before the first key is as good as at it."""
    b, page = r.b, r.b.constant(op.page.data, (1, 1), I32)
    behind = b.constant(op.recent.data - 1, (1, 1), I32)
    return b.map("mul", b.map("sub", b.map("floordiv", at, page), behind), page)


class _Decoded:
    """Codes of a request up to `length` as numbers, in segments; 0 beyond."""

    def __init__(self, r: Requests, op: QuantizedPagedAttentionOp, length: SSAValue) -> None:
        self.r, self.op = r, op
        self._keys, self._values = (r.rows(x, op.table, length) for x in (op.k, op.v))
        page = op.page.data
        # a page's scales as those of each of its rows
        pages, heads, features = tensor(op.k_scales).dims
        whole, one = [pages, Expr.of(page), heads, features], Expr.of(1)
        by_page = [heads * features, Expr.of(0), features, one]
        self._k_scales, self._k_lows = (r.pages(x, op.table, length, whole, by_page) for x in (op.k_scales, op.k_lows))
        self._v_scales, self._v_lows = (r.counts(x, op.table, length) for x in (op.v_scales, op.v_lows))

    def keys(self, key: SSAValue) -> SSAValue:
        """[segment, features] in the queries' dtype."""
        b, size = self.r.b, self.r.features
        scales, lows = (b.cast(self.r.taken(x, key, size), F32) for x in (self._k_scales, self._k_lows))
        codes = b.cast(self._codes(self._keys, key, size), F32)
        return b.cast(b.map("fma", codes, scales, lows), tensor(self.op.q).dtype)

    def values(self, key: SSAValue) -> tuple[SSAValue, SSAValue, SSAValue]:
        """Codes [segment, value features] in the queries' dtype, scales and lowest numbers f32 [1, segment]."""
        r, b = self.r, self.r.b
        scale, low = (
            b.cast(b.reshape(r.taken(x, key, 1), (1, r.softmax.segment)), F32) for x in (self._v_scales, self._v_lows)
        )
        return b.cast(self._codes(self._values, key, r.wide), tensor(self.op.q).dtype), scale, low

    def _codes(self, view: SSAValue, key: SSAValue, size: int) -> SSAValue:
        """[segment, size]."""
        per = 8 // self.op.bits.data
        words = self.r.taken(view, key, size // per)
        return words if per == 1 else self.r.b.add(UnpackOp.make(words, format=f"uint{self.op.bits.data}", axis=1))
