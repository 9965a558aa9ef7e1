"""Rules that move the transpose from channels-last below what follows it, until it meets its inverse."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import ConcatOp, PadOp, ReshapeOp, TransposeOp
from tilewright.passes.channels_last.turning import channels_to_last, channels_to_second
from tilewright.passes.rewriting import Rules, Site, defined, splat

SINKING = Rules()


def from_last(value: SSAValue) -> TransposeOp | None:
    """The transpose that makes a value from one with its channels last."""
    op = defined(value, TransposeOp)
    rank = tensor(value).rank
    return op if op is not None and op.permutation.data == channels_to_second(rank) else None


def behind(early: SSAValue, site: Site) -> SSAValue:
    """What `from_last` looks for, after an op that has been done with its channels last."""
    return site.make(TransposeOp, early, permutation=channels_to_second(tensor(early).rank))


@SINKING.on(MapOp, CastOp)
def elementwise_before_channels(op: MapOp | CastOp, site: Site) -> SSAValue | None:
    """Elementwise ops run on channels-last operands; what comes otherwise is turned, which is free for vectors."""
    rank = tensor(op.results[0]).rank
    turned = [from_last(v) for v in op.operands]
    if not any(t is not None and tensor(t.out).rank == rank for t in turned):
        return None
    if channels_to_last(rank) == channels_to_second(rank) and not _leaves_fewer(op.operands, turned):
        return None
    operands: list[SSAValue] = []
    for value, view in zip(op.operands, turned, strict=True):
        given = tensor(value)
        if view is not None and given.rank == rank:
            operands.append(view.x)
        elif not given.rank or splat(value) is not None:
            operands.append(value)
        else:
            full = site.make(ReshapeOp, value, dims=[*[1] * (rank - given.rank), *given.dims])
            operands.append(site.make(TransposeOp, full, permutation=channels_to_last(rank)))
    if isinstance(op, CastOp):
        early = site.make(CastOp, operands[0], dtype=op.dtype)
    else:
        early = site.map(op.fn.data, *operands)
    return behind(early, site)


def _leaves_fewer(operands: Sequence[SSAValue], turned: Sequence[TransposeOp | None]) -> bool:
    """Whether fewer operands of more than a vector are turned afterwards.

    With one spatial axis a turn is its own inverse, so that what was turned here looks like what is to be turned back.
    """
    large = [sum(d.constant != 1 for d in tensor(v).dims) > 1 and splat(v) is None for v in operands]
    before = sum(is_large and view is not None for is_large, view in zip(large, turned, strict=True))
    return before > sum(large) - before


@SINKING.on(ReduceOp)
def reduce_before_channels(op: ReduceOp, site: Site) -> SSAValue | None:
    """A reduction folds the same axes where they lie."""
    view = from_last(op.x)
    if view is None:
        return None
    order = view.permutation.data
    early = site.make(
        ReduceOp, view.x, fn=op.fn, axes=sorted(order[axis] for axis in op.axes.data), keepdims=op.keepdims
    )
    if op.keepdims.data:
        return behind(early, site)
    kept = [order[axis] for axis in range(len(order)) if axis not in op.axes.data]
    return site.make(TransposeOp, early, permutation=[sorted(kept).index(axis) for axis in kept])


@SINKING.on(ConcatOp)
def concat_before_channels(op: ConcatOp, site: Site) -> SSAValue | None:
    """Tensors that all have their channels last are joined so."""
    views = [from_last(x) for x in op.xs]
    if any(view is None for view in views):
        return None
    order = channels_to_second(tensor(op.out).rank)
    early = site.make(ConcatOp, [view.x for view in views if view is not None], axis=order[op.axis.data])
    return behind(early, site)


@SINKING.on(PadOp)
def pad_before_channels(op: PadOp, site: Site) -> SSAValue | None:
    """Padding goes where the axes lie."""
    view = from_last(op.x)
    if view is None:
        return None
    order = channels_to_last(tensor(op.out).rank)
    low, high = ([side[axis] for axis in order] for side in (op.low.data, op.high.data))
    early = site.make(PadOp, view.x, low=low, high=high, value=op.value)
    return behind(early, site)


@SINKING.on(ReshapeOp)
def positions_before_channels(op: ReshapeOp, site: Site) -> SSAValue | None:
    """[N, C, spatial...] with its positions regrouped is [N, positions..., C] turned."""
    view = from_last(op.x)
    if view is None:
        return None
    after = op.dims.data
    if after[:2] != tensor(op.x).dims[:2]:
        return None
    early = site.make(ReshapeOp, view.x, dims=[after[0], *after[2:], after[1]])
    return behind(early, site)


def is_channel_vector(dims: Sequence[Expr]) -> bool:
    """One element a channel: every axis but the last has size 1."""
    return bool(dims) and all(d.constant == 1 for d in dims[:-1])
