"""Sort and top-k: one program a line. A short static line is ordered as a tile, any other as a line of memory."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.graph import reduction
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile import compute
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp, spare_words
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin
from tilewright.passes.lower_to_tile.memory_lines import Lines, copy_lines

SHORT = 32  # elements of a line that is ordered as a tile
FEW = 128  # elements that a selection keeps in order; more are the head of a whole order


def lower_ordering(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """graph.sort and graph.topk: a kernel of its own, with its operand in memory."""
    op = next(o for o in group.block.ops if isinstance(o, (reduction.SortOp, reduction.TopkOp)))
    if not isinstance(op.x, BlockArgument) or any(v not in op.results for v in group.yielded):
        raise unsupported(op, "a sort is a kernel of its own")
    b, buffers, outputs = begin(group, name)
    written = dict(zip(group.yielded, outputs, strict=True))
    lines = Lines.of(tensor(op.x).dims, op.axis.data)
    outer, size, inner = lines.outer, lines.length, lines.inner
    kept = size if isinstance(op, reduction.SortOp) else Expr.of(op.k.data)
    # a result that nobody asked for is memory of the kernel's own
    values, places = (
        written[r] if r in written else b.output([outer, kept, inner], tensor(r).dtype) for r in op.results
    )
    source = buffers[op.x]
    if kept.constant == 0:
        b.grid([0], [1])  # nothing to write
    elif size.constant is not None and size.constant <= SHORT:
        at = b.grid([outer, inner], [1, 1])
        _as_tile(b, op, lines.view(b, source), [lines.view(b, v, kept) for v in (values, places)], at)
    elif isinstance(op, reduction.TopkOp) and op.k.data <= FEW:
        at = b.grid([outer, inner], [1, 1])
        targets = [lines.view(b, v, kept) for v in (values, places)]
        b.add(TopkLineOp.make(lines.view(b, source), *targets, at, axis=1, k=op.k.data, result_types=[]))
    else:
        ordered = [values, places]
        if isinstance(op, reduction.TopkOp):
            ordered = [b.output([outer, size, inner], d) for d in (tensor(op.x).dtype, I64)]
        spare_buffer = b.output([outer * inner, size * (2 * spare_words(tensor(op.x).dtype))], I64)
        o, i = b.grid([outer, inner], [1, 1])
        line = b.index(Expr.of("a0") * inner + Expr.of("a1"), o, i)
        whole, spare = [lines.view(b, v) for v in (source, *ordered)], b.dense(spare_buffer)
        descending = isinstance(op, reduction.TopkOp) or op.descending.data
        b.add(SortLineOp.make(*whole, spare, [o, i, line], axis=1, descending=descending, result_types=[]))
        if isinstance(op, reduction.TopkOp):
            for found, target in zip(whole[1:], (values, places), strict=True):
                copy_lines(b, found, lines.view(b, target, kept), (o, i), op.k.data)
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))


def _as_tile(
    b: KernelBuilder,
    op: reduction.SortOp | reduction.TopkOp,
    source: SSAValue,
    targets: Sequence[SSAValue],
    at: Sequence[SSAValue],
) -> None:
    o, i = at
    length = tensor(op.x).dims[op.axis.data].constant
    assert length is not None
    keys = b.reshape(b.load(source, [o, 0, i], [1, length, 1]), (1, length))
    if isinstance(op, reduction.SortOp):
        made: compute.SortOp | compute.TopkOp = compute.SortOp.make(
            keys, b.coordinates(0, 1, (1, length)), axis=1, descending=op.descending.data
        )
        count = length
    else:
        made, count = compute.TopkOp.make(keys, k=op.k.data, axis=1), op.k.data
    b.add(made)
    results = (made.results[0], b.cast(made.results[1], I64))
    for result, target in zip(results, targets, strict=True):
        b.store(b.reshape(result, (1, count, 1)), target, [o, 0, i])
