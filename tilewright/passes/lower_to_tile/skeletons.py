"""Every skeleton, in one table: what kernels there are, around which ops, and how they grow.

fuse, plan-layout and lower-to-tile ask here, and so do `tilewright ops` and the error for an op that no kernel
computes. An op belongs to the first skeleton that takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xdsl.ir import Operation

from tilewright.ir.graph.attention import AttentionOp, RotaryOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp, PutAlongOp, ScatterOp, StateUpdateOp, TakeAlongOp
from tilewright.ir.graph.linear_attention import ContinuedLinearAttentionOp
from tilewright.ir.graph.paging import PagedAttentionOp
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.polynomial_attention import PolynomialAttentionOp
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp, NormOp, ReduceOp, SoftmaxOp, SortOp, TopkOp
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import IN_PLACE, ConstantOp, DimOp, GroupOp, IotaOp, PositionsOp, YieldOp
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp
from tilewright.ir.passing import Context
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.attention import lower_attention, refuses_attention
from tilewright.passes.lower_to_tile.constants import lower_constant
from tilewright.passes.lower_to_tile.convolution import lower_convolution, refuses_convolution
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.grouped import lower_grouped_matmul, refuses_grouped
from tilewright.passes.lower_to_tile.joining import lower_concat
from tilewright.passes.lower_to_tile.linear_attention import lower_linear_attention
from tilewright.passes.lower_to_tile.matmul import lower_matmul, refuses_matmul
from tilewright.passes.lower_to_tile.ordering import lower_ordering
from tilewright.passes.lower_to_tile.packing import lower_pack
from tilewright.passes.lower_to_tile.paged import lower_paged_attention
from tilewright.passes.lower_to_tile.paged_quantized import lower_quantized_paged_attention
from tilewright.passes.lower_to_tile.pointwise import lower_map
from tilewright.passes.lower_to_tile.polynomial_attention import lower_polynomial_attention
from tilewright.passes.lower_to_tile.pooling import lower_pool, refuses_pool
from tilewright.passes.lower_to_tile.reductions import lower_reduction
from tilewright.passes.lower_to_tile.routing import lower_route, lower_slots
from tilewright.passes.lower_to_tile.running import lower_running
from tilewright.passes.lower_to_tile.scattering import lower_scatter
from tilewright.passes.lower_to_tile.skeleton import Skeleton, Trait
from tilewright.passes.lower_to_tile.states import lower_state_update


def reduces_rows(op: Operation) -> bool:
    """A norm, or a softmax or reduction over the last axis."""
    match op:
        case NormOp():
            return True
        case SoftmaxOp():
            return op.axis.data == tensor(op.x).rank - 1
        case ReduceOp():
            return op.axes.data == (tensor(op.x).rank - 1,)
        case _:
            return False


def _has_values(op: Operation) -> bool:
    return isinstance(op, ConstantOp) and op.splat is None


SKELETONS: Final = (
    Skeleton(
        "matmul", "a register tile of a matrix product, all of K inside", (MatmulOp,),
        lambda group, name, ctx: lower_matmul(group, name, ctx.machine, ctx.dims),
        refuses=refuses_matmul, traits=frozenset({"epilogue", "pair", "rereads", "panels"}),
    ),
    Skeleton(
        "grouped-matmul", "one expert's rows by one panel of its matrix", (GroupedMatmulOp,),
        lambda group, name, ctx: lower_grouped_matmul(group, name, ctx.machine, ctx.dims),
        refuses=refuses_grouped, traits=frozenset({"epilogue", "pair", "rereads", "panels"}),
    ),
    Skeleton(
        "convolution", "a row of positions by a panel of filters in registers, all taps inside", (ConvolutionOp,),
        lambda group, name, ctx: lower_convolution(group, name, ctx.machine),
        refuses=refuses_convolution, traits=frozenset({"epilogue", "rereads"}),
    ),
    Skeleton(
        "pool", "the taps of a window folded one after the other, channels along the lanes", (PoolOp,),
        lambda group, name, ctx: lower_pool(group, name, ctx.machine),
        refuses=refuses_pool, traits=frozenset({"rereads"}),
    ),
    Skeleton(
        "attention", "a block of queries stays on chip while keys and values stream past", (AttentionOp,),
        lambda group, name, ctx: lower_attention(group, name, ctx.machine, ctx.dims),
        refuses=refuses_attention, traits=frozenset({"rereads", "turned"}),
    ),
    Skeleton(
        "polynomial-attention", "a key head's sums of features stay on chip while its keys and queries stream past",
        (PolynomialAttentionOp,),
        lambda group, name, ctx: lower_polynomial_attention(group, name, ctx.machine, ctx.dims),
        refuses=refuses_attention, traits=frozenset({"rereads", "turned"}),
    ),
    Skeleton(
        "paged-attention", "one request's tokens and one key head, keys and values from pages", (PagedAttentionOp,),
        lambda group, name, ctx: lower_paged_attention(group, name, ctx.machine, ctx.dims),
        refuses=refuses_attention, traits=frozenset({"rereads"}),
    ),
    Skeleton(
        "quantized-paged-attention", "the same, old pages in codes, which a segment of keys decodes",
        (QuantizedPagedAttentionOp,),
        lambda group, name, ctx: lower_quantized_paged_attention(group, name, ctx.machine, ctx.dims),
        refuses=refuses_attention, traits=frozenset({"rereads"}),
    ),
    Skeleton(
        "linear-attention", "one request's tokens and one head, the state on chip", (ContinuedLinearAttentionOp,),
        lambda group, name, ctx: lower_linear_attention(group, name),
        traits=frozenset({"rereads"}),
    ),
    Skeleton(
        "row-reduction", "whole rows on chip: norms, softmax, reductions of the last axis",
        (NormOp, SoftmaxOp, ReduceOp),
        lambda group, name, ctx: lower_reduction(group, name, ctx.machine, ctx.dims),
        takes=reduces_rows, traits=frozenset({"rows", "turnable"}),
    ),
    Skeleton(
        "reduction", "a fold over other axes than the last", (SoftmaxOp, ReduceOp),
        lambda group, name, ctx: lower_reduction(group, name, ctx.machine, ctx.dims),
        traits=frozenset({"lines"}),
    ),
    Skeleton(
        "running", "sums, products, maxima and linear recurrences along an axis, in order", (CumulativeOp, ScanOp),
        lambda group, name, ctx: lower_running(group, name, ctx.machine),
        traits=frozenset({"lines"}),
    ),
    Skeleton(
        "scatter", "a copy, then one update after the other", (ScatterOp, PutAlongOp),
        lambda group, name, ctx: lower_scatter(group, name, ctx.machine),
    ),
    Skeleton(
        IN_PLACE, "updates of a state in the state's own memory", (StateUpdateOp,),
        lambda group, name, ctx: lower_state_update(group, name),
    ),
    Skeleton(
        "ordering", "whole lines of memory, sorted or selected from", (SortOp, TopkOp),
        lambda group, name, ctx: lower_ordering(group, name, ctx.machine),
    ),
    Skeleton(
        "route", "slots counted by expert, one program", (RouteOp,),
        lambda group, name, ctx: lower_route(group, name),
    ),
    Skeleton(
        "slots", "the inverse of a sorting permutation", (SlotsOp,),
        lambda group, name, ctx: lower_slots(group, name),
    ),
    Skeleton(
        "concat", "every operand copied to its place", (ConcatOp,),
        lambda group, name, ctx: lower_concat(group, name, ctx.machine),
    ),
    Skeleton(
        "constant", "stated values as memory, in @prepare", (ConstantOp,),
        lambda group, name, ctx: lower_constant(group, name, ctx.machine),
        takes=_has_values,
    ),
    # plan-layout makes its groups: no op of the graph asks for it
    Skeleton(
        "pack", "a weight into panels, in @prepare", (),
        lambda group, name, ctx: lower_pack(group, name, ctx.machine),
    ),
    # last: what it takes, the others compute on the way in and out
    Skeleton(
        "map", "every element from elements of the operands at related places",
        (
            MapOp, CastOp, RotaryOp, GatherOp, TakeAlongOp, PadOp,
            ReshapeOp, TransposeOp, SliceOp, BroadcastOp, ConstantOp, DimOp, IotaOp, PositionsOp,
        ),
        lambda group, name, ctx: lower_map(group, name, ctx.machine, ctx.dims),
        traits=frozenset({"elements", "turnable"}),
    ),
)  # fmt: skip

BY_KIND: Final[Mapping[str, Skeleton]] = {skeleton.kind: skeleton for skeleton in SKELETONS}


def skeleton_of(op: Operation) -> Skeleton | None:
    """The skeleton of the kernel that an op needs when it stands alone; None where no kernel computes it."""
    return next((s for s in SKELETONS if isinstance(op, s.anchors) and s.takes(op)), None)


def skeletons_for(name: str) -> tuple[Skeleton, ...]:
    """Those that take ops of a name ("graph.reduce"), some or all, in the order they are asked."""
    return tuple(s for s in SKELETONS if any(anchor.name == name for anchor in s.anchors))


def has(op: Operation, trait: Trait) -> bool:
    """Whether the skeleton of an op has a trait."""
    found = skeleton_of(op)
    return found is not None and trait in found.traits


def is_anchor(op: Operation) -> bool:
    """An op that a kernel is made around, and named after, rather than one that is computed on the way."""
    found = skeleton_of(op)
    return found is not None and "elements" not in found.traits


def kinds(trait: Trait) -> tuple[str, ...]:
    """The kinds of skeletons that have a trait, in the order of the table."""
    return tuple(s.kind for s in SKELETONS if trait in s.traits)


def lower_group(group: GroupOp, name: str, ctx: Context) -> Lowered:
    """The kernels of one group, by its skeleton. LoweringError names the op that no skeleton takes, or why not."""
    ops = [op for op in group.block.ops if not isinstance(op, YieldOp)]
    found = BY_KIND.get(group.kind.data)
    if found is None:
        unknown = next((op for op in ops if skeleton_of(op) is None), None)
        if unknown is None:
            raise unsupported(
                group, f"no kernel is of kind {group.kind.data!r}", step=f"the kinds are {', '.join(BY_KIND)}"
            )
        made = ", ".join(sorted({anchor.name for s in SKELETONS for anchor in s.anchors}))
        raise unsupported(unknown, "no kernel is made for it yet", step=f"kernels are made of {made}")
    anchors = [op for op in ops if isinstance(op, found.anchors)]
    # a copy of an argument is a group of elements without an op
    if found.anchors and not anchors and "elements" not in found.traits:
        wanted = " or ".join(anchor.name for anchor in found.anchors)
        raise unsupported(group, f"a group of kind {found.kind} is made around {wanted}, and this one has none")
    for anchor in anchors:
        refusal = found.refuses(anchor)
        if refusal is not None:
            raise unsupported(anchor, refusal.reason, refusal.step)
    return found.emit(group, name, ctx)
