"""fuse: a partition of every function into groups, each of which becomes one kernel.

First views move out of the way. Then kernels grow around anchors: matmuls take epilogues; row reductions take what runs
on the same rows after and before them; reductions over other axes take what feeds them alone; elementwise ops join what
they feed. Whatever stays apart is recorded with the reason. Fusing never moves more words: what several kernels read is
stored once, and a small operand is computed again for each repeat only where that is cheaper than loading it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.fuse.build import Builder, label
from tilewright.passes.fuse.grow import Growth
from tilewright.passes.fuse.plan import OUTSIDE, Cluster, Plan
from tilewright.passes.fuse.views import VIEWS
from tilewright.passes.lower_to_tile.skeletons import has
from tilewright.passes.rewriting import erase_dead, run_rules


@dataclass(frozen=True)
class Fuse(Pass):
    """Groups of ops that one kernel computes.

    epilogues, prologues: whether anchors take ops after and before them. pairs: whether two products of one left-hand
    side that meet in a pointwise op share a kernel. max_ops: the most ops of one kernel.
    """

    name: ClassVar[str] = "fuse"
    needed: ClassVar[bool] = True
    least: ClassVar[Mapping[str, int]] = {"max_ops": 1}
    epilogues: bool = True
    prologues: bool = True
    pairs: bool = True
    max_ops: int = 32

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in functions(module).values():
            self._fuse(function, ctx)

    def _fuse(self, function: FuncOp, ctx: Context) -> None:
        run_rules(function.block, VIEWS, ctx)
        erase_dead(function.block)
        plan = Plan(function.block)
        growth = Growth(plan, ctx, self.max_ops)
        if self.epilogues:
            if self.pairs:
                growth.pairs()
            growth.epilogues()
        growth.rows(epilogues=self.epilogues, prologues=self.prologues)
        growth.reductions(epilogues=self.epilogues, prologues=self.prologues)
        growth.elements()
        for cluster in plan.clusters:
            if not cluster.single and not ctx.apply(cluster.ops, described(cluster), saves=saved(plan, cluster)):
                plan.dissolve(cluster)
        _record_refusals(plan, growth, ctx)
        Builder(plan, copy_returned=function.kind.data == "main").run()


def described(cluster: Cluster) -> str:
    """What the report says of a kernel."""
    return f"{cluster.kind}: {label(cluster.ops)}"


def saved(plan: Plan, cluster: Cluster) -> Expr:
    """Bytes that are neither written nor read again because they stay inside the kernel."""
    total = Expr.of(0)
    for op in cluster.ops:
        for result in op.results:
            inner = sum(plan.of.get(use.operation) is cluster for use in result.uses)
            stored = plan.needed_outside(result, cluster)
            total = total + tensor(result).bytes * (inner + (0 if stored else 1))
    return total


def _record_refusals(plan: Plan, growth: Growth, ctx: Context) -> None:
    """Every value that one kernel writes for another, with the reason why they are two."""
    for consumer, cluster in plan.of.items():
        if cluster.kind == OUTSIDE:
            continue
        for producer in dict.fromkeys(plan.source(v) for v in consumer.operands):
            if producer is None:
                continue
            other = plan.of[producer]
            if other is cluster or other.kind == OUTSIDE:
                continue
            reason = growth.refusals.get((producer, consumer)) or why_apart(producer, other, consumer)
            ctx.refuse(consumer, f"not joined with {producer.name}: {reason}")


def why_apart(producer: Operation, other: Cluster, consumer: Operation) -> str:
    """Why two ops are in two kernels though neither was asked to join the other."""
    if has(consumer, "rereads"):
        return f"{consumer.name} reads its operands many times: they are computed once, before it"
    if not any(v.owner is producer for v in consumer.operands):
        return "a view of the result lies between them"
    if len({use.operation for r in producer.results for use in r.uses}) > 1:
        return "several kernels read the result: it is stored once"
    return f"its operand is stored by a {other.kind} kernel"
