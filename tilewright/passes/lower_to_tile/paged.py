"""The paged attention skeleton: a program is one request and one key head; its tokens stream past in blocks.

For each block of tokens the keys of the request stream past in absolute segments, as in the attention skeleton, so that
a token's bits do not depend on how many tokens its request has in this step, nor on other requests. Query heads that
share a key head are rows of one tile: each key is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import DimSpace, Expr, ExprLike, floordiv, maximum, minimum
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.paging import PagedAttentionOp
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewPagesOp, ViewSegmentOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin
from tilewright.passes.lower_to_tile.matrix_tiles import own_segment
from tilewright.passes.lower_to_tile.online_softmax import OnlineSoftmax, Segment

Op = PagedAttentionOp | QuantizedPagedAttentionOp


def lower_paged_attention(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """graph.paged_attention: a kernel of its own."""
    op = next(o for o in group.block.ops if isinstance(o, PagedAttentionOp))

    def kernel(called: str, tokens: int) -> KernelOp:
        requests = Requests.begin(group, op, called, machine, dims, tokens)
        return _kernel(op, requests)

    return variants(group, op, name, machine, dims, kernel)


def variants(
    group: GroupOp, op: Op, name: str, machine: Machine, dims: DimSpace, kernel: Callable[[str, int], KernelOp]
) -> Lowered:
    """One token a block where every request has one, as many as fill the machine's query block beyond."""
    if group.yielded != (op.out,) or not all(isinstance(v, BlockArgument) for v in op.operands):
        raise unsupported(op, "paged attention is a kernel of its own")
    several = tensor(op.q).dims[0] - tensor(op.table).dims[0]
    low, high = dims.interval(several)
    blocks = [(0, 1), (None, max(1, machine.rules.query_block // op.group))]
    chosen = [
        Variant(kernel(f"{name}_t{tokens}", tokens), limit)
        for limit, tokens in blocks
        if (limit is None or low is None or low <= limit) and (limit is not None or high is None or high > 0)
    ]
    chosen[-1] = Variant(chosen[-1].kernel, None)
    return Lowered(tuple(chosen), tuple(chosen[0].kernel.dims.data), several)


@dataclass
class Requests:
    """A program's request and key head, and what there is of them: views, the softmax, what a query head brings.

    count: the request's tokens in this step. features, wide: of a row of keys, of values.
    """

    b: KernelBuilder
    op: Op
    dims: DimSpace
    buffers: dict[SSAValue, SSAValue]
    softmax: OnlineSoftmax
    tokens: int
    head: SSAValue
    request: SSAValue
    offsets: SSAValue
    begins: SSAValue
    count: SSAValue
    queries: SSAValue
    results: SSAValue
    sinks: SSAValue | None
    slopes: SSAValue | None
    features: int
    wide: int

    @staticmethod
    def begin(group: GroupOp, op: Op, name: str, machine: Machine, dims: DimSpace, tokens: int) -> Requests:
        """tokens: of a block."""
        b, buffers, (output,) = begin(group, name)
        heads, features = tensor(op.q).dims[1:]
        wide, total = tensor(op.out).dims[2], tensor(op.q).dims[0]
        size, value_size = features.constant, wide.constant
        if size is None or value_size is None:
            raise unsupported(op, "head dims must be fixed numbers")
        rows, each, requests = tokens * op.group, op.group, tensor(op.table).dims[0]
        shared = floordiv(heads, each)
        # threads share out heads, which are equally much work; the next program mostly has the same request's next one
        each_thread = -(-(shared.constant or 1) // machine.cores)
        head, request = b.grid([shared, requests], [1, 1], order=[(0, each_thread), (1, 1), (0, 1)])
        offsets = b.view(buffers[op.offsets], [requests + 1], [1])
        begins, ends = b.scalar(offsets, [request]), b.scalar(offsets, [b.index(Expr.of("a0") + 1, request)])
        count = b.index(Expr.of("a1") - "a0", begins, ends)
        softmax = OnlineSoftmax.of(b, op, machine, (rows, own_segment(machine, op)), (size, value_size))

        def own(buffer: SSAValue, last: Expr) -> SSAValue:
            view = b.view(buffer, [total, shared, each, last], [heads * last, last * each, last, 1])
            found: SSAValue = b.add(ViewSegmentOp.make(view, offsets, request, axis=0, extent=[total]))
            return found

        def by_row(value: SSAValue) -> SSAValue:
            row = b.load(b.view(buffers[value], [shared, each], [each, 1]), [head, 0], [1, each])
            return b.reshape(b.broadcast(row, (tokens, each)), (rows, 1))

        sinks = None if op.sinks is None else by_row(op.sinks)
        slopes = None if op.slopes is None else softmax.logit(by_row(op.slopes))
        queries, results = own(buffers[op.q], features), own(output, wide)
        return Requests(
            b, op, dims, buffers, softmax, tokens, head, request, offsets, begins, count, queries, results, sinks,
            slopes, size, value_size,
        )  # fmt: skip

    def pages(
        self, value: SSAValue, table: SSAValue, length: SSAValue, dims: list[Expr], pitches: list[Expr]
    ) -> SSAValue:
        """What lies in pages as a sequence [length, heads, ..]. dims, pitches: of [pages, page, heads, ..]."""
        b, whole = self.b, tensor(table)
        most = whole.dims[1]
        row = b.window(b.view(self.buffers[table], [whole.elements], [1]), [b.index(most * "a0", self.request)], [most])
        view, page = b.view(self.buffers[value], dims, pitches), self.op.page.data
        found: SSAValue = b.add(ViewPagesOp.make(view, row, length, page=page, extent=[most * page]))
        return found

    def rows(self, value: SSAValue, table: SSAValue, length: SSAValue) -> SSAValue:
        """Keys or values [P, heads, page, n] as a sequence [length, heads, n]."""
        pages, heads, page, last = tensor(value).dims
        pitches = [heads * last * page, last, last * page, Expr.of(1)]
        return self.pages(value, table, length, [pages, page, heads, last], pitches)

    def counts(self, value: SSAValue, table: SSAValue, length: SSAValue) -> SSAValue:
        """One number a key [P, heads, page] as a sequence [length, heads, 1]."""
        (pages, heads, page), one = tensor(value).dims, Expr.of(1)
        return self.pages(value, table, length, [pages, page, heads, one], [heads * page, one, page, one])

    def block(self, at: SSAValue, places: SSAValue) -> Block:
        """The block of tokens from `at` on. places: the operand with their places in what they see."""
        b, each = self.b, self.op.group
        view = b.view(self.buffers[places], [tensor(places).dims[0]], [1])
        own = b.add(ViewSegmentOp.make(view, self.offsets, self.request, axis=0, extent=[tensor(places).dims[0]]))
        loaded = b.reshape(b.cast(b.load(own, [at], [self.tokens], 0.0), I32), (self.tokens, 1))
        q_at = b.reshape(b.broadcast(loaded, (self.tokens, each)), (self.tokens * each, 1))
        first = b.scalar(view, [b.index(Expr.of("a0") + "a1", self.begins, at)])
        last_token = b.index(minimum(Expr.of("a1") + self.tokens, "a2") - 1 + "a0", self.begins, at, self.count)
        return Block(q_at, first, b.index(Expr.of("a0") + 1, b.scalar(view, [last_token])))

    def scaled(self, at: SSAValue) -> SSAValue:
        """The block's queries as the left side of all logits."""
        loaded = self.b.load(self.queries, [at, self.head, 0, 0], [self.tokens, 1, self.op.group, self.features], 0.0)
        return self.softmax.queries(self.b.reshape(loaded, (self.tokens * self.op.group, self.features)))

    def taken(self, view: SSAValue, key: SSAValue, size: int) -> SSAValue:
        """A segment [segment, size] of a sequence from a key on, 0 beyond its length."""
        segment = self.softmax.segment
        return self.b.reshape(self.b.load(view, [key, self.head, 0], [segment, 1, size], 0.0), (segment, size))

    def sloped(self, logits: SSAValue, q_at: SSAValue, k_at: SSAValue) -> SSAValue:
        """The logits less the slopes' share, counted from the token, so that a table may begin anywhere."""
        if self.slopes is None:
            return logits
        b = self.b
        return b.map("add", logits, b.map("mul", self.slopes, b.cast(b.map("sub", k_at, q_at), F32)))

    def by_distance(self, logits: SSAValue, q_at: SSAValue, k_at: SSAValue) -> SSAValue:
        """The logits and what their distances add; what the mask hides may be any number of the table."""
        given = self.op.by_distance if isinstance(self.op, PagedAttentionOp) else None
        if given is None:
            return logits
        b, each, segment = self.b, self.op.group, self.softmax.segment
        heads, length = tensor(given).dims
        last = b.splat(length - 1, (1, 1))
        gap = b.map("max", b.map("min", b.map("sub", q_at, k_at), last), b.splat(0, (1, 1)))
        lanes = (1, self.tokens, each, segment)
        extents: list[ExprLike] = [floordiv(heads, each), *lanes[1:], length]
        table = b.view(self.buffers[given], extents, [length * each, 0, length, 0, 1])
        found = b.lookup(table, b.reshape(gap, lanes), [self.head, 0, 0, 0], lanes, 4)
        return b.map("add", logits, self.softmax.logit(b.reshape(found, (self.tokens * each, segment))))

    def counted(self, logits: SSAValue, counts: SSAValue | None, key: SSAValue) -> SSAValue:
        """The logits of a segment of keys that stand for several. counts: their logarithms as a sequence, if any."""
        if counts is None:
            return logits
        row = self.b.reshape(self.taken(counts, key, 1), (1, self.softmax.segment))
        return self.b.map("add", logits, self.softmax.logit(row))

    def from_key(self, v: SSAValue, lowest: SSAValue, key: SSAValue) -> SSAValue:
        """Values with 0 before the lowest key that any token sees: rows there may be another request's by now, and 0
        times its NaN is NaN.
        """
        b, segment = self.b, self.softmax.segment
        own_rows = b.map("ge", b.coordinates(key, 0, (segment, 1)), b.splat(lowest, (1, 1)))
        return b.map("select", own_rows, v, b.constant(0.0, (1, 1), tensor(self.op.q).dtype))

    def store(self, at: SSAValue, state: list[SSAValue]) -> None:
        """The block's results."""
        result = self.b.reshape(self.softmax.result(state), (self.tokens, 1, self.op.group, self.wide))
        self.b.store(result, self.results, [at, self.head, 0, 0])


@dataclass(frozen=True)
class Block:
    """Tokens of a block: their places as i32 [rows, 1], the first one's, and the one after the last one's."""

    q_at: SSAValue
    first: SSAValue
    end: SSAValue


def _kernel(op: PagedAttentionOp, r: Requests) -> KernelOp:
    b, segment = r.b, r.softmax.segment
    most_keys = r.dims.interval(tensor(op.table).dims[1] * op.page.data)[1]
    with b.loop(0, r.count, r.tokens) as block:
        scaled, of = r.scaled(block.at), r.block(block.at, op.positions)
        keys = r.rows(op.k, op.table, of.end)
        # a segment's values are its keys' first features where they have no memory of their own
        values = keys if op.v is None else r.rows(op.v, op.table, of.end)
        counts = None if op.log_counts is None else r.counts(op.log_counts, op.table, of.end)
        lowest = _lowest_key(b, op, of.first)

        def segment_at(key: SSAValue) -> Segment:
            k, v = r.taken(keys, key, r.features), r.taken(values, key, r.wide)
            v = v if lowest is None else r.from_key(v, lowest, key)
            k_at = b.coordinates(key, 1, (1, segment))
            logits = r.sloped(r.softmax.logits(scaled, k), of.q_at, k_at)
            logits = r.counted(r.by_distance(logits, of.q_at, k_at), counts, key)
            return Segment(logits, r.softmax.visible(of.q_at, k_at), v)

        r.store(block.at, r.softmax.over(_first_key(b, op, of.first, segment), of.end, r.sinks, segment_at, most_keys))
    return b.finish()


def _lowest_key(b: KernelBuilder, op: PagedAttentionOp, first: SSAValue) -> SSAValue | None:
    """The lowest key that the block's first token sees; None where that is 0."""
    at = Expr.of("a0")
    match op.mask.data:
        case "sliding":
            return b.index(maximum(0, at - op.window.data + 1), first)
        case "chunked":
            return b.index(floordiv(at, op.window.data) * op.window.data, first)
        case _:
            return None


def _first_key(b: KernelBuilder, op: PagedAttentionOp, first: SSAValue, segment: int) -> SSAValue:
    """A segment's border at or before what the block's first token sees."""
    at = Expr.of("a0")
    match op.mask.data:
        case "sliding":
            return b.index(maximum(0, floordiv(at - op.window.data + 1, segment) * segment), first)
        case "chunked":
            return b.index(floordiv(floordiv(at, op.window.data) * op.window.data, segment) * segment, first)
        case _:
            return b.index(0)
