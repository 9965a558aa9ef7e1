"""Which ops belong to which layer, and whether two layers are the same but for what they are given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from xdsl.ir import Block, Operation, SSAValue

from tilewright.ir.graph.structure import (
    CallOp,
    ConstantOp,
    DimOp,
    IotaOp,
    PackedOp,
    PositionsOp,
    ReturnOp,
    WeightOp,
)
from tilewright.ir.operation import TwOperation
from tilewright.passes.rewriting import is_pure

# --- layers by path -------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """The ops of one layer in order."""

    name: str
    ops: list[Operation]
    members: set[Operation] = field(default_factory=set)


def prefixes_of(block: Block) -> list[str]:
    """What stands before a number in the paths, where there are several numbers; most ops first."""
    numbers: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for op in block.ops:
        for prefix, number in _numbered(op):
            numbers.setdefault(prefix, set()).add(number)
            sizes[prefix] = sizes.get(prefix, 0) + 1
    return sorted((p for p in numbers if len(numbers[p]) > 1), key=lambda p: (-sizes[p], p))


def _numbered(op: Operation) -> Iterable[tuple[str, str]]:
    """(prefix, number) for every number in an op's path."""
    parts = ((op.path if isinstance(op, TwOperation) else None) or "").split(".")
    return [(".".join(parts[:i]), part) for i, part in enumerate(parts) if part.isdigit() and i]


def layers_of(block: Block, prefix: str) -> list[Layer]:
    """The layers of a prefix in the order of their numbers."""
    found: dict[int, Layer] = {}
    for op in block.ops:
        for before, number in _numbered(op):
            if before == prefix and _may_be_inside(op):
                found.setdefault(int(number), Layer(f"{prefix}.{number}", [])).ops.append(op)
    for layer in found.values():
        layer.members = set(layer.ops)
        _adopt(layer, block)
    return [found[number] for number in sorted(found)]


def _adopt(layer: Layer, block: Block) -> None:
    """Ops that rewriting left without a path belong to the layer that alone uses them."""
    for op in reversed(list(block.ops)):
        users = [use.operation for r in op.results for use in r.uses]
        orphan = op not in layer.members and _may_be_inside(op) and not _has_path(op)
        if orphan and users and all(user in layer.members for user in users):
            layer.members.add(op)


def _has_path(op: Operation) -> bool:
    return isinstance(op, TwOperation) and op.path is not None


def _may_be_inside(op: Operation) -> bool:
    """Weights and packed tensors are arguments, whatever their path."""
    return not isinstance(op, (WeightOp, PackedOp, CallOp, ReturnOp))


def is_copied(op: object) -> bool:
    """Ops without operands that every layer has for itself."""
    return isinstance(op, (ConstantOp, DimOp, IotaOp, PositionsOp))


# --- equality -------------------------------------------------------------------------------------------------------


def same_operation(a: Operation, b: Operation) -> str | None:
    """How two ops differ in themselves; None when they do not."""
    if a.name != b.name:
        return f"{b.name} where {a.name} is expected"
    if not same_properties(a, b):
        keys = [k for k in {**a.properties, **b.properties} if a.properties.get(k) != b.properties.get(k)]
        return f"{a.name} has another {', '.join(sorted(keys))}"
    if not same_types(a, b):
        return f"{a.name} gives {', '.join(str(r.type) for r in b.results)}"
    if len(a.operands) != len(b.operands):
        return f"{a.name} has {len(b.operands)} operands"
    return None


def same_properties(a: Operation, b: Operation) -> bool:
    """Equal properties: constants, axes, eps, scale."""
    return a.properties == b.properties


def same_types(a: Operation, b: Operation) -> bool:
    """Equal result types."""
    return [r.type for r in a.results] == [r.type for r in b.results]


def stands_alone(match: Match) -> bool:
    """Nothing outside the layer runs between two of its ops."""
    inside = {op for op in match.ops.values() if not is_copied(op)}
    pending = [u for op in inside for u in _users(op) if u not in inside]
    seen = set(pending)
    while pending:
        for user in _users(pending.pop()):
            if user in inside:
                return False
            if user not in seen:
                seen.add(user)
                pending.append(user)
    return True


def _users(op: Operation) -> list[Operation]:
    return [use.operation for r in op.results for use in r.uses]


class Match:
    """A layer laid beside a sample: which of its ops and values stand for the sample's."""

    def __init__(self, sample: Layer, layer: Layer) -> None:
        self.sample, self.layer = sample, layer
        self.ops: dict[Operation, Operation] = {}
        self.values: dict[SSAValue, SSAValue] = {}
        self.arguments: list[SSAValue] = []

    def find(self) -> str | None:
        """Pairs the layers up from what leaves them; gives the first difference, or None."""
        theirs = _leaving(self.layer)
        roots = _leaving(self.sample)
        if not roots:
            return "nothing leaves it"
        for root in roots:
            if root in self.values:
                continue
            differences: list[str] = []
            for candidate in [c for c in theirs if c not in self.values.values()]:
                before = dict(self.ops), dict(self.values), list(self.arguments)
                found = self._pair(root, candidate)
                if found is None:
                    break
                self.ops, self.values, self.arguments = before
                differences.append(found)
            else:
                # the last value to leave a layer is most likely the one that should have matched
                return differences[0] if differences else "less leaves it"
        if not all(is_pure(op) for op in self.ops.values()):
            return "it has effects"
        return None if stands_alone(self) else "an op outside it runs between its parts"

    def _pair(self, root: SSAValue, candidate: SSAValue) -> str | None:
        taken = {b: a for a, b in self.ops.items()}
        pending = [(root, candidate)]
        while pending:
            ours, other = pending.pop()
            if ours in self.values:
                if self.values[ours] is not other and not is_copied(ours.owner):
                    return f"{_text(other)} is used where the sample uses one value twice"
                continue
            a, b = ours.owner, other.owner
            inside = a in self.sample.members, b in self.layer.members
            copied = isinstance(a, Operation) and isinstance(b, Operation) and is_copied(a) and is_copied(b)
            if ours is other and not (inside[0] and inside[1]) and not copied:
                self._argue(ours, other)
                continue
            if isinstance(a, Operation) and isinstance(b, Operation) and (copied or (inside[0] and inside[1])):
                difference = same_operation(a, b)
                if difference is not None:
                    return difference
                if taken.setdefault(b, a) is not a and not copied:
                    return f"{_text(other)} stands for two values of the sample"
                self.ops[a] = b
                self.values.update(zip(a.results, b.results, strict=True))
                pending.extend(zip(a.operands, b.operands, strict=True))
            elif inside[0] or inside[1]:
                return f"{_text(other)} is {'outside' if inside[0] else 'inside'} the layer"
            elif ours.type != other.type:
                return f"it is given {other.type} where the sample is given {ours.type}"
            else:
                self._argue(ours, other)
        return None

    def _argue(self, ours: SSAValue, other: SSAValue) -> None:
        self.values[ours] = other
        self.arguments.append(ours)

    def results(self) -> list[SSAValue]:
        """What the sample's ops compute, in order."""
        ordered = [op for op in in_order(self.ops) if not is_copied(op)]
        return [r for op in ordered for r in op.results]

    def leaves(self, value: SSAValue) -> bool:
        """Some op outside the matched ones uses a value of the layer."""
        inside = set(self.ops.values())
        return any(use.operation not in inside for use in value.uses)


def in_order(ops: Iterable[Operation]) -> list[Operation]:
    """Ops of one block in the order they stand there."""
    listed = list(ops)
    block = listed[0].parent
    position = {op: i for i, op in enumerate(block.ops)} if block is not None else {}
    return sorted(listed, key=position.__getitem__)


def _leaving(layer: Layer) -> list[SSAValue]:
    """The values of a layer that others use, the last ones first."""
    results = [r for op in in_order(layer.members) if not is_copied(op) for r in op.results]
    return [r for r in reversed(results) if any(use.operation not in layer.members for use in r.uses)]


def _text(value: SSAValue) -> str:
    owner = value.owner
    return f"{owner.name if isinstance(owner, Operation) else 'an argument'} of {value.type}"
