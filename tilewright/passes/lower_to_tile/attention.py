"""The attention skeleton: a block of queries stays on chip while key and value blocks stream past, all of them
(query-outer) or those of a part (`split_keys.py`).

Keys come in absolute segments of a fixed size, merged left to right (`online_softmax.py`), so that a row's bits do not
depend on how many queries share the program. Key blocks that a causal, sliding or chunked mask makes empty for the
whole program are not visited, where positions are known to count from zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import gcd
from typing import Final

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.ir.dims import DimSpace, Expr, maximum, minimum
from tilewright.ir.dtypes import F64
from tilewright.ir.graph import attention
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.paging import PagedAttentionOp
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.polynomial_attention import PolynomialAttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.attention_tiling.sizes import placed, shared_by_queries
from tilewright.passes.attention_tiling.variants import FEW, Block, blocks_of, own_block
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.attention_axes import Axes, Walked, keys_or_values
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin
from tilewright.passes.lower_to_tile.key_ranges import KeyRanges
from tilewright.passes.lower_to_tile.keys_in_pairs import KeysInPairs, without_hidden
from tilewright.passes.lower_to_tile.layout import Strides
from tilewright.passes.lower_to_tile.matrix_tiles import attention_unit, own_segment
from tilewright.passes.lower_to_tile.online_softmax import OnlineSoftmax, Run, Segment
from tilewright.passes.lower_to_tile.skeleton import Refusal
from tilewright.passes.lower_to_tile.split_keys import Parts, Sums
from tilewright.passes.lower_to_tile.visible_keys import key_range, seen_by_all, visible

_STRETCHES: Final = 8  # of a row of packed sequences, each of whose work grows and falls


def refuses_attention(op: Operation) -> Refusal | None:
    """f64, and head dims that vary: what lies along them is in registers."""
    if not isinstance(op, (attention.AttentionOp, PagedAttentionOp, QuantizedPagedAttentionOp, PolynomialAttentionOp)):
        return None
    if tensor(op.q).dtype is F64:
        return Refusal("attention in f64: its exponentials are expanded for f32", "cast q, k and v to f32")
    return refuses_heads(op)


def refuses_heads(
    op: attention.AttentionOp | PagedAttentionOp | QuantizedPagedAttentionOp | PolynomialAttentionOp,
) -> Refusal | None:
    """Heads whose size varies, in any dtype. recognize asks, too: as products and a softmax they have kernels."""
    values = op.k if op.v is None else op.v  # a cache of latents holds both in one
    varying = [str(x.dims[-1]) for x in (tensor(op.q), tensor(values)) if x.dims[-1].constant is None]
    if varying:
        return Refusal(f"head dims must be fixed numbers, not {varying[0]}", "write it as products and a softmax")
    return None


def lower_attention(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """Variants with few and with the schedule's block of rows, as far as the number of queries can reach them.

    Without a schedule the block is the machine's as far as it fits, and keys come in the machine's segments.
    """
    anchor = next(op for op in group.block.ops if isinstance(op, attention.AttentionOp))
    queries = tensor(anchor.q).dims[-2]
    schedule = group.schedule
    size, value_size = (tensor(x).dims[-1].constant or 0 for x in (anchor.q, anchor.v))
    own = own_block(machine.rules, size, value_size, tensor(anchor.q).dtype)
    block_q = schedule.number("block_q", own)
    segment = schedule.number("block_k", own_segment(machine, anchor))
    heads = schedule.number("heads", 1)
    order, part = schedule.to_dict().get("order", "query-outer"), schedule.number("part", machine.rules.key_part)
    if heads not in (1, anchor.group) or (order != "query-outer" and part % segment):
        step = f"write attention-tiling{{order=query-outer heads={anchor.group}}}"
        raise unsupported(anchor, f"no kernel is made by the schedule {schedule.to_dict()}", step)
    low, high = dims.interval(queries)
    met = KeyRanges.of(anchor, segment, dims)
    unit = attention_unit(machine, anchor, keys=segment)
    paired = (
        schedule.number("pairs", 0) > 0 and unit is not None and shared_by_queries(anchor) and order == "query-outer"
    )
    blocks, pairs = blocks_of(machine.rules, block_q, heads, paired=paired), None
    alone = max((b.limit for b in blocks if b.limit is not None and not b.paired), default=0)
    if paired and unit is not None and (high is None or high > alone):
        pairs = KeysInPairs(anchor, unit, segment, alone, low or 0)

    def made(ending: str, parts: Parts | None, first: Lowered | None = None) -> Lowered:
        variants: list[Variant] = []
        previous = 0
        for block in blocks:
            limit = block.limit
            if (low is None or limit is None or low <= limit) and (high is None or high > previous or not variants):
                called = f"{name}_h{block.heads}{ending}" if block.heads > 1 else f"{name}_q{block.rows}{ending}"
                called += "_paired" if block.paired else ""
                kernel = _kernel(group, anchor, called, machine, dims, block, segment, parts or pairs, met)
                variants.append(Variant(kernel, limit))
            previous = limit or previous
        variants[-1] = Variant(variants[-1].kernel, None)
        return Lowered(tuple(variants), tuple(variants[0].kernel.dims.data), queries, first=first)

    before = None if met is None else met.lowered(group, name)
    if order == "query-outer":
        return made("", None, before if pairs is None else pairs.lower(group, f"{name}_pairs"))
    apart, merging = (Parts(anchor, part, last, outer=order == "key-outer") for last in (False, True))
    return made("_merge", merging, made("_part", apart, before))


def _kernel(
    group: GroupOp,
    op: attention.AttentionOp,
    name: str,
    machine: Machine,
    dims: DimSpace,
    block: Block,
    segment: int,
    apart: Parts | KeysInPairs | None,
    met: KeyRanges | None,
) -> KernelOp:
    """block: a tile of queries. segment: keys of a tile. apart: the keys' parts, where programs share them, or pairs,
    where a launch of its own makes them. met: where sequences are packed, which keys meet which queries. Heads that a
    group splits into several axes are not packed."""
    walked_by = Walked.of(group, op, packed=block.heads > 1)
    space, strides, axes, walk = walked_by.space, walked_by.strides, walked_by.axes, walked_by.walk
    t_at, s_at, e_at, d_at = walked_by.t, walked_by.s, walked_by.e, walked_by.d
    features, value_features = walked_by.features
    # the axis along a tile's rows, and the queries that it spans
    row_at = walked_by.h if walked_by.h is not None else t_at
    rows = block.rows if row_at is not None else 1
    span = 1 if walked_by.h is not None else rows
    parts = apart if isinstance(apart, Parts) else None
    pairs = apart if isinstance(apart, KeysInPairs) and block.paired else None
    ranges: list[SSAValue] = []
    further: list[SSAValue] = []

    def declare(b: KernelBuilder) -> None:
        ranges.extend([] if met is None else met.inputs(b))
        further.extend(apart.buffers(b, walked_by) if isinstance(apart, KeysInPairs) else [])

    if parts is not None:
        b, buffers, outputs, further = parts.begin(group, name, declare)
    else:
        b, buffers, outputs = begin(group, name, declare)
    extent = dict.fromkeys(range(len(walk.members)), 1)
    extent.update({s_at: segment, e_at: features, d_at: value_features})
    if row_at is not None:
        extent[row_at] = rows
    grid = walked_by.grid
    leaving = parts is not None and not parts.merging
    counts = [parts.count] if parts is not None and leaving else [pairs.present] if pairs else []
    counts = counts if grid or counts else [Expr.of(1)]
    order, folded = None, []
    if t_at is not None and (met is not None or (op.mask.data == "causal" and placed(op))):
        # later queries see more keys, and later keys are seen by fewer queries; packed sequences differ in length
        folded = [len(grid) if leaving and parts is not None and parts.outer else grid.index(t_at)]
    if parts is not None and leaving:
        keyed = walked_by.along(op.k)
        order = parts.order(len(grid), frozenset(n for n, i in enumerate(grid) if i in keyed))
    sizes = [*(walk.extents[i] for i in grid), *counts]
    tiles = [*(extent[i] for i in grid), *([1] * len(counts))]
    coordinates = b.grid(sizes, tiles, order, folded, 2 if met is None else _STRETCHES)
    at = dict(zip(grid, coordinates, strict=False))
    at.update({s_at: b.index(0), e_at: b.index(0), d_at: b.index(0)})

    def emitter(row: int | None, column: int, places: Mapping[int, SSAValue]) -> Emitter:
        return Emitter(b, space, walk, buffers, strides, dict(places), row, column, extent)

    unit = attention_unit(machine, op, keys=segment)
    # rows that a matrix unit takes at once go through products and softmax together: what is between stays near
    height = gcd(rows, unit.band) if unit is not None else rows
    softmax = OnlineSoftmax.of(b, op, machine, (height, segment), (features, value_features))
    softmax = replace(softmax, paired=pairs is not None)
    bands = [dict(at) for _ in range(rows // height)]
    if row_at is not None and len(bands) > 1:
        extent[row_at] = height
        for number, band in enumerate(bands):
            band[row_at] = b.index(Expr.of("a0") + number * height, at[row_at])
    sinks = [None if op.sinks is None else emitter(row_at, s_at, band).tile(op.sinks) for band in bands]
    lo, hi = key_range(op, span, segment)
    first = [at[t_at]] if t_at is not None else [b.index(0)]

    def segment_at(scaled: Sequence[SSAValue], place: SSAValue, whole: bool) -> Iterator[Segment]:
        key = place if pairs is None else b.index(Expr.of("a0") * segment, place)
        along = {**at, s_at: key}
        if pairs is not None:
            k, v = pairs.load(b, walked_by, further, at, coordinates[-1], place)
        else:
            k = keys_or_values(emitter(s_at, e_at, along), op.k, (segment, features))
            v = keys_or_values(emitter(s_at, d_at, along), op.v, (segment, value_features))
        for number, (queries, band) in enumerate(zip(scaled, bands, strict=True)):
            logits_at = emitter(row_at, s_at, {**band, s_at: key})
            logits = softmax.logits(queries, k)
            seen, per_key = visible(softmax, op, logits_at, walk.extents[s_at], t_at, whole=whole)
            if op.segments is not None and not (ranges and whole):
                of_keys = _along_keys(logits_at, op.segments, axes).load(op.segments, 0.0)
                same = b.map("eq", logits_at.tile(op.segments), of_keys)
                seen = same if seen is None else b.map("and", seen, same)
            if op.bias is not None:
                bias = logits_at.load(op.bias, 0.0) if isinstance(op.bias, BlockArgument) else logits_at.tile(op.bias)
                logits = b.map("add", logits, softmax.logit(bias))
            if per_key is not None and number == 0 and pairs is None:
                v = without_hidden(b, v, per_key)
            yield Segment(logits, seen, v)

    # few queries wait for memory, not for masks: their variants are not worth a second loop's code
    tall = block.limit is None or block.rows > FEW[-1]
    within = seen_by_all(op, segment) if tall else None
    whole = None if within is None else Run(None, b.index(within, *first))
    begin_at, end = b.index(lo, *first), b.index(hi, *first)
    if ranges and met is not None:
        (begins, ends), run = met.at(b, ranges, space, walk, at, (first[0], span))
        begin_at = b.index(maximum("a0", "a1"), begin_at, begins)
        end = b.index(minimum("a0", "a1"), end, ends)
        if tall and met.tells_whole:
            whole = Run(run[0], run[1] if whole is None else b.index(minimum("a0", "a1"), run[1], whole.end))

    def walked(begin_at: SSAValue, end: SSAValue, most: int | None) -> list[list[SSAValue]]:
        """m, l and o of the bands after keys of which there are `most`."""
        scaled = [softmax.queries(emitter(row_at, e_at, band).tile(op.q)) for band in bands]
        before = sinks if parts is None else [None] * len(bands)
        return softmax.over_bands(begin_at, end, before, partial(segment_at, scaled), most, whole=whole)

    if parts is None:
        most = dims.interval(walk.extents[s_at])[1]
        if block.limit is not None and tensor(op.k).dims[-2] == tensor(op.q).dims[-2]:
            most = block.limit if most is None else min(most, block.limit)  # as many keys as queries
        states = walked(begin_at, end, most)
    else:
        softmax = replace(softmax, part=parts.keys)
        kept, tile_of = Sums(b, further, [walk.extents[i] for i in grid]), [extent[i] for i in grid]
        places = [[band[i] for i in grid] for band in bands]
        if leaving:
            of_part = parts.bounds(b, coordinates[-1], begin_at, end)
            for corner, state in zip(places, walked(*of_part, parts.keys), strict=True):
                kept.store(parts, coordinates[-1], corner, tile_of, state)
            return b.finish()
        seen = parts.seen(b, begin_at, end)
        states = [
            kept.merged(parts, softmax, corner, tile_of, sink, seen) for corner, sink in zip(places, sinks, strict=True)
        ]
    for band, state in zip(bands, states, strict=True):
        result = emitter(row_at, d_at, band)
        result.set(op.out, softmax.result(state))
        if op.lse_out is not None:
            result.set(op.lse_out, softmax.log_sum_exp(state))
        for value, output in zip(group.yielded, outputs, strict=True):
            result.store(value, output, result.tile(value))
    return b.finish()


def _along_keys(e: Emitter, value: SSAValue, axes: Axes) -> Emitter:
    """An emitter that reads a value of queries as one of keys."""
    steps = {axes.s if axis in axes.t else axis: step for axis, step in e.strides[value].steps.items()}
    return replace(e, strides={**e.strides, value: Strides(steps, e.strides[value].offset)})
