"""The linear-attention skeleton: a program is one request and one head; its state stays on chip while tokens pass.

Token by token and in order, so that a token's bits depend on its own request's tokens alone, however they are cut into
steps. A token costs as many FLOPs as in products over chunks, and the state, 32 KiB at 128 by 64, fits a first-level
cache.
"""

from __future__ import annotations

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr, floordiv
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.linear_attention import ContinuedLinearAttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.tile.memory import ViewSegmentOp
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin


def lower_linear_attention(group: GroupOp, name: str) -> Lowered:
    """graph.continued_linear_attention: a kernel of its own."""
    op = next(o for o in group.block.ops if isinstance(o, ContinuedLinearAttentionOp))
    if set(group.yielded) - set(op.results) or not all(isinstance(v, BlockArgument) for v in op.operands):
        raise unsupported(op, "linear attention from a state is a kernel of its own")
    b, buffers, outputs = begin(group, name)
    given = dict(zip(group.yielded, outputs, strict=True))
    (total, heads, wide), features = tensor(op.values).dims, tensor(op.queries).dims[2]
    size, width, wanted = features.constant, wide.constant, tensor(op.states).dtype
    if size is None or width is None:
        raise unsupported(op, "the features of queries and values must be fixed numbers")
    kept, (requests,) = tensor(op.states).dims[0], tensor(op.rows).dims
    head, request = b.grid([heads, requests], [1, 1])
    shared = b.index(floordiv("a0", op.each), head)
    offsets = b.view(buffers[op.offsets], [requests + 1], [1])
    begins, ends = b.scalar(offsets, [request]), b.scalar(offsets, [b.index(Expr.of("a0") + 1, request)])
    count = b.index(Expr.of("a1") - "a0", begins, ends)

    def own(buffer: SSAValue, groups: Expr, last: Expr) -> SSAValue:
        view = b.view(buffer, [total, groups, last], [groups * last, last, 1])
        found: SSAValue = b.add(ViewSegmentOp.make(view, offsets, request, axis=0, extent=[total]))
        return found

    groups = tensor(op.queries).dims[1]
    queries, keys = (own(buffers[x], groups, features) for x in (op.queries, op.keys))
    values, decay = own(buffers[op.values], heads, wide), own(buffers[op.decay], heads, Expr.of(1))
    results = own(given[op.out], heads, wide) if op.out in given else None
    cells = [heads * features * wide, features * wide, wide, Expr.of(1)]
    states = b.view(buffers[op.states], [kept, heads, features, wide], cells)
    row = b.scalar(b.view(buffers[op.rows], [requests], [1]), [request])
    first = b.reshape(b.load(states, [row, head, 0, 0], [1, 1, size, width]), (size, width))

    def taken(view: SSAValue, at: SSAValue, which: SSAValue, extents: tuple[int, int]) -> SSAValue:
        loaded = b.load(view, [at, which, 0], [1, 1, extents[0] * extents[1]])
        return b.reshape(b.cast(loaded, wanted), extents)

    with b.loop(0, count, 1, [first]) as token:
        at, (before,) = token.at, token.carried
        kept_share = b.map("exp", taken(decay, at, head, (1, 1)))
        added = b.map("mul", taken(keys, at, shared, (size, 1)), taken(values, at, head, (1, width)))
        after = b.map("add", b.map("mul", before, kept_share), added)
        if results is not None:
            asked = taken(queries, at, shared, (1, size))
            found = b.dot(asked, after, b.constant(0.0, (1, width), wanted))
            b.store(b.reshape(b.cast(found, tensor(op.out).dtype), (1, 1, width)), results, [at, head, 0])
        token.give(after)
    if op.ends in given:
        target = b.view(given[op.ends], [requests, heads, features, wide], cells)
        b.store(b.reshape(token.out[0], (1, 1, size, width)), target, [request, head, 0, 0])
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))
