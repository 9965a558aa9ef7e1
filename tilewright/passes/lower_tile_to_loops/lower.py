"""A tile kernel's ops in order, each handed to the file that lowers its kind: `lower_kernel`."""

from __future__ import annotations

from xdsl.ir import Block, Operation

from tilewright.ir.dtypes import I64
from tilewright.ir.loops import LoopKernel
from tilewright.ir.machine import Machine
from tilewright.ir.tile import compute
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp
from tilewright.ir.tile.memory import StoreOp, root
from tilewright.ir.tile.places import UpdateOp
from tilewright.ir.tile.structure import ForOp, IfOp, KernelOp, YieldOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.control import lower_for, lower_if
from tilewright.passes.lower_tile_to_loops.counters import CounterRow
from tilewright.passes.lower_tile_to_loops.definitions import materialise
from tilewright.passes.lower_tile_to_loops.dots import lower_dot
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE
from tilewright.passes.lower_tile_to_loops.emission import Emission
from tilewright.passes.lower_tile_to_loops.grid import over_programs
from tilewright.passes.lower_tile_to_loops.index_ops import lower_index_op
from tilewright.passes.lower_tile_to_loops.indices import Facts
from tilewright.passes.lower_tile_to_loops.lines import lower_sort_line, lower_topk_line
from tilewright.passes.lower_tile_to_loops.matrix_dots import lower_matrix_dot
from tilewright.passes.lower_tile_to_loops.ordering import lower_sort, lower_topk
from tilewright.passes.lower_tile_to_loops.pair_packing import store_panels
from tilewright.passes.lower_tile_to_loops.placement import place
from tilewright.passes.lower_tile_to_loops.reading_ahead import asking
from tilewright.passes.lower_tile_to_loops.reductions import lower_accumulate, lower_reduce
from tilewright.passes.lower_tile_to_loops.scaled_dots import lower_dot_scaled
from tilewright.passes.lower_tile_to_loops.scans import lower_scan
from tilewright.passes.lower_tile_to_loops.stores import store
from tilewright.passes.lower_tile_to_loops.together import programs_together
from tilewright.passes.lower_tile_to_loops.updates import update


def lower_kernel(kernel: KernelOp, machine: Machine, *, instrument: bool = False, cleared: bool = False) -> LoopKernel:
    """The loop kernel of a tile kernel: same buffers and dims in the same order, its grid split over the threads.

    instrument: the last buffer is an i64 array of counters, one row a thread; `counters.quantities` names its columns.
    cleared: all scratch is zeros when a thread enters the kernel.
    Raises LoweringError for what this lowering cannot do.
    """
    b = Emission(kernel.sym_name.data)
    cx = Lowering(kernel, machine, b, Facts(), place(kernel, machine.rules))
    cx.ahead = asking(cx)
    cx.together = 1 if instrument else programs_together(cx)
    for name in kernel.dims.data:
        b.dim(name)
    written = {root(op.target) for op in kernel.walk() if isinstance(op, StoreOp)}
    first_output = len(kernel.buffers) - kernel.outputs.data
    for number, value in enumerate(kernel.buffers):
        writable = number >= first_output or value in written
        cx.buffers[value] = b.buffer(f"arg{number}", buffer(value).dtype, writable=writable)
    if instrument:
        cx.counters = CounterRow(cx, b.buffer("counters", I64, writable=True))
    over_programs(cx, lambda: lower_block(cx, kernel.block))
    if cleared:
        b.clear_scratch()
    return b.finish()


def lower_block(cx: Lowering, block: Block) -> None:
    """The ops of a block, except its terminator."""
    for op in block.ops:
        if isinstance(op, YieldOp):
            break
        if op not in cx.done:
            _lower(cx, op)
        if cx.counters is not None:
            cx.counters.op(op)
        cx.release(cx.plan.dies.get(op, ()))


def _lower(cx: Lowering, op: Operation) -> None:
    cx.op = op
    if lower_index_op(cx, op):
        return
    match op:
        case ForOp():
            lower_for(cx, op, lower_block)
        case IfOp():
            lower_if(cx, op, lower_block)
        case StoreOp():
            if not store_panels(cx, op):
                store(cx, op)
        case UpdateOp():
            update(cx, op)
        case SortLineOp():
            lower_sort_line(cx, op)
        case TopkLineOp():
            lower_topk_line(cx, op)
        case _ if type(op) in INLINE:
            if op.results[0] in cx.plan.homes:
                materialise(cx, op)
        case _ if not any(cx.plan.roots.get(r) for r in op.results):
            pass  # nobody reads what it would compute
        case compute.ReduceOp():
            lower_reduce(cx, op)
        case compute.AccumulateOp():
            lower_accumulate(cx, op)
        case compute.DotOp():
            if not lower_matrix_dot(cx, op):
                lower_dot(cx, op)
        case compute.DotScaledOp():
            lower_dot_scaled(cx, op)
        case compute.ScanOp():
            lower_scan(cx, op)
        case compute.SortOp():
            lower_sort(cx, op)
        case compute.TopkOp():
            lower_topk(cx, op)
        case _:
            raise cx.unsupported(op, "no lowering to loops")
