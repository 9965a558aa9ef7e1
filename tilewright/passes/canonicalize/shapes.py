"""Rules on ops that only move elements: identities go, two in a row become one, broadcasts sink, transposes fold.

The condition of each rule is a predicate of its own, so that a test can disable it and watch grounding fail.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DType
from tilewright.ir.graph.base import GraphOp, broadcast_dims, tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import IotaOp
from tilewright.passes.rewriting import Rules, Site, defined, splat

SHAPES = Rules()

# --- conditions -----------------------------------------------------------------------------------------------------


def keeps_dims(x: SSAValue, dims: Sequence[Expr]) -> bool:
    """The dims are the ones x has."""
    return tensor(x).dims == tuple(dims)


def is_identity(permutation: Sequence[int]) -> bool:
    """Every axis stays where it is."""
    return list(permutation) == sorted(permutation)


def moves_only_units(dims: Sequence[Expr], permutation: Sequence[int]) -> bool:
    """The axes that are not of size 1 keep their order: row-major order stays as it is."""
    moved = [axis for axis in permutation if dims[axis].constant != 1]
    return moved == sorted(moved)


def swaps_last_two(permutation: Sequence[int]) -> bool:
    """Only the last two axes change places."""
    n = len(permutation)
    return n >= 2 and list(permutation) == [*range(n - 2), n - 1, n - 2]


def loses_nothing(narrow: DType, wide: DType) -> bool:
    """Every value of the first dtype is a value of the second."""
    if narrow == wide or narrow.kind == "bool":
        return True
    if wide.is_float:
        exponent = {"f64": 11, "f32": 8, "bf16": 8, "f16": 5}
        significand = {"f64": 53, "f32": 24, "bf16": 8, "f16": 11}
        if narrow.is_float:
            return significand[narrow.name] <= significand[wide.name] and exponent[narrow.name] <= exponent[wide.name]
        # f16 has the digits for i8 and u8, and its range holds them
        return narrow.bits - (narrow.kind == "int") <= significand[wide.name]
    if not (narrow.is_integer and wide.is_integer):
        return False
    if narrow.kind == wide.kind:
        return narrow.bits <= wide.bits
    return narrow.kind == "uint" and narrow.bits < wide.bits


def passes_through(start: DType, middle: DType, end: DType) -> bool:
    """Casting through the middle dtype gives what a direct cast gives.

    An integer that leaves the float's range on the way back is undefined, so that way must lose nothing either.
    """
    if not loses_nothing(start, middle):
        return False
    return loses_nothing(start, end) or not (middle.is_float and not start.is_float and not end.is_float)


def takes_all(op: SliceOp) -> bool:
    """The slice keeps every element."""
    dims = tensor(op.x).dims
    zero = Expr.of(0)
    return all(s == zero for s in op.starts.data) and op.stops.data == dims and all(step == 1 for step in op.strides)


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


def stays_inside(site: Site, stop: Expr, size: Expr) -> bool:
    """The last element read is proved to lie in the axis."""
    return site.ctx.dims.compare(stop, "<=", size) is True


def is_unit(dim: Expr) -> bool:
    """The size is 1 whatever the call."""
    return dim.constant == 1


# --- identities and chains ------------------------------------------------------------------------------------------


@SHAPES.on(ReshapeOp)
def reshape_identity(op: ReshapeOp, site: Site) -> SSAValue | None:
    """A reshape to the dims x has."""
    return op.x if keeps_dims(op.x, op.dims.data) else None


@SHAPES.on(ReshapeOp)
def reshape_of_reshape(op: ReshapeOp, site: Site) -> SSAValue | None:
    """Of two reshapes the last decides."""
    inner = defined(op.x, ReshapeOp)
    return None if inner is None else site.make(ReshapeOp, inner.x, dims=op.dims)


@SHAPES.on(ReshapeOp)
def reshape_of_reduce(op: ReshapeOp, site: Site) -> SSAValue | None:
    """A reduction that drops axes, given back as size 1 (or the reverse): the reduction does it itself."""
    reduce = defined(op.x, ReduceOp)
    if reduce is None or not reduce.out.has_one_use():
        return None
    keep = not reduce.keepdims.data
    other = site.make(ReduceOp, reduce.x, fn=reduce.fn, axes=reduce.axes, keepdims=keep)
    return other if keeps_dims(other, op.dims.data) else None


@SHAPES.on(TransposeOp)
def transpose_identity(op: TransposeOp, site: Site) -> SSAValue | None:
    """A transpose that moves no axis."""
    return op.x if is_identity(op.permutation.data) else None


@SHAPES.on(TransposeOp)
def transpose_of_transpose(op: TransposeOp, site: Site) -> SSAValue | None:
    """Two permutations compose."""
    inner = defined(op.x, TransposeOp)
    if inner is None:
        return None
    return site.make(TransposeOp, inner.x, permutation=[inner.permutation.data[axis] for axis in op.permutation.data])


@SHAPES.on(TransposeOp)
def transpose_of_units(op: TransposeOp, site: Site) -> SSAValue | None:
    """Moving axes of size 1 moves no element: a reshape, which costs nothing."""
    if is_identity(op.permutation.data) or not moves_only_units(tensor(op.x).dims, op.permutation.data):
        return None
    return site.make(ReshapeOp, op.x, dims=tensor(op.out).dims)


@SHAPES.on(CastOp)
def cast_identity(op: CastOp, site: Site) -> SSAValue | None:
    """A cast to the dtype x has."""
    return op.x if tensor(op.x).dtype == tensor(op.out).dtype else None


@SHAPES.on(CastOp)
def cast_of_cast(op: CastOp, site: Site) -> SSAValue | None:
    """Two casts are one where the first loses nothing."""
    inner = defined(op.x, CastOp)
    if inner is None or not passes_through(tensor(inner.x).dtype, tensor(inner.out).dtype, tensor(op.out).dtype):
        return None
    return site.make(CastOp, inner.x, dtype=op.dtype)


@SHAPES.on(BroadcastOp)
def broadcast_identity(op: BroadcastOp, site: Site) -> SSAValue | None:
    """A broadcast to the dims x has."""
    return op.x if keeps_dims(op.x, op.dims.data) else None


@SHAPES.on(BroadcastOp)
def broadcast_of_broadcast(op: BroadcastOp, site: Site) -> SSAValue | None:
    """Of two broadcasts the last decides."""
    inner = defined(op.x, BroadcastOp)
    return None if inner is None else site.make(BroadcastOp, inner.x, dims=op.dims)


@SHAPES.on(SliceOp)
def slice_of_everything(op: SliceOp, site: Site) -> SSAValue | None:
    """A slice that takes every element."""
    return op.x if takes_all(op) else None


@SHAPES.on(SliceOp)
def slice_of_slice(op: SliceOp, site: Site) -> SSAValue | None:
    """Two slices become one on axes where the first takes neighbouring elements."""
    inner = defined(op.x, SliceOp)
    if inner is None or any(step != 1 for step in inner.strides):
        return None
    starts = [a + b for a, b in zip(inner.starts.data, op.starts.data, strict=True)]
    stops = [a + b for a, b in zip(inner.starts.data, op.stops.data, strict=True)]
    return site.make(SliceOp, inner.x, starts=starts, stops=stops, steps=op.steps)


@SHAPES.on(PadOp)
def pad_by_nothing(op: PadOp, site: Site) -> SSAValue | None:
    """Padding by 0 on every side."""
    return op.x if keeps_dims(op.x, tensor(op.out).dims) else None


@SHAPES.on(ConcatOp)
def concat_of_one(op: ConcatOp, site: Site) -> SSAValue | None:
    """Operands without elements along the axis add nothing; one operand is the result."""
    kept = [x for x in op.xs if tensor(x).dims[op.axis.data].constant != 0]
    if len(kept) == 1:
        return kept[0]
    return site.make(ConcatOp, kept, axis=op.axis) if kept and len(kept) < len(op.xs) else None


# --- constants ------------------------------------------------------------------------------------------------------


@SHAPES.on(ReshapeOp, TransposeOp, BroadcastOp, SliceOp)
def splat_stays_splat(op: ReshapeOp, site: Site) -> SSAValue | None:
    """Moving equal elements around gives equal elements."""
    value = splat(op.x)
    return None if value is None else site.constant(value, tensor(op.out).dtype, tensor(op.out).dims)


@SHAPES.on(MapOp)
def splat_operands_are_scalars(op: MapOp, site: Site) -> SSAValue | None:
    """A splat of many elements beside another operand is one number."""
    for i, arg in enumerate(op.args):
        value, others = splat(arg), [a for j, a in enumerate(op.args) if j != i]
        if value is None or not tensor(arg).rank or not stretches_none_without(others, tensor(op.out).dims, op):
            continue
        return site.map(op.fn.data, *op.args[:i], site.constant(value, tensor(arg).dtype), *op.args[i + 1 :])
    return None


def stretches_none_without(others: Sequence[SSAValue], dims: Sequence[Expr], op: GraphOp) -> bool:
    """The other operands alone broadcast to the same dims."""
    return bool(others) and broadcast_dims(op, *(tensor(o).dims for o in others)) == tuple(dims)


# --- broadcasts -----------------------------------------------------------------------------------------------------


@SHAPES.on(MapOp)
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
    return op if lead > 0 and dims[lead:] == x and all(is_unit(d) for d in dims[:lead]) else None


@SHAPES.on(BroadcastOp)
def broadcast_adds_leading_axes_itself(op: BroadcastOp, site: Site) -> SSAValue | None:
    """Leading axes of size 1 need no reshape before a broadcast."""
    inner = leading_units(op.x)
    return None if inner is None else site.make(BroadcastOp, inner.x, dims=op.dims)


@SHAPES.on(MapOp, CastOp)
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


@SHAPES.on(ReduceOp)
def reduce_before_broadcast(op: ReduceOp, site: Site) -> SSAValue | None:
    """Axes that a broadcast repeats and the reduction keeps are stretched after it."""
    inner = defined(op.x, BroadcastOp)
    if inner is None:
        return None
    stretched, lead = stretched_axes(inner), tensor(inner.out).rank - tensor(inner.x).rank
    if any(axis < lead for axis in op.axes.data) or not stretched or not reduces_none_of(op.axes.data, stretched):
        return None
    early = site.make(ReduceOp, inner.x, fn=op.fn, axes=[a - lead for a in op.axes.data], keepdims=op.keepdims)
    return site.make(BroadcastOp, early, dims=tensor(op.out).dims)


# --- what other ops do by themselves --------------------------------------------------------------------------------


@SHAPES.on(MatmulOp)
def transpose_into_matmul(op: MatmulOp, site: Site) -> SSAValue | None:
    """A right-hand side with its last two axes swapped is read the other way."""
    inner = defined(op.b, TransposeOp)
    if inner is None or not swaps_last_two(inner.permutation.data):
        return None
    return site.make(MatmulOp, op.a, inner.x, transpose_b=not op.transpose_b.data)


@SHAPES.on(MatmulOp)
def matmul_of_one_term(op: MatmulOp, site: Site) -> SSAValue | None:
    """A contraction over one element is a product that broadcasts."""
    _, _, _, k = op.sizes()
    if not is_unit(k):
        return None
    row = op.b
    if op.transpose_b.data:
        dims = tensor(op.b).dims
        row = site.make(ReshapeOp, op.b, dims=(*dims[:-2], dims[-1], dims[-2]))
    return site.map("mul", op.a, row)


@SHAPES.on(ReduceOp)
def reduce_of_one_element(op: ReduceOp, site: Site) -> SSAValue | None:
    """Reducing axes of size 1 keeps every element; the index of the only one is 0."""
    x, out = tensor(op.x), tensor(op.out)
    if not all(is_unit(x.dims[axis]) for axis in op.axes.data):
        return None
    if op.fn.data in ("argmax", "argmin"):
        return site.constant(0, out.dtype, out.dims)
    return site.make(ReshapeOp, op.x, dims=out.dims)


@SHAPES.on(GatherOp)
def gather_of_one_place(op: GatherOp, site: Site) -> SSAValue | None:
    """The same index everywhere: one slice, repeated."""
    place, x, axis = splat(op.indices), tensor(op.x), op.axis.data
    if place is None or place < 0 or not stays_inside(site, Expr.of(int(place)) + 1, x.dims[axis]):
        return None
    starts = [Expr.of(int(place)) if i == axis else Expr.of(0) for i in range(x.rank)]
    stops = [Expr.of(int(place)) + 1 if i == axis else d for i, d in enumerate(x.dims)]
    one = site.make(SliceOp, op.x, starts=starts, stops=stops)
    units = [Expr.of(1)] * tensor(op.indices).rank
    flat = site.make(ReshapeOp, one, dims=(*x.dims[:axis], *units, *x.dims[axis + 1 :]))
    return site.make(BroadcastOp, flat, dims=tensor(op.out).dims)


@SHAPES.on(GatherOp)
def gather_of_a_range(op: GatherOp, site: Site) -> SSAValue | None:
    """Neighbouring indices in order: a slice."""
    iota, x, axis = defined(op.indices, IotaOp), tensor(op.x), op.axis.data
    if iota is None or tensor(iota.out).rank != 1 or iota.step.data != 1:
        return None
    start, stop = iota.start.data[0], iota.start.data[0] + tensor(iota.out).dims[0]
    if not stays_inside(site, stop, x.dims[axis]) or not stays_inside(site, Expr.of(0), start):
        return None
    starts = [start if i == axis else Expr.of(0) for i in range(x.rank)]
    stops = [stop if i == axis else d for i, d in enumerate(x.dims)]
    return site.make(SliceOp, op.x, starts=starts, stops=stops)


@SHAPES.on(IotaOp)
def iota_of_one_element(op: IotaOp, site: Site) -> SSAValue | None:
    """Counting along an axis of size 1 gives the start."""
    out, start = tensor(op.out), op.start.data[0].constant
    return site.constant(start, out.dtype, out.dims) if start is not None and is_unit(out.dims[op.axis.data]) else None
