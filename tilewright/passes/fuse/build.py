"""Writes a plan down: a graph.group each cluster, views and leaves cloned where they are read, reshapes in between."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from xdsl.ir import Block, Operation, Region, SSAValue

from tilewright.ir.graph.attention import AttentionOp, RotaryOp
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp, StateUpdateOp, TakeAlongOp
from tilewright.ir.graph.polynomial_attention import PolynomialAttentionOp
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp, NormOp, ReduceOp, SoftmaxOp
from tilewright.ir.graph.shape import ReshapeOp, TransposeOp
from tilewright.ir.graph.structure import CallOp, ExternOp, GroupOp, ReturnOp, YieldOp
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp
from tilewright.ir.operation import TwOperation
from tilewright.ir.tile.structure import LaunchOp
from tilewright.passes.fuse.plan import OUTSIDE, Cluster, Plan, is_leaf, is_view, root
from tilewright.passes.lower_to_tile.skeletons import is_anchor
from tilewright.passes.rewriting import only_adds_units

ELEMENTWISE = (MapOp, CastOp, RotaryOp, NormOp, SoftmaxOp, ReduceOp, CumulativeOp, ScanOp)
LOOKUPS = (GatherOp, TakeAlongOp)  # their second operand, the indices, is computed element by element
ATTENTIONS = (AttentionOp, PolynomialAttentionOp)
# operands that attention computes per block of logits instead of loading tiles of q, k and v
COMPUTED_BY_ATTENTION = ("bias", "valid", "q_positions", "k_positions", "sinks")


def takes_views(op: Operation, operand: int | None = None) -> bool:
    """The op's kernel reads its operands (or this one) through transposes, slices and broadcasts."""
    if isinstance(op, AttentionOp) and operand is not None and op.operands[operand] is op.segments:
        return False  # what says which keys are met reads them as they lie in memory
    return isinstance(op, (*ELEMENTWISE, MatmulOp, *ATTENTIONS)) or (isinstance(op, LOOKUPS) and operand == 1)


def takes_leaf(op: Operation, operand: int) -> bool:
    """The op's kernel computes this operand from coordinates."""
    if isinstance(op, AttentionOp):
        return any(getattr(op, name) is op.operands[operand] for name in COMPUTED_BY_ATTENTION) and operand > 2
    return isinstance(op, ELEMENTWISE) or is_view(op) or (isinstance(op, LOOKUPS) and operand == 1)


def addressing(op: Operation, operand: int) -> Hashable:
    """What decides how a kernel walks an operand: equal for those that one argument of the kernel can serve."""
    if isinstance(op, MatmulOp):
        return "rows" if operand == 0 else (op, operand)
    if isinstance(op, StateUpdateOp):
        # what changes in place is an argument of its own, whatever else reads the value
        return op, operand
    return (op, operand) if isinstance(op, (*ATTENTIONS, ConvolutionOp, PoolOp, *LOOKUPS)) else None


def is_fresh(value: SSAValue) -> bool:
    """The program itself made these bytes: a kernel, a called function or an extern did."""
    return isinstance(value.owner, (GroupOp, CallOp, ExternOp, LaunchOp))


@dataclass
class Body:
    """A group under construction: its arguments and ops, and what old values are inside."""

    outer: list[SSAValue] = field(default_factory=list)
    block: Block = field(default_factory=Block)
    inner: dict[SSAValue, SSAValue] = field(default_factory=dict)
    arguments: dict[Hashable, SSAValue] = field(default_factory=dict)

    def argument(self, outer: SSAValue) -> SSAValue:
        """A new argument for a value of the function."""
        self.outer.append(outer)
        return self.block.insert_arg(outer.type, len(self.block.args))

    def clone(self, op: Operation, operands: Sequence[SSAValue]) -> Operation:
        """A copy of an op at the end of the body, reading these values."""
        copy = op.clone()
        copy.operands = list(operands)
        self.block.add_op(copy)
        return copy

    def finish(self, kind: str, label: str, results: Sequence[SSAValue], like: Operation) -> GroupOp:
        """The group, resulting in these inner values."""
        self.block.add_op(YieldOp.make(list(results)))
        types = [[value.type for value in results]]
        return GroupOp.make(
            self.outer, result_types=types, regions=[Region(self.block)], kind=kind, name=label, like=like
        )


class Builder:
    """Rebuilds a block as groups, in an order that keeps every value before its readers."""

    def __init__(self, plan: Plan, *, copy_returned: bool) -> None:
        self.plan = plan
        self.copy_returned = copy_returned
        self.made: list[Operation] = []
        self.known: dict[SSAValue, SSAValue] = {arg: arg for arg in plan.block.args}
        self.emitted: set[Cluster] = set()
        self.stored = {} if plan.views_apart else dict(self._stored_transposed())

    def run(self) -> None:
        """Replaces the ops of the block."""
        old = list(self.plan.block.ops)
        for op in old:
            cluster = self.plan.of.get(op)
            if cluster is not None and op is cluster.ops[-1]:
                self._emit(cluster)
        for op in old:
            self.plan.block.detach_op(op)
        self.plan.block.add_ops(self.made)
        kept = set(self.made)
        for op in reversed([op for op in old if op not in kept]):
            op.erase()

    # --- order ------------------------------------------------------------------------------------------------------

    def _emit(self, cluster: Cluster) -> None:
        if cluster in self.emitted:
            return
        self.emitted.add(cluster)
        for earlier in sorted(cluster.before, key=lambda c: self.plan.position[c.ops[-1]]):
            self._emit(earlier)
        if cluster.kind == OUTSIDE:
            self._outside(cluster.ops[0])
        else:
            self._group(cluster)

    def _outside(self, op: Operation) -> None:
        values = [self._dense(v) for v in op.operands]
        if isinstance(op, ReturnOp) and self.copy_returned:
            values = self._fresh(op, values)
        op.operands = values
        self.made.append(op)
        for result in op.results:
            self.known[result] = result

    def _copy(self, value: SSAValue, like: Operation) -> SSAValue:
        """The same elements in memory of their own."""
        body = Body()
        group = body.finish("map", "copy", [body.argument(value)], like)
        self.made.append(group)
        return group.outs[0]

    def _fresh(self, op: ReturnOp, values: Sequence[SSAValue]) -> list[SSAValue]:
        """Results that a caller may own: no input, weight or state itself, and no result twice."""
        taken: set[SSAValue] = set()
        fresh: list[SSAValue] = []
        for value in values:
            storage = value
            while isinstance(storage.owner, ReshapeOp):
                storage = storage.owner.x
            if storage in taken or not is_fresh(storage):
                storage = value = self._copy(value, op)
            taken.add(storage)
            fresh.append(value)
        return fresh

    # --- values of the function -------------------------------------------------------------------------------------

    def _dense(self, value: SSAValue) -> SSAValue:
        """The value in memory, row-major: an alias of bytes that exist, or a kernel that writes them."""
        if value in self.known:
            return self.known[value]
        owner = value.owner
        if self.plan.is_node(owner):
            self._emit(self.plan.of[owner])
        elif isinstance(owner, ReshapeOp) and not is_leaf(root(value).owner):
            alias = ReshapeOp.make(self._dense(owner.x), dims=owner.dims, like=owner)
            self.made.append(alias)
            self.known[value] = alias.out
        elif isinstance(owner, Operation):
            body = Body()
            inner = self._viewed(body, value, leaf=True, key=value)
            group = body.finish("map", label([owner]), [inner], owner)
            self.made.append(group)
            self.known[value] = group.outs[0]
        return self.known[value]

    def _viewed(self, body: Body, value: SSAValue, *, leaf: bool, key: Hashable) -> SSAValue:
        """The value inside a group: an argument seen through clones of its views, or a leaf computed there."""
        if leaf and is_leaf(root(value).owner):
            return self._computed(body, value)
        if (value, key) in body.arguments:
            return body.arguments[value, key]
        chain: list[Operation] = []
        base = value
        while base not in self.known and not self.plan.is_node(base.owner) and _readable_in_place(base.owner):
            chain.append(base.owner)  # type: ignore[arg-type]
            base = base.owner.operands[0]  # type: ignore[union-attr]
        while chain and isinstance(chain[-1], ReshapeOp):
            base = chain.pop().results[0]
        inner = body.argument(self._dense(base))
        for view in reversed(chain):
            inner = body.clone(view, [inner]).results[0]
        body.arguments[value, key] = inner
        return inner

    def _computed(self, body: Body, value: SSAValue) -> SSAValue:
        """A copy of a leaf and its views of its own: two reads of one iota may run along different axes."""
        owner = value.owner
        if not isinstance(owner, Operation):
            return value
        return body.clone(owner, [self._computed(body, v) for v in owner.operands]).results[0]

    # --- groups -----------------------------------------------------------------------------------------------------

    def _group(self, cluster: Cluster) -> None:
        body = Body()
        dropped: set[SSAValue] = set()
        for op in cluster.ops:
            after = any(v in dropped for v in op.operands)
            operands = [self._operand(body, op, i, v, after=after) for i, v in enumerate(op.operands)]
            copy = body.clone(op, operands)
            body.inner.update(zip(op.results, copy.results, strict=True))
            if after or (isinstance(op, ReduceOp) and not op.keepdims.data):
                dropped.update(op.results)
        outputs: dict[SSAValue, SSAValue] = {}
        for op in cluster.ops:
            for result in op.results:
                transpose = self.stored.get(result)
                if transpose is not None:
                    outputs[transpose.out] = body.clone(transpose, [body.inner[result]]).results[0]
                elif self.plan.needed_outside(result, cluster):
                    outputs[result] = body.inner[result]
        anchor = next((op for op in cluster.ops if is_anchor(op)), cluster.ops[-1])
        group = body.finish(cluster.kind, label(cluster.ops), list(outputs.values()), anchor)
        self.made.append(group)
        self.known.update(zip(outputs, group.outs, strict=True))

    def _operand(self, body: Body, op: Operation, index: int, value: SSAValue, *, after: bool) -> SSAValue:
        if value in body.inner:
            return body.inner[value]
        key = (addressing(op, index), after)
        if not takes_views(op, index) and not is_view(op):
            self._dense(value)
        return self._viewed(body, value, leaf=takes_leaf(op, index), key=key)

    # --- stores -----------------------------------------------------------------------------------------------------

    def _stored_transposed(self) -> list[tuple[SSAValue, TransposeOp]]:
        """Results that are only read transposed, and have to be in memory that way: the kernel stores them so."""
        found: list[tuple[SSAValue, TransposeOp]] = []
        for cluster in self.plan.clusters:
            results = [r for op in cluster.ops for r in op.results if self.plan.needed_outside(r, cluster)]
            if len(results) != 1 or not (cluster.has("turned") or cluster.has("turnable")):
                continue
            users = {use.operation for use in results[0].uses}
            user = next(iter(users)) if len(users) == 1 else None
            if isinstance(user, TransposeOp) and (cluster.has("turned") or self._read_dense(user.out)):
                found.append((results[0], user))
        return found

    def _read_dense(self, value: SSAValue) -> bool:
        """Some reader cannot look through a view."""
        return any(
            isinstance(use.operation, ReshapeOp)
            or (self.plan.is_node(use.operation) and not takes_views(use.operation, use.index))
            for use in value.uses
        )


def _readable_in_place(op: object) -> bool:
    """A view that an affine map of coordinates describes."""
    return is_view(op) and (not isinstance(op, ReshapeOp) or only_adds_units(op))


def label(ops: Sequence[Operation]) -> str:
    """A readable name: the last named part of the module path, and what is computed."""
    words = [op.fn.data if isinstance(op, (MapOp, ReduceOp)) else op.name.partition(".")[2] for op in ops]
    shown = "_".join(words[:4]) + ("_etc" if len(words) > 4 else "")
    main = next((op for op in ops if is_anchor(op)), ops[-1])
    parts = [p for p in (main.path or "").split(".") if p and not p.isdigit()] if isinstance(main, TwOperation) else []
    return f"{parts[-1]}_{shown}" if parts else shown
