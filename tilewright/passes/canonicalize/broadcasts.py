"""Rules on repetition: equal elements are one number, maps broadcast by themselves, and broadcasts come last."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import GraphOp, broadcast_dims, tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.passes.rewriting import Rules, Site, defined, splat

BROADCASTS = Rules()

# --- conditions -----------------------------------------------------------------------------------------------------


def stretches_none(x: SSAValue, others: Sequence[SSAValue], dims: Sequence[Expr], op: GraphOp) -> bool:
    """With x unstretched, the operands still broadcast to the same dims."""
    return broadcast_dims(op, tensor(x).dims, *(tensor(o).dims for o in others)) == tuple(dims)


def stretched_axes(op: BroadcastOp) -> set[int]:
    """The axes of the result along which x repeats, new leading ones among them."""
    x, dims = tensor(op.x).dims, op.dims.data
    lead = len(dims) - len(x)
    return {axis for axis, dim in enumerate(dims) if axis < lead or x[axis - lead] != dim}


def reduces_none_of(axes: Sequence[int], stretched: set[int]) -> bool:
    """No reduced axis is one that a broadcast repeats."""
    return not stretched & set(axes)


def stretches_none_without(others: Sequence[SSAValue], dims: Sequence[Expr], op: GraphOp) -> bool:
    """The other operands alone broadcast to the same dims."""
    return broadcast_dims(op, *(tensor(o).dims for o in others)) == tuple(dims)


# --- constants ------------------------------------------------------------------------------------------------------


@BROADCASTS.on(ReshapeOp, TransposeOp, BroadcastOp, SliceOp)
def splat_stays_splat(op: ReshapeOp, site: Site) -> SSAValue | None:
    """Moving equal elements around gives equal elements."""
    value = splat(op.x)
    return None if value is None else site.constant(value, tensor(op.out).dtype, tensor(op.out).dims)


@BROADCASTS.on(MapOp)
def splat_operands_are_scalars(op: MapOp, site: Site) -> SSAValue | None:
    """A splat of many elements beside another operand is one number."""
    for i, arg in enumerate(op.args):
        value, others = splat(arg), [a for j, a in enumerate(op.args) if j != i]
        if value is None or not tensor(arg).rank or not stretches_none_without(others, tensor(op.out).dims, op):
            continue
        return site.map(op.fn.data, *op.args[:i], site.constant(value, tensor(arg).dtype), *op.args[i + 1 :])
    return None


# --- broadcasts -----------------------------------------------------------------------------------------------------


@BROADCASTS.on(MapOp)
def map_broadcasts_itself(op: MapOp, site: Site) -> SSAValue | None:
    """A broadcast operand goes in unstretched where the other operands give the result its dims."""
    for i, arg in enumerate(op.args):
        inner = defined(arg, BroadcastOp) or leading_units(arg)
        others = [a for j, a in enumerate(op.args) if j != i]
        if inner is not None and stretches_none(inner.x, others, tensor(op.out).dims, op):
            return site.map(op.fn.data, *op.args[:i], inner.x, *op.args[i + 1 :])
    return None


def leading_units(value: SSAValue) -> ReshapeOp | None:
    """The reshape behind a value that only puts axes of size 1 in front, which broadcasting does by itself."""
    op = defined(value, ReshapeOp)
    if op is None:
        return None
    dims, x = op.dims.data, tensor(op.x).dims
    lead = len(dims) - len(x)
    # as many elements before as after: what stands in front has size 1, or there are no elements at all
    return op if dims[lead:] == x else None


@BROADCASTS.on(BroadcastOp)
def broadcast_adds_leading_axes_itself(op: BroadcastOp, site: Site) -> SSAValue | None:
    """Leading axes of size 1 need no reshape before a broadcast."""
    inner = leading_units(op.x)
    return None if inner is None else site.make(BroadcastOp, inner.x, dims=op.dims)


@BROADCASTS.on(MapOp, CastOp)
def broadcast_sinks(op: MapOp | CastOp, site: Site) -> SSAValue | None:
    """A function of one stretched value and numbers is computed before stretching."""
    wide = [a for a in op.operands if tensor(a).rank or splat(a) is None]
    inner = defined(wide[0], BroadcastOp) if wide and all(a is wide[0] for a in wide) else None
    if inner is None:
        return None
    if isinstance(op, CastOp):
        early = site.make(CastOp, inner.x, dtype=op.dtype)
    else:
        early = site.map(op.fn.data, *(inner.x if a is wide[0] else a for a in op.args))
    return site.make(BroadcastOp, early, dims=inner.dims)


@BROADCASTS.on(ReduceOp)
def reduce_before_broadcast(op: ReduceOp, site: Site) -> SSAValue | None:
    """Axes that a broadcast repeats and the reduction keeps are stretched after it."""
    inner = defined(op.x, BroadcastOp)
    if inner is None:
        return None
    stretched, lead = stretched_axes(inner), tensor(inner.out).rank - tensor(inner.x).rank
    if not reduces_none_of(op.axes.data, stretched):
        return None
    early = site.make(ReduceOp, inner.x, fn=op.fn, axes=[a - lead for a in op.axes.data], keepdims=op.keepdims)
    return site.make(BroadcastOp, early, dims=tensor(op.out).dims)
