"""The pooling skeleton: channels along the lanes, taps of the window folded one after the other in row-major order."""

from __future__ import annotations

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, F64, I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.graph.windows import PoolOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin
from tilewright.passes.lower_to_tile.position_tiles import channel_tile
from tilewright.passes.lower_to_tile.skeleton import Refusal
from tilewright.passes.lower_to_tile.taps import Tap, fold_taps

_ALONE = "a pool is a kernel of its own, on images with their channels last"


def refuses_pool(op: Operation) -> Refusal | None:
    """Images with their channels first."""
    return Refusal(_ALONE) if isinstance(op, PoolOp) and not op.channels_last.data else None


def lower_pool(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """One program a run of positions and of channels; padding reads as what changes nothing."""
    op = next(o for o in group.block.ops if isinstance(o, PoolOp))
    if group.yielded != (op.out,) or not isinstance(op.x, BlockArgument):
        raise unsupported(op, _ALONE)
    b, buffers, (output,) = begin(group, name)
    x, out = tensor(op.x), tensor(op.out)
    spatial = x.rank - 2
    rows, width = channel_tile(machine, out.dims[-2].constant, out.dims[-1].constant)
    tiles = [1] * spatial + [rows, width]
    at = b.grid(out.dims, tiles)
    dtype = x.dtype if op.fn.data == "max" else F64 if x.dtype == F64 else F32
    start = float("-inf") if op.fn.data == "max" else 0.0
    image = b.view(buffers[op.x], x.dims, ViewOp.row_major(x.dims))
    low, dilation = op.padding_low.data, op.dilation.data

    def fold(tap: Tap, acc: SSAValue) -> SSAValue:
        places = zip(tap.coordinates, dilation, low, strict=True)
        offsets = [tap.index(place * step - before) for place, step, before in places]
        moved = b.window(image, [0, *offsets, 0], out.dims, [1, *op.strides.data, 1])
        under = b.cast(b.reshape(b.load(moved, at, tiles, start), (rows, width)), dtype)
        return b.map("max" if op.fn.data == "max" else "add", acc, under)

    total = fold_taps(b, op.window.data, b.constant(start, (rows, width), dtype), fold)
    if op.fn.data == "mean":
        total = b.map("div", total, b.broadcast(b.cast(_divisor(b, op, at, rows), dtype), (rows, width)))
    target = b.view(output, out.dims, ViewOp.row_major(out.dims))
    b.store(b.reshape(b.cast(total, out.dtype), tiles), target, at)
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))


def _divisor(b: KernelBuilder, op: PoolOp, at: list[SSAValue], rows: int) -> SSAValue:
    """What a mean divides by, [rows, 1] or [1, 1] in i64: the elements of each window that count."""
    if op.divisor.data:
        return b.splat(op.divisor.data, (1, 1), I64)
    total: SSAValue | None = None
    spatial = tensor(op.x).dims[1:-1]
    for axis, (size, window) in enumerate(zip(spatial, op.window.data, strict=True)):
        low, high = op.padding_low.data[axis], op.padding_high.data[axis]
        counted = op.count_padding.data
        first, last = (-low, size + high) if counted else (Expr.of(0), size)
        stride, dilation = op.strides.data[axis], op.dilation.data[axis]
        if counted and not op.ceil.data:
            here = b.splat(window, (1, 1), I64)
        else:
            inner = axis == len(spatial) - 1
            index = b.coordinates(at[axis + 1], 0, (rows, 1)) if inner else b.splat(at[axis + 1], (1, 1))
            begin_at = b.map("mul", b.cast(index, I64), b.splat(stride, (1, 1), I64))
            begin_at = b.map("sub", begin_at, b.splat(low, (1, 1), I64))
            # taps t with first <= begin + t * dilation < last
            below = _taps_below(b, begin_at, last, dilation, window)
            before = _taps_below(b, begin_at, Expr.of(first), dilation, window)
            here = b.map("sub", below, before)
        total = here if total is None else b.map("mul", total, here)
    assert total is not None  # an image has a spatial axis
    return total


def _taps_below(b: KernelBuilder, begin_at: SSAValue, limit: Expr, dilation: int, window: int) -> SSAValue:
    """How many of the window's taps lie below a limit: ceil((limit - begin) / dilation), within 0..window."""
    gap = b.map("sub", b.splat(limit + (dilation - 1), (1, 1), I64), begin_at)
    gap = b.map("max", gap, b.splat(0, (1, 1), I64))
    if dilation > 1:
        gap = b.map("floordiv", gap, b.splat(dilation, (1, 1), I64))
    return b.map("min", gap, b.splat(window, (1, 1), I64))
