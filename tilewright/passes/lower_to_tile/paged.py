"""The paged attention skeleton: a program is one request and one key head; its tokens stream past in blocks.

For each block of tokens the keys of the request stream past in absolute segments, as in the attention skeleton, so that
a token's bits do not depend on how many tokens its request has in this step, nor on other requests. Query heads that
share a key head are rows of one tile: each key is read once for all of them.
"""

from __future__ import annotations

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import DimSpace, Expr, floordiv, maximum, minimum
from tilewright.ir.dtypes import I32
from tilewright.ir.graph import paging
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewPagesOp, ViewSegmentOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin
from tilewright.passes.lower_to_tile.online_softmax import OnlineSoftmax, Segment


def lower_paged_attention(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """One token a block where every request has one, as many as fill the machine's query block beyond."""
    op = next(o for o in group.block.ops if isinstance(o, paging.PagedAttentionOp))
    if group.yielded != (op.out,) or not all(isinstance(v, BlockArgument) for v in op.operands):
        raise unsupported(op, "paged attention is a kernel of its own")
    several = tensor(op.q).dims[0] - tensor(op.table).dims[0]
    low, high = dims.interval(several)
    blocks = [(0, 1), (None, max(1, machine.rules.query_block // op.group))]
    chosen = [
        Variant(_kernel(group, op, f"{name}_t{tokens}", machine, dims, tokens), limit)
        for limit, tokens in blocks
        if (limit is None or low is None or low <= limit) and (limit is not None or high is None or high > 0)
    ]
    chosen[-1] = Variant(chosen[-1].kernel, None)
    return Lowered(tuple(chosen), tuple(chosen[0].kernel.dims.data), several)


def _kernel(
    group: GroupOp, op: paging.PagedAttentionOp, name: str, machine: Machine, dims: DimSpace, tokens: int
) -> KernelOp:
    b, buffers, (output,) = begin(group, name)
    (total, heads, features), shared, wide = tensor(op.q).dims, tensor(op.k).dims[1], tensor(op.v).dims[2]
    (requests, most), page, each = tensor(op.table).dims, op.page.data, op.group
    size, value_size = features.evaluate({}), wide.evaluate({})
    rows, segment = tokens * each, machine.rules.key_segment
    head, request = b.grid([shared, requests], [1, 1])
    offsets = b.view(buffers[op.offsets], [requests + 1], [1])
    begins, ends = b.scalar(offsets, [request]), b.scalar(offsets, [b.index(Expr.of("a0") + 1, request)])
    count = b.index(Expr.of("a1") - "a0", begins, ends)
    positions = b.view(buffers[op.positions], [total], [1])

    def own(view: SSAValue) -> SSAValue:
        """The request's part of what lies along the tokens."""
        found: SSAValue = b.add(ViewSegmentOp.make(view, offsets, request, axis=0, extent=[total]))
        return found

    def by_head(buffer: SSAValue, last: Expr) -> SSAValue:
        return b.view(buffer, [total, shared, each, last], [heads * last, last * each, last, 1])

    queries, places = own(by_head(buffers[op.q], features)), own(positions)
    results = own(by_head(output, wide))
    table = b.window(b.view(buffers[op.table], [requests * most], [1]), [b.index(most * "a0", request)], [most])

    def pages(buffer: SSAValue, last: Expr, length: SSAValue) -> SSAValue:
        view = b.view(buffer, [tensor(op.k).dims[0] // page, page, shared, last], _pitches(page, shared, last))
        found: SSAValue = b.add(ViewPagesOp.make(view, table, length, page=page, extent=[most * page]))
        return found

    most_keys = dims.interval(most * page)[1]
    softmax = OnlineSoftmax.of(b, op, machine, (rows, segment), (size, value_size))
    sinks = None if op.sinks is None else _sinks(b, op, buffers[op.sinks], rows, head)
    with b.loop(0, count, tokens) as block:
        loaded = b.load(queries, [block.at, head, 0, 0], [tokens, 1, each, size], 0.0)
        scaled = softmax.queries(b.reshape(loaded, (rows, size)))
        at = b.reshape(b.cast(b.load(places, [block.at], [tokens], 0.0), I32), (tokens, 1))
        q_at = b.reshape(b.broadcast(at, (tokens, each)), (rows, 1))
        first = b.scalar(positions, [b.index(Expr.of("a0") + "a1", begins, block.at)])
        last_token = b.index(minimum(Expr.of("a1") + tokens, "a2") - 1 + "a0", begins, block.at, count)
        end = b.index(Expr.of("a0") + 1, b.scalar(positions, [last_token]))
        keys, values = pages(buffers[op.k], features, end), pages(buffers[op.v], wide, end)

        lowest = _lowest_key(b, op, first)

        def segment_at(key: SSAValue) -> Segment:
            k = b.reshape(b.load(keys, [key, head, 0], [segment, 1, size], 0.0), (segment, size))
            v = b.reshape(b.load(values, [key, head, 0], [segment, 1, value_size], 0.0), (segment, value_size))
            if lowest is not None:
                # rows before what any token sees may be another request's by now, and 0 times its NaN is NaN
                own_rows = b.map("ge", b.coordinates(key, 0, (segment, 1)), b.splat(lowest, (1, 1)))
                v = b.map("select", own_rows, v, b.constant(0.0, (1, 1), tensor(op.v).dtype))
            seen = softmax.visible(q_at, b.coordinates(key, 1, (1, segment)))
            return Segment(softmax.logits(scaled, k), seen, v)

        state = softmax.over(_first_key(b, op, first, segment), end, sinks, segment_at, most_keys)
        result = b.reshape(softmax.result(state), (tokens, 1, each, value_size))
        b.store(result, results, [block.at, head, 0, 0])
    return b.finish()


def _pitches(page: int, heads: Expr, last: Expr) -> list[Expr]:
    return [heads * last * page, heads * last, last, Expr.of(1)]


def _lowest_key(b: KernelBuilder, op: paging.PagedAttentionOp, first: SSAValue) -> SSAValue | None:
    """The lowest key that the block's first token sees; None where that is 0."""
    at = Expr.of("a0")
    match op.mask.data:
        case "sliding":
            return b.index(maximum(0, at - op.window.data + 1), first)
        case "chunked":
            return b.index(floordiv(at, op.window.data) * op.window.data, first)
        case _:
            return None


def _first_key(b: KernelBuilder, op: paging.PagedAttentionOp, first: SSAValue, segment: int) -> SSAValue:
    """A segment's border at or before what the block's first token sees."""
    at = Expr.of("a0")
    match op.mask.data:
        case "sliding":
            return b.index(maximum(0, floordiv(at - op.window.data + 1, segment) * segment), first)
        case "chunked":
            return b.index(floordiv(floordiv(at, op.window.data) * op.window.data, segment) * segment, first)
        case _:
            return b.index(0)


def _sinks(b: KernelBuilder, op: paging.PagedAttentionOp, buffer: SSAValue, rows: int, head: SSAValue) -> SSAValue:
    """The sinks of a tile's rows, [rows, 1]."""
    each = op.group
    row = b.load(b.view(buffer, [tensor(op.k).dims[1], each], [each, 1]), [head, 0], [1, each])
    return b.reshape(b.broadcast(row, (rows // each, each)), (rows, 1))
