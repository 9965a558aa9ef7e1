"""The partition under construction: which ops will share a kernel, and what may not be joined without a cycle.

A *node* is an op that computes. Views (reshape, transpose, slice, broadcast) and leaves (splats, dims, iota, positions)
are not nodes: they cost nothing inside a kernel, so every kernel that needs one has its own copy. Ops with effects,
calls, weights and constants of several values stay outside kernels; they are nodes of the kind "outside".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

from xdsl.ir import Block, Operation, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.indexing import StateUpdateOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import (
    ConstantOp,
    DimOp,
    GroupOp,
    IotaOp,
    PackedOp,
    PositionsOp,
    StateReadOp,
    StateWriteOp,
    WeightOp,
)
from tilewright.passes.lower_to_tile.skeleton import Trait
from tilewright.passes.lower_to_tile.skeletons import BY_KIND, skeleton_of
from tilewright.passes.rewriting import is_pure

OUTSIDE = "outside"


def is_view(op: object) -> bool:
    """An op that only says where elements lie."""
    return isinstance(op, (ReshapeOp, TransposeOp, SliceOp, BroadcastOp))


def is_leaf(op: object) -> bool:
    """An op without operands that a kernel computes from coordinates and sizes."""
    if isinstance(op, ConstantOp):
        return op.splat is not None
    return isinstance(op, (DimOp, IotaOp, PositionsOp))


def root(value: SSAValue) -> SSAValue:
    """What a value is a view of."""
    while is_view(value.owner):
        value = value.owner.operands[0]  # type: ignore[union-attr]
    return value


def kind_of(op: Operation) -> str:
    """The kind of kernel an op needs when it stands alone; an op that no skeleton takes gives its own name."""
    found = skeleton_of(op)
    return op.name.partition(".")[2] if found is None else found.kind


def is_outside(op: Operation) -> bool:
    """Ops that no kernel computes."""
    return not is_pure(op) or bool(op.regions) or isinstance(op, (WeightOp, PackedOp))


@dataclass(eq=False)
class Cluster:
    """Nodes that become one kernel.

    kind: the skeleton. dims: the shape its rows or elements are counted in. before, after: the clusters it depends on,
    and those that depend on it.
    """

    kind: str
    ops: list[Operation]
    dims: tuple[Expr, ...] = ()
    before: set[Cluster] = field(default_factory=set)
    after: set[Cluster] = field(default_factory=set)

    @property
    def single(self) -> bool:
        return len(self.ops) == 1

    def has(self, trait: Trait) -> bool:
        """Whether its skeleton has a trait; what stands outside kernels has none."""
        found = BY_KIND.get(self.kind)
        return found is not None and trait in found.traits


class Plan:
    """The clusters of one block, at first one per node.

    views_apart: views are nodes, too, as the materialising plan wants it.
    """

    def __init__(self, block: Block, *, views_apart: bool = False) -> None:
        self.block = block
        self.views_apart = views_apart
        self.position = {op: i for i, op in enumerate(block.ops)}
        self.of: dict[Operation, Cluster] = {}
        for op in block.ops:
            if self.is_node(op):
                self.of[op] = Cluster(OUTSIDE if is_outside(op) or isinstance(op, GroupOp) else kind_of(op), [op])
        self._connect()

    def is_node(self, op: object) -> TypeGuard[Operation]:
        """True for ops that compute or stand outside."""
        if op not in self.position or is_leaf(op):
            return False
        return not is_view(op) or (self.views_apart and not self.is_alias(op))

    @staticmethod
    def is_alias(op: object) -> bool:
        """A reshape renames bytes; it never needs a kernel."""
        return isinstance(op, ReshapeOp)

    @property
    def clusters(self) -> list[Cluster]:
        """The clusters that become kernels, in the order of their last ops."""
        found = {id(c): c for c in self.of.values() if c.kind != OUTSIDE}
        return sorted(found.values(), key=lambda c: self.position[c.ops[-1]])

    def source(self, value: SSAValue) -> Operation | None:
        """The node that a value comes from, through views; None for arguments and leaves."""
        while not self.is_node(value.owner):
            if not is_view(value.owner):
                return None
            value = value.owner.operands[0]  # type: ignore[union-attr]
        return value.owner

    def readers(self, value: SSAValue) -> Iterator[Operation]:
        """The nodes that read a value, directly or through views."""
        for use in value.uses:
            user = use.operation
            if self.is_node(user):
                yield user
            else:
                for result in user.results:
                    yield from self.readers(result)

    def needed_outside(self, value: SSAValue, cluster: Cluster) -> bool:
        """Some node of another cluster reads the value."""
        return any(self.of[reader] is not cluster for reader in self.readers(value))

    def _connect(self) -> None:
        effects: list[Operation] = []
        reads: dict[str, list[Operation]] = {}
        for op, cluster in self.of.items():
            for operand in op.operands:
                source = self.source(operand)
                if source is not None:
                    self._edge(self.of[source], cluster)
                    if isinstance(source, StateReadOp):
                        reads.setdefault(source.label.data, []).append(op)
            if is_pure(op):
                continue
            if effects:
                self._edge(self.of[effects[-1]], cluster)
            effects.append(op)
            if isinstance(op, StateWriteOp):
                # whoever reads the old value runs before it is replaced
                for reader in reads.pop(op.label.data, ()):
                    self._edge(self.of[reader], cluster)
        for update in [op for op in self.of if isinstance(op, StateUpdateOp)]:
            # so does whoever reads a value that changes in place, unless it waits for the changed one
            for reader in self.readers(root(update.state)):
                if reader is not update and not self._leads(self.of[update], self.of[reader]):
                    self._edge(self.of[reader], self.of[update])

    @staticmethod
    def _edge(first: Cluster, second: Cluster) -> None:
        if first is not second:
            first.after.add(second)
            second.before.add(first)

    def can_join(self, first: Cluster, second: Cluster) -> bool:
        """No third cluster must run between the two."""
        return not self._detour(first, second) and not self._detour(second, first)

    @classmethod
    def _leads(cls, start: Cluster, end: Cluster) -> bool:
        """Some path goes from one cluster to the other."""
        return start is end or end in start.after or cls._detour(start, end)

    @staticmethod
    def _detour(start: Cluster, end: Cluster) -> bool:
        pending = [c for c in start.after if c is not end]
        seen: set[Cluster] = set(pending)
        while pending:
            cluster = pending.pop()
            if end in cluster.after:
                return True
            fresh = cluster.after - seen
            seen |= fresh
            pending.extend(fresh)
        return False

    def join(self, into: Cluster, other: Cluster) -> None:
        """Moves the nodes of one cluster into another."""
        into.ops = sorted((*into.ops, *other.ops), key=self.position.__getitem__)
        for op in other.ops:
            self.of[op] = into
        for neighbour in other.before:
            neighbour.after.discard(other)
            self._edge(neighbour, into)
        for neighbour in other.after:
            neighbour.before.discard(other)
            self._edge(into, neighbour)
        into.before -= {other, into}
        into.after -= {other, into}

    def dissolve(self, cluster: Cluster) -> None:
        """Gives every node of a cluster a cluster of its own again."""
        for op in cluster.ops:
            self.of[op] = Cluster(kind_of(op), [op])
        for other in set(self.of.values()):
            other.before.clear()
            other.after.clear()
        self._connect()
