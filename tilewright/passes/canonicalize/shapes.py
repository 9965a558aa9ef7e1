"""Rules on ops that only move elements: identities go, two in a row become one, broadcasts sink, transposes fold.

The condition of each rule is a predicate of its own, so that a test can disable it and watch grounding fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.passes.rewriting import Rules, Site, defined

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
    return list(permutation) == [*range(n - 2), n - 1, n - 2]


def loses_nothing(narrow: DType, wide: DType) -> bool:
    """Every value of the first dtype is a value of the second."""
    if narrow.kind == "bool":
        return True
    if wide.is_float:
        exponent = {"f64": 11, "f32": 8, "bf16": 8, "f16": 5}
        significand = {"f64": 53, "f32": 24, "bf16": 8, "f16": 11}
        if narrow.is_float:
            return significand[narrow.name] <= significand[wide.name] and exponent[narrow.name] <= exponent[wide.name]
        # f16 has the digits for i8 and u8, and its range holds them
        return narrow.bits - (narrow.kind == "int") <= significand[wide.name]
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


def follow_one_another(cuts: Sequence[SliceOp], axis: int) -> bool:
    """Slices of one tensor, each starting where the one before stops, and alike along the other axes."""
    for a, b in pairwise(cuts):
        same = [
            a.starts.data[i] == b.starts.data[i] and a.stops.data[i] == b.stops.data[i]
            for i in range(len(a.starts.data))
            if i != axis
        ]
        if a.x is not b.x or a.strides != b.strides or a.strides[axis] != 1 or not all(same):
            return False
        if a.stops.data[axis] != b.starts.data[axis]:
            return False
    return True


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
    if not moves_only_units(tensor(op.x).dims, op.permutation.data):
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


@SHAPES.on(ConcatOp)
def concat_of_neighbours(op: ConcatOp, site: Site) -> SSAValue | None:
    """Slices that follow one another in one tensor, put one after another again."""
    cuts = [c for x in op.xs if (c := defined(x, SliceOp)) is not None]
    if len(cuts) < max(len(op.xs), 2) or not follow_one_another(cuts, op.axis.data):
        return None
    first, axis = cuts[0], op.axis.data
    stops = [cuts[-1].stops.data[i] if i == axis else stop for i, stop in enumerate(first.stops.data)]
    return site.make(SliceOp, first.x, starts=first.starts, stops=stops, steps=first.steps)


@SHAPES.on(MatmulOp)
def transpose_into_matmul(op: MatmulOp, site: Site) -> SSAValue | None:
    """A right-hand side with its last two axes swapped is read the other way."""
    inner = defined(op.b, TransposeOp)
    if inner is None or not swaps_last_two(inner.permutation.data):
        return None
    return site.make(MatmulOp, op.a, inner.x, transpose_b=not op.transpose_b.data, result=op.result)
