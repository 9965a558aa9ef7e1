"""Moves reshapes and transposes out of the way: downward past ops that do not care, upward past slices.

A reshape between two kernels is a name for the same bytes; between two ops of one kernel it is an obstacle. So a
reshape that only regroups leading axes sinks below row-wise ops until it meets its inverse, and a reshape of a slice
becomes a slice of a reshape, which any kernel can read in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, exact_div, product
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import NormOp, SoftmaxOp
from tilewright.ir.graph.shape import ReshapeOp, SliceOp, TransposeOp
from tilewright.passes.canonicalize.shapes import SHAPES
from tilewright.passes.rewriting import Rules, Site, defined, splat

VIEWS = Rules(SHAPES)


def keeps_last_axis(before: Sequence[Expr], after: Sequence[Expr]) -> bool:
    """Rows stay rows: the reshape regroups leading axes only."""
    return bool(before) and bool(after) and before[-1] == after[-1]


def is_vector(value: SSAValue, dims: Sequence[Expr]) -> bool:
    """A number, or one element per column."""
    given = tensor(value).dims
    if splat(value) is not None or all(d.constant == 1 for d in given):
        return len(given) <= 1
    return len(given) == 1 and given[-1] == dims[-1]


def varies(value: SSAValue) -> bool:
    """The value has elements that may differ."""
    return splat(value) is None


@VIEWS.on(MapOp, CastOp)
def elementwise_before_view(op: MapOp | CastOp, site: Site) -> SSAValue | None:
    """f(view(x)) is view(f(x)) for one viewed operand and numbers beside it."""
    viewed = {id(v): v for v in op.operands if varies(v)}
    value = next(iter(viewed.values()), None)
    if len(viewed) != 1 or value is None or any(tensor(v).rank for v in op.operands if not varies(v)):
        return None
    view = defined(value, ReshapeOp) or defined(value, TransposeOp)
    if view is None:
        return None
    if isinstance(op, CastOp):
        early = site.make(CastOp, view.x, dtype=op.dtype)
    else:
        early = site.map(op.fn.data, *(view.x if v is value else v for v in op.args))
    return _same_view(view, early, site)


def _same_view(view: ReshapeOp | TransposeOp, x: SSAValue, site: Site) -> SSAValue:
    if isinstance(view, ReshapeOp):
        return site.make(ReshapeOp, x, dims=view.dims)
    return site.make(TransposeOp, x, permutation=view.permutation)


@VIEWS.on(MapOp)
def columns_before_reshape(op: MapOp, site: Site) -> SSAValue | None:
    """Operands that differ by column only do not care how the rows are grouped."""
    for i, arg in enumerate(op.args):
        view = defined(arg, ReshapeOp)
        if view is None or tensor(arg).dims != tensor(op.out).dims or tensor(view.x).rank == 0:
            continue
        source = tensor(view.x).dims
        if not keeps_last_axis(source, view.dims.data):
            continue
        others = [a if a is not arg else view.x for a in op.args]
        rest = [a for j, a in enumerate(op.args) if j != i and a is not arg]
        if rest and all(is_vector(a, source) for a in rest) and any(varies(a) for a in rest):
            return site.make(ReshapeOp, site.map(op.fn.data, *others), dims=view.dims)
    return None


@VIEWS.on(MatmulOp)
def matmul_before_reshape(op: MatmulOp, site: Site) -> SSAValue | None:
    """With one matrix for all rows, how the rows are grouped does not matter."""
    view = defined(op.a, ReshapeOp)
    if view is None or tensor(op.b).rank != 2 or tensor(view.x).rank < 2:
        return None
    if not keeps_last_axis(tensor(view.x).dims, view.dims.data):
        return None
    early = site.make(MatmulOp, view.x, op.b, transpose_b=op.transpose_b)
    return site.make(ReshapeOp, early, dims=tensor(op.out).dims)


@VIEWS.on(NormOp, SoftmaxOp)
def rows_before_reshape(op: NormOp | SoftmaxOp, site: Site) -> SSAValue | None:
    """A norm or softmax of rows does not care how they are grouped."""
    view = defined(op.x, ReshapeOp)
    if view is None or not keeps_last_axis(tensor(view.x).dims, view.dims.data):
        return None
    if isinstance(op, NormOp):
        early = site.make(NormOp, view.x, op.weight, op.bias, kind=op.kind, eps=op.eps)
    elif op.axis.data == tensor(op.x).rank - 1:
        early = site.make(SoftmaxOp, view.x, axis=tensor(view.x).rank - 1, log=op.log)
    else:
        return None
    return site.make(ReshapeOp, early, dims=view.dims)


@VIEWS.on(ReshapeOp)
def reshape_before_slice(op: ReshapeOp, site: Site) -> SSAValue | None:
    """Splitting the last axis after a slice of it: split first, then slice whole pieces."""
    cut = defined(op.x, SliceOp)
    if cut is None:
        return None
    before, after = tensor(op.x).dims, op.dims.data
    lead = len(before) - 1
    pieces = after[lead:]
    if lead < 0 or before[:lead] != after[:lead] or len(pieces) < 2:
        return None
    whole, start, stop = tensor(cut.x).dims[-1], cut.starts.data[-1], cut.stops.data[-1]
    inner = product(pieces[1:])
    parts = [exact_div(size, inner) for size in (whole, start, stop)]
    if not divides(parts) or cut.strides[-1] != 1:
        return None
    total, first, last = (p for p in parts if p is not None)
    zeros, rest = [Expr.of(0)] * (len(pieces) - 1), list(pieces[1:])
    split = site.make(ReshapeOp, cut.x, dims=(*tensor(cut.x).dims[:-1], total, *rest))
    return site.make(
        SliceOp,
        split,
        starts=(*cut.starts.data[:-1], first, *zeros),
        stops=(*cut.stops.data[:-1], last, *rest),
        steps=(*cut.strides[:-1], *([1] * len(pieces))),
    )


def divides(parts: Sequence[Expr | None]) -> bool:
    """Whole, start and stop of the slice are multiples of the piece that the reshape cuts off."""
    return all(p is not None for p in parts)
