"""Moves reshapes and transposes out of the way: downward past ops that do not care, upward past slices.

A reshape between two kernels is a name for the same bytes; between two ops of one kernel it is an obstacle. So a
reshape that only regroups leading axes sinks below row-wise ops until it meets its inverse, and a reshape of a slice
becomes a slice of a reshape, which any kernel can read in place. A rounding sinks the other way, to where its value is
computed: what is stored is narrow then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dims import Expr, exact_div, product
from tilewright.ir.dtypes import DType
from tilewright.ir.graph.attention import RotaryOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.reduction import NormOp, SoftmaxOp
from tilewright.ir.graph.shape import ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import PositionsOp
from tilewright.passes.canonicalize.broadcasts import BROADCASTS
from tilewright.passes.canonicalize.shapes import SHAPES, moves_only_units
from tilewright.passes.canonicalize.singles import SINGLES
from tilewright.passes.rewriting import Rules, Site, defined, only_adds_units, same_dims, splat, users

# SINGLES, because no row kernel reduces an axis of one element
VIEWS = Rules(SHAPES, BROADCASTS, SINGLES)

_PLACES: Final = (SliceOp, ReshapeOp, TransposeOp)  # what only says where elements of a value are found


def keeps_last_axis(before: Sequence[Expr], after: Sequence[Expr]) -> bool:
    """Rows stay rows: the reshape regroups leading axes only."""
    return tuple(before[-1:]) == tuple(after[-1:])


def is_vector(value: SSAValue) -> bool:
    """A number, or one element per column: what broadcasts along all axes but the last."""
    return tensor(value).rank <= 1


def rests_on_memory(value: SSAValue) -> bool:
    """Elementwise ops alone lie between the value and what is in memory, or counted: no kernel's own result does."""
    owner = value.owner
    if isinstance(owner, (MapOp, CastOp)):
        return value.has_one_use() and all(rests_on_memory(v) for v in owner.operands)
    if isinstance(owner, (ReshapeOp, TransposeOp, SliceOp)):
        return rests_on_memory(owner.x)
    return not isinstance(owner, Operation) or not owner.operands


def rounds_everywhere(value: SSAValue, dtype: DType) -> bool:
    """Whoever reads the value, or a view of it, casts it to the dtype and reads nothing else of it."""
    found = users(value)
    return bool(found) and all(
        tensor(op.out).dtype == dtype
        if isinstance(op, CastOp)
        else isinstance(op, _PLACES) and rounds_everywhere(op.out, dtype)
        for op in found
    )


def covers_axis(site: Site, count: Expr, size: Expr) -> bool:
    """That many places from the start are proved to lie in the axis."""
    return site.ctx.dims.compare(count, "<=", size) is True


def varies(value: SSAValue) -> bool:
    """The value has elements that may differ."""
    return splat(value) is None


@VIEWS.on(CastOp)
def rounding_before_views(op: CastOp, site: Site) -> SSAValue | None:
    """A computed value of which only roundings to one dtype are read is rounded once, where it is computed.

    Slices of a merged product, say: the product stores them rounded, and no kernel reads them just to do that.
    """
    views, root, dtype = [], op.x, tensor(op.out).dtype
    while isinstance(root.owner, _PLACES):
        views.append(root.owner)
        root = root.owner.x
    owner = root.owner
    if not views or not isinstance(owner, Operation) or rests_on_memory(root):
        return None
    if dtype.bits >= tensor(root).dtype.bits:
        return None  # stored wider than it is computed
    if not rounds_everywhere(root, dtype):
        if any(isinstance(view, SliceOp) for view in views):
            site.refuse(f"not rounded to {dtype} where it is computed: not all that is read of it is {dtype}")
        return None
    value = _cast_at_its_owner(root, op, site)
    for view in reversed(views):
        stated: dict[str, Any] = {**view.properties}
        value = site.make(type(view), value, **stated)
    return value


def _cast_at_its_owner(root: SSAValue, op: CastOp, site: Site) -> SSAValue:
    """The cast of a computed value right behind the op that computes it: one that is there, or a new one."""
    block, owner = op.parent, root.owner
    assert block is not None  # rules see ops of a block
    assert isinstance(owner, Operation)  # asked by the caller
    found = next((u for u in users(root) if isinstance(u, CastOp) and u.parent is block), None)
    cast = found.out if found is not None else site.make(CastOp, root, dtype=op.dtype)
    made = cast.owner
    assert isinstance(made, Operation)  # a cast's result
    block.detach_op(made)
    block.insert_op_after(made, owner)
    return cast


@VIEWS.on(MapOp, CastOp)
def elementwise_before_view(op: MapOp | CastOp, site: Site) -> SSAValue | None:
    """f(view(x)) is view(f(x)) for one viewed operand and numbers beside it."""
    viewed = {id(v): v for v in op.operands if varies(v)}
    value = next(iter(viewed.values()), None)
    if len(viewed) != 1 or value is None or any(tensor(v).rank for v in op.operands if not varies(v)):
        return None
    view = defined(value, ReshapeOp) or defined(value, TransposeOp)
    if view is None or (only_adds_units(view) and rests_on_memory(value)):
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


@VIEWS.on(ReshapeOp)
def units_before_elementwise(op: ReshapeOp, site: Site) -> SSAValue | None:
    """Axes of size 1 are added before elementwise ops, which can then join what broadcasts their result."""
    inner = defined(op.x, MapOp) or defined(op.x, CastOp)
    if inner is None or not only_adds_units(op) or not rests_on_memory(op.x):
        return None
    if any(tensor(v).dims != tensor(op.x).dims and (varies(v) or tensor(v).rank) for v in inner.operands):
        return None
    wide = [site.make(ReshapeOp, v, dims=op.dims) if varies(v) else v for v in inner.operands]
    if isinstance(inner, CastOp):
        return site.make(CastOp, wide[0], dtype=inner.dtype)
    return site.map(inner.fn.data, *wide)


@VIEWS.on(MapOp)
def elementwise_before_repetition(op: MapOp, site: Site) -> SSAValue | None:
    """f of a value beside itself is computed once."""
    joined = defined(op.args[0], ConcatOp) if len(op.args) == 1 else None
    if joined is None or not all(x is joined.xs[0] for x in joined.xs):
        return None
    early = site.map(op.fn.data, joined.xs[0])
    return site.make(ConcatOp, [early] * len(joined.xs), axis=joined.axis)


@VIEWS.on(GatherOp)
def gather_by_position(op: GatherOp, site: Site) -> SSAValue | None:
    """Rows looked up by positions that count from zero are the first rows."""
    places, x, axis = op.indices, tensor(op.x), op.axis.data
    while isinstance(places.owner, ReshapeOp) and only_adds_units(places.owner):
        places = places.owner.x
    if defined(places, PositionsOp) is None:
        return None
    count = tensor(places).dims[0]
    if not covers_axis(site, count, x.dims[axis]):
        return None
    starts = [Expr.of(0)] * x.rank
    first = site.make(SliceOp, op.x, starts=starts, stops=[count if i == axis else d for i, d in enumerate(x.dims)])
    return site.make(ReshapeOp, first, dims=tensor(op.out).dims)


@VIEWS.on(MapOp)
def columns_before_reshape(op: MapOp, site: Site) -> SSAValue | None:
    """Operands that differ by column only do not care how the rows are grouped."""
    for i, arg in enumerate(op.args):
        view = defined(arg, ReshapeOp)
        if view is None or not same_dims(arg, op.out) or not keeps_last_axis(tensor(view.x).dims, view.dims.data):
            continue
        others = [a if a is not arg else view.x for a in op.args]
        rest = [a for j, a in enumerate(op.args) if j != i and a is not arg]
        if rest and all(is_vector(a) for a in rest) and any(varies(a) for a in rest):
            return site.make(ReshapeOp, site.map(op.fn.data, *others), dims=view.dims)
    return None


@VIEWS.on(MapOp)
def residual_before_reshape(op: MapOp, site: Site) -> SSAValue | None:
    """What is added to a product whose rows are regrouped can be regrouped instead: that is another name for it."""
    if len(op.args) != 2:
        return None
    for i, arg in enumerate(op.args):
        view, other = defined(arg, ReshapeOp), op.args[1 - i]
        if view is None or not same_dims(arg, op.out) or not same_dims(other, op.out):
            continue
        back = defined(other, ReshapeOp)
        if back is not None and not same_dims(back.x, view.x):
            continue
        if not arg.has_one_use() or not comes_from_product(view.x) or comes_from_product(other):
            continue
        if keeps_last_axis(tensor(view.x).dims, view.dims.data):
            regrouped = site.make(ReshapeOp, other, dims=tensor(view.x).dims)
            pair = (view.x, regrouped) if i == 0 else (regrouped, view.x)
            return site.make(ReshapeOp, site.map(op.fn.data, *pair), dims=view.dims)
    return None


def comes_from_product(value: SSAValue) -> bool:
    """A product with nothing but elementwise ops on it, each read once: what follows may run in its registers."""
    if not value.has_one_use():
        return False
    if isinstance(value.owner, (MapOp, CastOp)):
        return any(comes_from_product(v) for v in value.owner.operands)
    return isinstance(value.owner, MatmulOp)


@VIEWS.on(RotaryOp)
def rotary_before_transpose(op: RotaryOp, site: Site) -> SSAValue | None:
    """Turning features does not care where heads and tokens stand: the transpose goes to whoever reads the result."""
    view = defined(op.x, TransposeOp)
    if view is None or not keeps_last_place(view.permutation.data):
        return None
    order, rank = view.permutation.data, tensor(op.x).rank
    back = [order.index(axis) for axis in range(rank)]
    tables = [_transposed(table, back, site) for table in (op.cos, op.sin)]
    if tables[0] is None or tables[1] is None:
        return None
    return site.make(TransposeOp, site.make(RotaryOp, view.x, *tables, style=op.style), permutation=order)


def keeps_last_place(permutation: Sequence[int]) -> bool:
    """The last axis stays last."""
    return permutation[-1] == len(permutation) - 1


def _transposed(table: SSAValue, permutation: Sequence[int], site: Site) -> SSAValue | None:
    """A table that broadcasts, with its axes permuted; None where that would move elements."""
    given = tensor(table).dims
    dims = (*[Expr.of(1)] * (len(permutation) - len(given)), *given)
    if not moves_only_units(dims, permutation):
        return None
    return site.make(ReshapeOp, table, dims=[dims[axis] for axis in permutation])


@VIEWS.on(MatmulOp)
def matmul_before_reshape(op: MatmulOp, site: Site) -> SSAValue | None:
    """With one matrix for all rows, how the rows are grouped does not matter."""
    view = defined(op.a, ReshapeOp)
    if view is None or tensor(op.b).rank != 2 or tensor(view.x).rank < 2:
        return None
    if not keeps_last_axis(tensor(view.x).dims, view.dims.data):
        return None
    early = site.make(MatmulOp, view.x, op.b, transpose_b=op.transpose_b, result=op.result)
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
    if before[:lead] != after[:lead] or len(pieces) < 2:
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
