"""Routing: one program sorts slots by expert by counting, then every slot's row in that order is written.

Counting needs no communication: the number of slots each expert has so far is one tile, an expert a lane, that a single
program carries over the slots. It does a few vector operations a slot and 16 experts, where a slot's products do
hundreds of thousands.
"""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I32, I64, DType
from tilewright.ir.graph import routing
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.tile.compute import LANES
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin, padded

INVERTED = 256  # slots a program of the inverse writes


def lower_route(group: GroupOp, name: str) -> Lowered:
    """Two passes over the slots: how many come before each expert's, then the place of each."""
    op = next(o for o in group.block.ops if isinstance(o, routing.RouteOp))
    if op.indices is not group.block.args[0] or set(group.yielded) - set(op.results):
        raise unsupported(op, "routing is a kernel of its own")
    b, buffers, outputs = begin(group, name)
    kind: DType = tensor(op.indices).dtype
    if kind not in (I32, I64):
        raise unsupported(op, f"expert numbers of dtype {kind}")
    (slots,) = tensor(op.indices).dims
    (source,) = buffers.values()
    given = dict(zip(group.yielded, outputs, strict=True))
    experts = op.experts.data
    lanes = padded(experts + 1, LANES)
    b.grid([1], [1])
    view = b.view(source, [slots], [1])
    lane = b.cast(b.coordinates(0, 1, (1, lanes)), kind)
    first, last = b.constant(0, (1, 1), kind), b.constant(experts - 1, (1, 1), kind)

    def expert(at: SSAValue) -> SSAValue:
        """The expert of a slot."""
        return b.map("min", b.map("max", b.reshape(b.load(view, [at], [1]), (1, 1)), first), last)

    zero = b.constant(0, (1, lanes), I32)
    with b.loop(0, slots, 1, [zero]) as loop:
        before = b.map("lt", b.broadcast(expert(loop.at), (1, lanes)), lane)
        loop.give(b.map("add", loop.carried[0], b.cast(before, I32)))
    (counts,) = loop.out
    if op.offsets in given:
        target = b.view(given[op.offsets], [1, experts + 1], [experts + 1, 1])
        b.store(counts, target, [0, 0])
    if op.places in given:
        target = b.view(given[op.places], [slots], [1])
        with b.loop(0, slots, 1, [counts]) as loop:
            mine = b.map("eq", b.broadcast(expert(loop.at), (1, lanes)), lane)
            place = b.map("select", mine, loop.carried[0], zero)
            b.store(b.reshape(b.reduce("sum", place, 1), (1,)), target, [loop.at])
            loop.give(b.map("add", loop.carried[0], b.cast(mine, I32)))
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))


def lower_slots(group: GroupOp, name: str) -> Lowered:
    """A program a run of slots: each writes its number, and its row's, where its place is."""
    op = next(o for o in group.block.ops if isinstance(o, routing.SlotsOp))
    if op.places is not group.block.args[0] or set(group.yielded) - set(op.results):
        raise unsupported(op, "an inverse permutation is a kernel of its own")
    b, buffers, outputs = begin(group, name)
    (places,) = buffers.values()
    (slots,) = tensor(op.places).dims
    (at,) = b.grid([slots], [INVERTED])
    order = b.view(places, [slots], [1])
    number = b.coordinates(at, 0, (INVERTED,))
    for value, output in zip(group.yielded, outputs, strict=True):
        each = 1 if value is op.order else op.each.data
        row = number if each == 1 else b.map("floordiv", number, b.constant(each, (1,), I32))
        b.store(row, b.rows(b.view(output, [slots], [1]), order), [at])
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))
