"""What may share a kernel: one small predicate a condition, so that a test can disable each.

The skeletons' rules: epilogues are pointwise with operands that the result's tile can address (a scalar, a column
vector, a row scalar, or the same shape); prologues are pointwise at the shape that is reduced. Nothing is recomputed
unless that moves no more words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import RotaryOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp, TakeAlongOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import PadOp
from tilewright.ir.passing import Context
from tilewright.ir.tile.reduction import LANES
from tilewright.passes.fuse.plan import Cluster, Plan, is_leaf, root
from tilewright.passes.rewriting import splat

CHEAP_FLOPS = 4  # per element: what a kernel may compute again instead of loading
LONGEST_TILE = 4096  # elements of a row that a row kernel keeps whole


def is_pointwise(op: Operation) -> bool:
    """Every element of the result comes from one element of each operand."""
    return isinstance(op, (MapOp, CastOp))


def row_dims(op: Operation) -> tuple[Expr, ...]:
    """The dims of the rows a row reduction reads."""
    return tensor(op.operands[0]).dims


def reduced_dims(op: ReduceOp) -> tuple[Expr, ...]:
    """The dims of a reduction's result."""
    return tensor(op.out).dims


# --- operands of a matmul's epilogue --------------------------------------------------------------------------------


def is_number(value: SSAValue) -> bool:
    """One number for every element."""
    return splat(value) is not None


def is_scalar(value: SSAValue) -> bool:
    """One element."""
    return all(d.constant == 1 for d in tensor(value).dims)


def is_column_vector(value: SSAValue, dims: Sequence[Expr]) -> bool:
    """An element per column, the same for every row."""
    given = tensor(value).dims
    return given[-1:] == tuple(dims[-1:]) and all(d.constant == 1 for d in given[:-1])


def is_row_scalar(value: SSAValue, dims: Sequence[Expr]) -> bool:
    """An element per row, the same for every column."""
    given = tensor(value).dims
    return given == (*dims[:-1], Expr.of(1))


def is_same_shape(value: SSAValue, dims: Sequence[Expr]) -> bool:
    """An element of its own for every element."""
    return tensor(value).dims == tuple(dims)


def in_memory(value: SSAValue) -> bool:
    """Something stored, perhaps seen through views, rather than counted from coordinates."""
    return not is_leaf(root(value).owner)


def fits_epilogue(value: SSAValue, dims: Sequence[Expr]) -> bool:
    """An operand that the tile of a matmul's result can address."""
    if is_number(value):
        return True
    return in_memory(value) and (
        is_scalar(value) or is_column_vector(value, dims) or is_row_scalar(value, dims) or is_same_shape(value, dims)
    )


def why_no_epilogue(op: Operation, inside: set[SSAValue], dims: Sequence[Expr]) -> str | None:
    """Why an op cannot run on a matmul's result in registers; None when it can."""
    if not is_pointwise(op):
        return f"{op.name} is not pointwise"
    if not is_same_shape(op.results[0], dims):
        return f"its result {tensor(op.results[0])} has another shape than the product"
    for value in op.operands:
        if value not in inside and not fits_epilogue(value, dims):
            return f"its operand {tensor(value)} is no scalar, column, row or tensor of the product's shape"
    return None


def is_pair(first: Operation, second: Operation) -> bool:
    """Two products, or two grouped ones, of one left-hand side with right-hand sides of one shape: x is read once."""
    if first is second:
        return False
    # the same left-hand side and, of grouped products, the same segments of the same rows
    shared = [i for i in range(min(len(first.operands), 5)) if i != 1]
    return (
        len(first.operands) == len(second.operands)
        and all(first.operands[i] is second.operands[i] for i in shared)
        and tensor(first.operands[1]) == tensor(second.operands[1])
        and first.properties["transpose_b"] == second.properties["transpose_b"]
    )


# --- rows and elements ----------------------------------------------------------------------------------------------


def turns_whole_rows(op: Operation, dims: Sequence[Expr]) -> bool:
    """A rotary turn of rows that lie in one tile without padding: the partner of every feature is in it."""
    features = dims[-1].constant
    return isinstance(op, RotaryOp) and features is not None and features <= LONGEST_TILE and features % LANES == 0


def is_row_shape(value: SSAValue, dims: Sequence[Expr]) -> bool:
    """The shape of the rows, or one element a row (the axis kept as 1)."""
    given = tensor(value).dims
    return given == tuple(dims) or given == (*dims[:-1], Expr.of(1))


def views_stay_outside(plan: Plan, ops: Sequence[Operation]) -> bool:
    """No op reads another one's result through a view: inside a kernel a value has one place for each coordinate."""
    inside = set(ops)
    return not any(plan.source(v) in inside and v.owner not in inside for op in ops for v in op.operands)


def buffers_come_from_outside(plan: Plan, ops: Sequence[Operation]) -> bool:
    """What is looked up by index, or padded, lies in memory: no op of the same kernel computes it."""
    inside = set(ops)
    return not any(plan.source(op.x) in inside for op in ops if reads_elsewhere(op))


def reads_elsewhere(op: Operation) -> TypeGuard[GatherOp | TakeAlongOp | PadOp]:
    """The elements of its first operand are read at other coordinates than those of its result."""
    return isinstance(op, (GatherOp, TakeAlongOp, PadOp))


def is_prologue(op: Operation) -> bool:
    """What a reduction may compute on its way to a row: pointwise ops, elements looked up by index or padded."""
    return is_pointwise(op) or reads_elsewhere(op)


def only_read_inside(plan: Plan, op: Operation, cluster: Cluster) -> bool:
    """No other kernel needs the op's results."""
    return all(plan.of[reader] is cluster for result in op.results for reader in plan.readers(result))


def recomputes_cheaply(op: Operation, dims: Sequence[Expr], ctx: Context) -> bool:
    """Computing a smaller value again for each of its repeats moves no more words than storing and loading it.

    With n elements of the value repeated to N: stored, it costs its operands once, n written and N read; computed
    again, its operands N / n times. Both sides are multiplied by n.
    """
    if isinstance(op, RotaryOp) or (isinstance(op, MapOp) and op.function.flops > CHEAP_FLOPS):
        return False
    out = tensor(op.results[0])
    repeated = Expr.of(1)
    for d in dims:
        repeated = repeated * d
    if reads_elsewhere(op):
        read = op.cost().read
    else:
        read = sum((tensor(v).bytes for v in op.operands if in_memory(v)), Expr.of(0))
    stored = out.elements * (read + out.bytes) + repeated * out.bytes
    return ctx.dims.compare(repeated * read, "<=", stored) is True
