"""How kernels grow around their anchors: matmuls take epilogues, reductions epilogues and prologues, the rest joins up.

The order matters. A matmul comes first, because its result is in registers and an epilogue there is free. Rows come
next: what is left before and after a reduction runs while the row is on chip. Plain elementwise ops join last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from xdsl.ir import Operation, SSAValue

from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp, ReduceOp
from tilewright.ir.passing import Context
from tilewright.passes.fuse import legality
from tilewright.passes.fuse.plan import OUTSIDE, Cluster, Plan
from tilewright.passes.lower_to_tile.skeleton import Trait
from tilewright.passes.lower_to_tile.skeletons import has, kinds


@dataclass
class Growth:
    """Joins clusters of a plan, and remembers why neighbours stayed apart.

    Whoever takes an op gives it a kind of its own, so clusters of elements are single ops until `elements`.
    max_ops: ops of one kernel. refusals: by (producer, consumer) node, the last reason found.
    """

    plan: Plan
    ctx: Context
    max_ops: int
    refusals: dict[tuple[Operation, Operation], str] = field(default_factory=dict)

    # --- matmul -----------------------------------------------------------------------------------------------------

    def epilogues(self) -> None:
        """Products and convolutions take the pointwise ops that their result alone flows into, while the tile addresses
        the rest.
        """
        for cluster in self._that("epilogue"):
            cluster.dims = tensor(cluster.ops[0].results[0]).dims
            while (op := self._sole_reader(cluster)) is not None:
                other = self.plan.of[op]
                if not other.has("elements"):
                    break
                inside = set(results_of(cluster))
                reason = legality.why_no_epilogue(op, inside, cluster.dims)
                if not self._try(cluster, other, cluster.ops[-1], op, reason):
                    break

    def pairs(self) -> None:
        """Two products of one left-hand side that meet in a pointwise op become one kernel with two accumulators."""
        for cluster in self._that("pair"):
            for other in self._of_kind(cluster.kind):
                if cluster.single and other.single and legality.is_pair(cluster.ops[0], other.ops[0]):
                    self._pair(cluster, other)

    def _pair(self, cluster: Cluster, other: Cluster) -> None:
        """Joins two products and the pointwise ops up to the one where they meet."""
        left, right = self._chain(cluster), self._chain(other)
        meeting = next((op for op in left if op in right), None)
        if meeting is None:
            return
        dims = tensor(cluster.ops[0].results[0]).dims
        joining = [*left[: left.index(meeting)], *right[: right.index(meeting)], meeting]
        inside: set[SSAValue] = {r for op in (cluster.ops[0], other.ops[0], *joining) for r in op.results}
        reasons = [reason for op in joining if (reason := legality.why_no_epilogue(op, inside, dims)) is not None]
        if not self._try(cluster, other, cluster.ops[0], other.ops[0], next(iter(reasons), None)):
            return
        for op in sorted(joining, key=self.plan.position.__getitem__):
            self._try(cluster, self.plan.of[op], cluster.ops[-1], op, None)

    def _chain(self, cluster: Cluster) -> list[Operation]:
        """The pointwise ops that a product flows into, each the only reader of the one before."""
        found: list[Operation] = []
        current = self._sole_reader(cluster)
        while current is not None and legality.is_pointwise(current) and len(found) < self.max_ops:
            found.append(current)
            current = self._sole_reader(self.plan.of[current])
        return found

    def _sole_reader(self, cluster: Cluster) -> Operation | None:
        """The one node that reads the cluster's last result, directly; None where there are others or views."""
        result = cluster.ops[-1].results[0]
        readers = {use.operation for use in result.uses}
        reader = next(iter(readers)) if len(readers) == 1 else None
        return reader if self.plan.is_node(reader) else None

    # --- rows -------------------------------------------------------------------------------------------------------

    def rows(self, *, epilogues: bool, prologues: bool) -> None:
        """Every reduction over the last axis takes what runs on the same rows after it and before it."""
        for cluster in self._that("rows"):
            if cluster not in self.plan.of.values():
                continue  # an earlier one on the same rows has taken it
            cluster.dims = legality.row_dims(cluster.ops[0])
            grown = True
            while grown:
                grown = (epilogues and self._row_epilogue(cluster)) or (prologues and self._prologue(cluster))

    def _row_epilogue(self, cluster: Cluster) -> bool:
        for op in list(cluster.ops):
            for result in op.results:
                for reader in [use.operation for use in result.uses]:
                    other = self.plan.of.get(reader)
                    if other is None or other is cluster or not (other.has("elements") or other.has("rows")):
                        continue
                    if not other.single:
                        self.refusals[op, reader] = "its reader runs on other rows with ops of its own"
                        continue
                    if self._try(cluster, other, op, reader, self._why_no_row(reader, cluster)):
                        return True
        return False

    def _why_no_row(self, op: Operation, cluster: Cluster) -> str | None:
        if has(op, "rows"):
            same = legality.row_dims(op) == cluster.dims
            return None if same else f"it reduces rows of another shape, {tensor(op.operands[0])}"
        if not legality.is_pointwise(op) and not legality.turns_whole_rows(op, cluster.dims):
            return f"{op.name} is not pointwise"
        shapes = [legality.reduced_dims(o) for o in cluster.ops if isinstance(o, ReduceOp)]
        if legality.is_row_shape(op.results[0], cluster.dims) or tensor(op.results[0]).dims in shapes:
            return None
        return f"its result {tensor(op.results[0])} has another shape than the rows"

    # --- other axes -------------------------------------------------------------------------------------------------

    def reductions(self, *, epilogues: bool, prologues: bool) -> None:
        """A reduction over other axes, or a running op, takes what feeds it alone, and what runs on its result."""
        for cluster in self._that("lines"):
            anchor = cluster.ops[0]
            if not isinstance(anchor, (ReduceOp, CumulativeOp, ScanOp)):
                continue
            result = tensor(anchor.out).dims
            cluster.dims = legality.row_dims(anchor) if isinstance(anchor, ReduceOp) else result
            while prologues and self._prologue(cluster):
                pass
            cluster.dims = result
            while epilogues and (op := self._sole_reader(cluster)) is not None:
                other = self.plan.of[op]
                if not other.has("elements"):
                    break
                reason = None if legality.is_pointwise(op) else f"{op.name} is not pointwise"
                if not legality.is_same_shape(op.results[0], cluster.dims):
                    reason = f"its result {tensor(op.results[0])} has another shape than the reduction's"
                if not self._try(cluster, other, cluster.ops[-1], op, reason):
                    break

    def _prologue(self, cluster: Cluster) -> bool:
        """Takes one op that feeds the cluster, if there is one that may run inside."""
        for op in list(cluster.ops):
            for value in op.operands:
                producer = value.owner
                if not isinstance(producer, Operation):
                    continue
                other = self.plan.of.get(producer)
                if other is None or not other.has("elements"):
                    continue
                if self._try(other, cluster, producer, op, self._why_no_prologue(producer, cluster), into=cluster):
                    return True
        return False

    def _why_no_prologue(self, op: Operation, cluster: Cluster) -> str | None:
        if not legality.is_prologue(op):
            return f"{op.name} is not computed on the way into a reduction"
        alone = legality.only_read_inside(self.plan, op, cluster)
        if legality.is_same_shape(op.results[0], cluster.dims):
            # a row kernel can store the row it has; a reduction over other axes has no place to store elements
            return None if alone or cluster.has("rows") else "other kernels read it, too"
        if not alone:
            return "other kernels read it, too, and it repeats along an axis here"
        if not legality.recomputes_cheaply(op, cluster.dims, self.ctx):
            return "it repeats along an axis here, and computing it again moves more words or work than loading it"
        return None

    # --- elements ---------------------------------------------------------------------------------------------------

    def elements(self) -> None:
        """Elementwise ops of one shape that feed each other join; smaller operands do where that is cheap."""
        for op in sorted(self.plan.of, key=self.plan.position.__getitem__, reverse=True):
            for reader in sorted(set(self._direct(op)), key=self.plan.position.__getitem__):
                first, second = self.plan.of[op], self.plan.of[reader]
                if first is second or not (first.has("elements") and second.has("elements")):
                    continue
                self._try(first, second, op, reader, self._why_no_map(op, second), into=second)

    def _why_no_map(self, op: Operation, cluster: Cluster) -> str | None:
        dims = tensor(cluster.ops[-1].results[0]).dims
        if legality.is_same_shape(op.results[0], dims):
            return None
        if not legality.only_read_inside(self.plan, op, cluster):
            return "its shape differs, and other kernels read it, too"
        if not legality.recomputes_cheaply(op, dims, self.ctx):
            return "it repeats along an axis here, and computing it again moves more words or work than loading it"
        return None

    def _direct(self, op: Operation) -> list[Operation]:
        return [use.operation for r in op.results for use in r.uses if self.plan.is_node(use.operation)]

    # --- joining ----------------------------------------------------------------------------------------------------

    def _that(self, trait: Trait) -> list[Cluster]:
        """The clusters whose skeleton has a trait, kind after kind."""
        return [cluster for kind in kinds(trait) for cluster in self._of_kind(kind)]

    def _of_kind(self, kind: str) -> list[Cluster]:
        found = {id(c): c for op in self.plan.position if (c := self.plan.of.get(op)) is not None and c.kind == kind}
        return list(found.values())

    def _try(
        self,
        first: Cluster,
        second: Cluster,
        producer: Operation,
        consumer: Operation,
        reason: str | None,
        into: Cluster | None = None,
    ) -> bool:
        """Joins two clusters unless there is a reason not to, which is remembered."""
        both = [*first.ops, *second.ops]
        checks: list[tuple[Callable[[], bool], str]] = [
            (lambda: OUTSIDE not in (first.kind, second.kind), "no kernel computes it"),
            (lambda: len(both) <= self.max_ops, f"a kernel takes {self.max_ops} ops"),
            (lambda: legality.views_stay_outside(self.plan, both), "it also reads a view of the other's result"),
            (lambda: legality.buffers_come_from_outside(self.plan, both), "a look-up needs its table in memory"),
            (lambda: self.plan.can_join(first, second), "another kernel has to run between the two"),
        ]
        for holds, said in checks:
            if reason is None and not holds():
                reason = said
        if reason is not None:
            self.refusals[producer, consumer] = reason
            return False
        self.refusals.pop((producer, consumer), None)
        target = first if into is None else into
        self.plan.join(target, second if target is first else first)
        return True


def results_of(cluster: Cluster) -> list[SSAValue]:
    """Everything a cluster computes, in order."""
    return [r for op in cluster.ops for r in op.results]
