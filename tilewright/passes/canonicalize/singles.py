"""Rules on single elements: axes of size 1 leave nothing to add up, and lookups of known places are slices."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.reduction import NormOp, ReduceOp, SoftmaxOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, SliceOp
from tilewright.ir.graph.structure import IotaOp
from tilewright.passes.rewriting import Rules, Site, defined, only_adds_units, splat

SINGLES = Rules()

# --- conditions -----------------------------------------------------------------------------------------------------


def stays_inside(site: Site, stop: Expr, size: Expr) -> bool:
    """The last element read is proved to lie in the axis."""
    return site.ctx.dims.compare(stop, "<=", size) is True


def is_unit(dim: Expr) -> bool:
    """The size is 1 whatever the call."""
    return dim.constant == 1


# --- axes of size 1 ------------------------------------------------------------------------------------------------


@SINGLES.on(MatmulOp)
def matmul_of_one_term(op: MatmulOp, site: Site) -> SSAValue | None:
    """A contraction over one element is a product that broadcasts. One whose operands are to be rounded waits."""
    _, _, _, k = op.sizes()
    if not is_unit(k) or site.ctx.options.precision != "model":
        return None
    row = op.b
    if op.transpose_b.data:
        dims = tensor(op.b).dims
        row = site.make(ReshapeOp, op.b, dims=(*dims[:-2], dims[-1], dims[-2]))
    return site.map("mul", op.a, row)


@SINGLES.on(ReduceOp)
def reduce_of_one_element(op: ReduceOp, site: Site) -> SSAValue | None:
    """Reducing axes of size 1 keeps every element; the index of the only one is 0."""
    x, out = tensor(op.x), tensor(op.out)
    if not all(is_unit(x.dims[axis]) for axis in op.axes.data):
        return None
    if op.fn.data in ("argmax", "argmin"):
        return site.constant(0, out.dtype, out.dims)
    return site.make(ReshapeOp, op.x, dims=out.dims)


@SINGLES.on(SoftmaxOp)
def softmax_of_one_element(op: SoftmaxOp, site: Site) -> SSAValue | None:
    """x - x, then exp: 1 where x is finite, NaN where it is not."""
    if not is_unit(tensor(op.x).dims[op.axis.data]):
        return None
    gap = site.map("sub", op.x, op.x)
    return gap if op.log.data else site.map("exp", gap)


@SINGLES.on(NormOp)
def norm_of_one_element(op: NormOp, site: Site) -> SSAValue | None:
    """A norm over one element, spelled out in f32 or wider: no axis is left to reduce."""
    dtype = tensor(op.x).dtype
    if not is_unit(tensor(op.x).dims[-1]):
        return None
    wide = dtype if dtype.bits >= F32.bits else F32

    def widened(value: SSAValue) -> SSAValue:
        return value if dtype == wide else site.make(CastOp, value, dtype=wide.name)

    x = widened(op.x)
    y = site.map("sub", x, x) if op.kind.data == "layer" else x
    spread = site.map("add", site.map("mul", y, y), site.constant(op.eps.data, wide))
    y = site.map("div", y, site.map("sqrt", spread))
    if op.weight is not None:
        y = site.map("mul", y, widened(op.weight))
    if op.bias is not None:
        y = site.map("add", y, widened(op.bias))
    return y if dtype == wide else site.make(CastOp, y, dtype=dtype.name)


@SINGLES.on(IotaOp)
def iota_of_one_element(op: IotaOp, site: Site) -> SSAValue | None:
    """Counting along an axis of size 1 gives the start."""
    out, start = tensor(op.out), op.start.data[0].constant
    return site.constant(start, out.dtype, out.dims) if start is not None and is_unit(out.dims[op.axis.data]) else None


# --- lookups --------------------------------------------------------------------------------------------------------


@SINGLES.on(GatherOp)
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


@SINGLES.on(GatherOp)
def gather_of_a_range(op: GatherOp, site: Site) -> SSAValue | None:
    """Neighbouring indices in order: a slice."""
    places, x, axis = op.indices, tensor(op.x), op.axis.data
    while isinstance(places.owner, ReshapeOp) and only_adds_units(places.owner):
        places = places.owner.x
    iota = defined(places, IotaOp)
    if iota is None or tensor(iota.out).rank != 1 or iota.step.data != 1:
        return None
    start, stop = iota.start.data[0], iota.start.data[0] + tensor(iota.out).dims[0]
    if not stays_inside(site, stop, x.dims[axis]) or not stays_inside(site, Expr.of(0), start):
        return None
    starts = [start if i == axis else Expr.of(0) for i in range(x.rank)]
    stops = [stop if i == axis else d for i, d in enumerate(x.dims)]
    cut = site.make(SliceOp, op.x, starts=starts, stops=stops)
    return cut if places is op.indices else site.make(ReshapeOp, cut, dims=tensor(op.out).dims)
