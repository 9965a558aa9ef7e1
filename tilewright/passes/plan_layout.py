"""plan-layout: weights that a matmul multiplies by are laid out in panels, in @prepare, once.

A panel is what a register tile streams: [panels, K, columns], so that consecutive k are consecutive in memory; where
the machine multiplies pairs of bf16, [panels, K/2, columns, 2]. Padding columns are zero. The group reads the panels
back to [K, N] by transpose, reshape and slice, which the matmul skeleton turns into the panel's own addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, BlockArgument, Region, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16
from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.shape import PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import FuncOp, GroupOp, PackedOp, WeightOp, YieldOp
from tilewright.ir.machine import Machine
from tilewright.ir.passing import Context, Pass
from tilewright.passes.prepare import Prepare
from tilewright.passes.rewriting import erase_dead


@dataclass(frozen=True)
class PlanLayout(Pass):
    """Matmul weights become packed panels; `panel` overrides the machine's panel width."""

    name: ClassVar[str] = "plan-layout"
    least: ClassVar[Mapping[str, int]] = {"panel": 0}
    requires: ClassVar[tuple[str, ...]] = ("fuse|materialise",)
    panel: int = 0

    def run(self, module: ModuleOp, ctx: Context) -> None:
        prepare = Prepare(module)
        packed: dict[tuple[str, str], str] = {}
        columns = self.panel or ctx.machine.rules.panel
        for function in [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"]:
            for group in [g for g in function.block.ops if isinstance(g, GroupOp) and g.kind.data == "matmul"]:
                for op in [o for o in group.block.ops if isinstance(o, MatmulOp)]:
                    self._pack(group, op, prepare, packed, columns, ctx)
            erase_dead(function.block)

    def _pack(
        self,
        group: GroupOp,
        op: MatmulOp,
        prepare: Prepare,
        packed: dict[tuple[str, str], str],
        columns: int,
        ctx: Context,
    ) -> None:
        weight = _weight_operand(group, op)
        if weight is None:
            ctx.refuse(op, "the right-hand side is not a weight: it is read where it lies")
            return
        if not is_matrix(op.b):
            ctx.refuse(op, f"the weight {tensor(op.b)} is not a matrix of fixed size")
            return
        pairs = pairs_of(ctx.machine, op)
        if not ctx.apply([op], f"panels of {columns} columns", saves=0):
            return
        argument, source = weight
        name = source.label.data
        key = (f"{type(source).__name__}:{name}", f"{columns}x{pairs}t{op.transpose_b.data}")
        if key not in packed:
            panels = _panels(prepare, prepare.clone(source.out), op.transpose_b.data, columns, pairs)
            packed[key] = prepare.add_result(panels, f"{name}:panels{columns}" + (f"x{pairs}" if pairs > 1 else ""))
        result = next(v for n, v in prepare.results().items() if n == packed[key])
        read = PackedOp.make(name=packed[key], result_types=[result.type], like=source)
        block = group.parent_block()
        assert block is not None  # groups stand in a function's block
        block.insert_op_before(read, group)
        index = group.block.args.index(argument)
        group.operands[index] = read.out
        n = tensor(op.out).dims[-1]
        k = op.sizes()[3]
        argument._type = result.type
        rank3 = pairs == 1
        turned = TransposeOp.make(argument, permutation=(1, 0, 2) if rank3 else (1, 3, 0, 2), like=op)
        rows = tensor(result).dims[1] * (1 if rank3 else tensor(result).dims[3])
        width = tensor(result).dims[0] * columns
        flat = ReshapeOp.make(turned.out, dims=[rows, width], like=op)
        cut = SliceOp.make(flat.out, starts=[0, 0], stops=[k, n], like=op)
        group.block.insert_ops_before([turned, flat, cut], op)
        op.operands[1] = cut.out
        op.properties["transpose_b"] = type(op.transpose_b)(False)


def is_matrix(value: SSAValue) -> bool:
    """Only a two-dimensional weight of fixed size is packed."""
    return tensor(value).rank == 2 and all(d.is_static for d in tensor(value).dims)


def pairs_of(machine: Machine, op: MatmulOp) -> int:
    """Elements of k that lie side by side: 2 where bf16 pairs are multiplied in one instruction and K is even."""
    k = op.sizes()[3].constant
    return (
        2 if tensor(op.b).dtype == BF16 and "dot2-bf16" in machine.rules.native and k is not None and k % 2 == 0 else 1
    )


def _weight_operand(group: GroupOp, op: MatmulOp) -> tuple[BlockArgument, WeightOp | PackedOp] | None:
    """The group argument that is the matmul's right-hand side and nothing else, and the weight it reads."""
    argument = op.b
    if not isinstance(argument, BlockArgument) or len(list(argument.uses)) != 1:
        return None
    source = group.args[argument.index].owner
    return (argument, source) if isinstance(source, (WeightOp, PackedOp)) else None


def _panels(prepare: Prepare, weight: SSAValue, transposed: bool, columns: int, pairs: int) -> SSAValue:
    """Appends the group that lays a weight out in panels to @prepare: one kernel of kind "pack"."""
    block = Block(arg_types=[weight.type])

    def add(op: GraphOp) -> SSAValue:
        block.add_op(op)
        return op.results[0]

    value: SSAValue = block.args[0]
    if transposed:
        value = add(TransposeOp.make(value, permutation=(1, 0)))
    k, n = tensor(value).dims
    missing = (-n) % columns
    if missing != Expr.of(0):
        value = add(PadOp.make(value, low=[0, 0], high=[0, missing]))
        n = n + missing
    if pairs == 1:
        split = add(ReshapeOp.make(value, dims=[k, n // columns, columns]))
        value = add(TransposeOp.make(split, permutation=(1, 0, 2)))
    else:
        split = add(ReshapeOp.make(value, dims=[k // pairs, pairs, n // columns, columns]))
        value = add(TransposeOp.make(split, permutation=(2, 0, 3, 1)))
    block.add_op(YieldOp.make([value]))
    group = GroupOp.make([weight], result_types=[[value.type]], regions=[Region(block)], kind="pack", name="pack")
    prepare.append(group)
    return group.outs[0]
