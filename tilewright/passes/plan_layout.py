"""plan-layout: weights that a matmul multiplies by are laid out in panels, in @prepare, once.

A panel is what a register tile streams: [panels, K, columns], so that consecutive k are consecutive in memory; where
the machine has a matrix unit, [panels, K/2, columns, 2] with the unit's columns, so that what fills one of its
registers is dense and the next step of k follows. Padding columns and rows are zero. The group reads the panels
back to [K, N] by transpose, reshape and slice, which the matmul skeleton turns into the panel's own addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, BlockArgument, Region, SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.routing import GroupedMatmulOp
from tilewright.ir.graph.shape import PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import FuncOp, GroupOp, PackedOp, WeightOp, YieldOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.passing import Context, Pass
from tilewright.passes.lower_to_tile.cache_tiles import window_block
from tilewright.passes.lower_to_tile.matrix_tiles import steps_of, unit_for
from tilewright.passes.lower_to_tile.position_tiles import position_tile
from tilewright.passes.lower_to_tile.skeletons import kinds
from tilewright.passes.prepare import Prepare
from tilewright.passes.rewriting import erase_dead

Product: TypeAlias = MatmulOp | GroupedMatmulOp


@dataclass(frozen=True)
class PlanLayout(Pass):
    """Matmul weights become packed panels; `panel` overrides the machine's panel width."""

    name: ClassVar[str] = "plan-layout"
    needed: ClassVar[bool] = True
    least: ClassVar[Mapping[str, int]] = {"panel": 0}
    requires: ClassVar[tuple[str, ...]] = ("fuse|materialise",)
    panel: int = 0

    def run(self, module: ModuleOp, ctx: Context) -> None:
        prepare = Prepare(module)
        packed: dict[tuple[str, str], str] = {}
        columns = self.panel or ctx.machine.rules.panel
        for function in [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"]:
            for group in [g for g in function.block.ops if isinstance(g, GroupOp)]:
                for op in list(group.block.ops):
                    if isinstance(op, (MatmulOp, GroupedMatmulOp)) and group.kind.data in kinds("panels"):
                        self._pack(group, op, prepare, packed, columns, ctx)
                    elif isinstance(op, ConvolutionOp) and op.groups.data == 1:
                        self._pack_filters(group, op, prepare, packed, ctx)
            erase_dead(function.block)
        # what was only packed on
        prepare.drop_unread()

    def _pack(
        self,
        group: GroupOp,
        op: Product,
        prepare: Prepare,
        packed: dict[tuple[str, str], str],
        columns: int,
        ctx: Context,
    ) -> None:
        weight = _weight_operand(group, op.b)
        if weight is None:
            ctx.refuse(op, "the right-hand side is not a weight: it is read where it lies")
            return
        if not is_packable(op):
            ctx.refuse(op, f"the weight {tensor(op.b)} is not of fixed size, or not a matrix (an expert)")
            return
        unit = unit_for(ctx.machine, op)
        depth = steps_of(op.sizes()[-1].constant or 0, unit, ctx.machine.rules)[1] if unit is not None else None
        if not ctx.apply([op], f"panels of {columns} columns", saves=0):
            return
        argument, source = weight
        name = source.label.data
        key = (f"{type(source).__name__}:{name}", f"{columns}x{depth}t{op.transpose_b.data}")
        if key not in packed:
            narrow = columns if unit is None else unit.columns
            panels = _panels(prepare, prepare.clone(source.out), op.transpose_b.data, columns, narrow, depth)
            packed[key] = prepare.add_result(panels, f"{name}:panels{columns}" + ("" if depth is None else "x2"))
        n, k = tensor(op.out).dims[-1], op.sizes()[-1]
        op.operands[1] = _read_back(group, argument, source, op, packed[key], prepare, (k, n))
        op.properties["transpose_b"] = type(op.transpose_b)(False)

    def _pack_filters(
        self,
        group: GroupOp,
        op: ConvolutionOp,
        prepare: Prepare,
        packed: dict[tuple[str, str], str],
        ctx: Context,
    ) -> None:
        """Filters [window..., C, F] are a matrix of taps and channels by filters; panels are as wide as the register
        tile that the image's rows call for.
        """
        weight = _weight_operand(group, op.w)
        filters, depth = op.filters, product((*op.windows, op.depth))
        if weight is None:
            ctx.refuse(op, "the filters are not a weight: they are read where they lie")
            return
        count, most = filters.constant, ctx.machine.rules.panel
        if not count or not depth.constant:
            ctx.refuse(op, f"the filters {tensor(op.w)} are not of fixed size")
            return
        rows = tensor(op.out).dims[-2].constant
        narrow = min(most, position_tile(ctx.machine, rows, count)[1] * ctx.machine.rules.lanes)
        columns = self.panel or (most if window_block(ctx.machine, op) is not None else narrow)
        if not ctx.apply([op], f"panels of {columns} filters", saves=0):
            return
        argument, source = weight
        name = source.label.data
        key = (f"{type(source).__name__}:{name}", f"filters{columns}")
        if key not in packed:
            matrix = ReshapeOp.make(prepare.clone(source.out), dims=[depth, filters], like=op)
            prepare.append(matrix)
            panels = _panels(prepare, matrix.out, False, columns, columns, None)
            packed[key] = prepare.add_result(panels, f"{name}:panels{columns}")
        dims = tensor(op.w).dims
        cut = _read_back(group, argument, source, op, packed[key], prepare, (depth, filters))
        whole = ReshapeOp.make(cut, dims=dims, like=op)
        group.block.insert_op_before(whole, op)
        op.operands[1] = whole.out


def _read_back(
    group: GroupOp,
    argument: BlockArgument,
    source: WeightOp | PackedOp,
    op: Product | ConvolutionOp,
    packed: str,
    prepare: Prepare,
    shape: tuple[Expr, Expr],
) -> SSAValue:
    """Has a group take panels for its argument, and gives the matrix that they are."""
    lead = tensor(op.b).dims[:-2] if isinstance(op, GroupedMatmulOp) else ()
    result = next(v for n, v in prepare.results().items() if n == packed)
    read = PackedOp.make(name=packed, result_types=[result.type], like=source)
    block = group.parent_block()
    assert block is not None  # groups stand in a function's block
    block.insert_op_before(read, group)
    group.operands[group.block.args.index(argument)] = read.out
    argument._type = result.type
    at, dims = len(lead), tensor(result).dims
    paired = len(dims) - at == 4
    rest = (at + 1, at + 3, at, at + 2) if paired else (at + 1, at, at + 2)
    turned = TransposeOp.make(argument, permutation=(*range(at), *rest), like=op)
    rows = dims[at + 1] * (dims[at + 3] if paired else 1)
    flat = ReshapeOp.make(turned.out, dims=[*lead, rows, dims[at] * dims[at + 2]], like=op)
    cut = SliceOp.make(flat.out, starts=[0] * (at + 2), stops=[*lead, *shape], like=op)
    group.block.insert_ops_before([turned, flat, cut], op)
    return cut.out


def is_packable(op: Product) -> bool:
    """Only weights of fixed size are packed: a matrix, or one matrix an expert."""
    rank = 3 if isinstance(op, GroupedMatmulOp) else 2
    return tensor(op.b).rank == rank and all(d.is_static for d in tensor(op.b).dims)


def _weight_operand(group: GroupOp, argument: SSAValue) -> tuple[BlockArgument, WeightOp | PackedOp] | None:
    """The group argument that is the op's operand and nothing else, and the weight it reads."""
    if not isinstance(argument, BlockArgument) or len(list(argument.uses)) != 1:
        return None
    source = group.args[argument.index].owner
    return (argument, source) if isinstance(source, (WeightOp, PackedOp)) else None


def _panels(
    prepare: Prepare, weight: SSAValue, transposed: bool, whole: int, columns: int, depth: int | None
) -> SSAValue:
    """Appends the group that lays a weight out in panels of `columns` to @prepare: one kernel of kind "pack".

    whole: what the columns of all panels are a multiple of. depth: K as it is packed where pairs of k lie side by side.
    """
    block = Block(arg_types=[weight.type])

    def add(op: GraphOp) -> SSAValue:
        block.add_op(op)
        return op.results[0]

    value: SSAValue = block.args[0]
    at = tensor(weight).rank - 2
    lead = range(at)
    if transposed:
        value = add(TransposeOp.make(value, permutation=(*lead, at + 1, at)))
    *outer, k, n = tensor(value).dims
    missing, below = (-n) % whole, Expr.of(0) if depth is None else depth - k
    if (below, missing) != (Expr.of(0), Expr.of(0)):
        value = add(PadOp.make(value, low=[0] * (at + 2), high=[*[0] * at, below, missing]))
        n, k = n + missing, k + below
    if depth is None:
        split = add(ReshapeOp.make(value, dims=[*outer, k, n // columns, columns]))
        value = add(TransposeOp.make(split, permutation=(*lead, at + 1, at, at + 2)))
    else:
        split = add(ReshapeOp.make(value, dims=[*outer, k // 2, 2, n // columns, columns]))
        value = add(TransposeOp.make(split, permutation=(*lead, at + 2, at, at + 3, at + 1)))
    block.add_op(YieldOp.make([value]))
    group = GroupOp.make([weight], result_types=[[value.type]], regions=[Region(block)], kind="pack", name="pack")
    prepare.append(group)
    return group.outs[0]
