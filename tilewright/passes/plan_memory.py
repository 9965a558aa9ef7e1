"""plan-memory: where every launch result lives, and after which launches all threads must meet.

Three kinds of places: slots, the function's results, and states. A result that changes a value in place lives where
that value does, so the last update of a state leaves the state as it is to be; other values of states are copied there
when all launches are done.

Buffers sit in slots. A slot's size is the largest of its buffers' sizes, evaluated once per dim tuple, and slots never
overlap, so non-overlap holds for all dims by construction. A result takes a free slot whose buffers' sizes it provably
does not exceed (or that it provably covers), else a new one. Reshapes at this level are names for the same bytes.
`memory_plan_check` proves the plan independently, from the launches alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import OpResult, SSAValue

from tilewright.errors import MemoryPlanError
from tilewright.ir.attributes import Bool
from tilewright.ir.dims import DimSpace, Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import FuncOp, ReturnOp, StateReadOp, StateWriteOp
from tilewright.ir.passing import Context, Pass
from tilewright.ir.tile.residence import Place, Places
from tilewright.ir.tile.structure import LaunchOp
from tilewright.passes.memory_plan_check import check_plans


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Assigns slots and barriers to launches; `reuse=false` gives every result a slot of its own."""

    name: ClassVar[str] = "plan-memory"
    needed: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("lower-to-tile",)
    reuse: bool = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"]:
            plan_function(function, ctx.dims, reuse=self.reuse)


def plan_function(function: FuncOp, dims: DimSpace, *, reuse: bool) -> None:
    """Plans one function, places before barriers. The plan is checked."""
    _assign(function, dims, reuse)
    _place_barriers(function)
    check_plans([function])


@dataclass
class Slot:
    """One region of an arena: the sizes of the buffers that live in it one after another, in bytes."""

    sizes: list[Expr] = field(default_factory=list)


def storage_of(value: SSAValue) -> SSAValue:
    """The value whose bytes these are: reshapes name the bytes of what they reshape."""
    while isinstance(value.owner, ReshapeOp):
        value = value.owner.x
    return value


def place_of(value: SSAValue) -> Place | None:
    """Where a value lives in a function whose launches up to it are planned; None for inputs, weights and packed
    tensors, which lie where they are and never change.
    """
    source = storage_of(value)
    if isinstance(source.owner, StateReadOp):
        return Place.state(source.owner.label.data)
    if isinstance(source, OpResult) and isinstance(source.owner, LaunchOp):
        return source.owner.places.data[source.index]
    return None


def slots_of(function: FuncOp) -> list[Slot]:
    """The slots of a planned function, with the size of each buffer in them."""
    slots: list[Slot] = []
    for op in function.block.ops:
        if isinstance(op, LaunchOp):
            for place, result in zip(op.places.data, op.outputs, strict=True):
                if place.kind == "slot":
                    slots += [Slot() for _ in range(place.number + 1 - len(slots))]
                    slots[place.number].sizes.append(tensor(result).bytes)
    return slots


def _last_uses(function: FuncOp) -> dict[SSAValue, int]:
    """The position of the last op that reads each storage; what is returned or becomes a state lives to the end."""
    last: dict[SSAValue, int] = {}
    end = len(list(function.block.ops))
    for position, op in enumerate(function.block.ops):
        if not isinstance(op, ReshapeOp):
            for operand in op.operands:
                last[storage_of(operand)] = end if isinstance(op, (StateWriteOp, ReturnOp)) else position
    return last


def _assign(function: FuncOp, dims: DimSpace, reuse: bool) -> None:
    last = _last_uses(function)
    outputs: dict[SSAValue, int] = {}
    for i, value in enumerate(function.terminator.values):
        outputs.setdefault(storage_of(value), i)
    slots: list[Slot] = []
    free: set[int] = set()
    busy: dict[SSAValue, int] = {}
    for position, op in enumerate(function.block.ops):
        if not isinstance(op, LaunchOp):
            continue
        places = []
        changed = op.updated
        for result in op.outputs:
            if result in changed:
                old = storage_of(changed[result])
                place = place_of(old)
                if place is None:
                    raise MemoryPlanError(
                        f"{op.callees.data[0]} changes a value in place that is no state and that no launch made",
                        step="copy it first: lower-to-tile does so for graph.state_update",
                    )
                if old in busy:
                    # the same bytes under another name
                    busy[result] = busy.pop(old)
                places.append(place)
                continue
            if result in outputs:
                places.append(Place.output(outputs[result]))
                continue
            size = tensor(result).bytes
            number = _choose(slots, free, size, dims) if reuse else None
            if number is None:
                slots.append(Slot())
                number = len(slots) - 1
            slots[number].sizes.append(size)
            free.discard(number)
            busy[result] = number
            places.append(Place.slot(number))
        op.properties["places"] = Places(tuple(places))
        for value, number in list(busy.items()):
            # a result nobody reads is dead at once, but only after its own launch
            if last.get(value, position) <= position:
                del busy[value]
                free.add(number)


def _choose(slots: list[Slot], free: Iterable[int], size: Expr, dims: DimSpace) -> int | None:
    """A free slot that need not grow, else the one that grows and provably covers, else none."""
    grown: int | None = None
    for number in sorted(free):
        if any(dims.compare(size, "<=", known) for known in slots[number].sizes):
            return number
        if grown is None and all(dims.compare(known, "<=", size) for known in slots[number].sizes):
            grown = number
    return grown


def _place_barriers(function: FuncOp) -> None:
    """Threads meet before an op that touches what an unmet launch wrote, or writes what one reads."""
    reads: set[Place] = set()
    writes: set[Place] = set()
    before: LaunchOp | None = None
    for op in function.block.ops:
        if not isinstance(op, LaunchOp):
            continue
        op_reads = {place for value in op.inputs if (place := place_of(value)) is not None}
        op_writes = set(op.places.data)
        if before is not None:
            meets = bool(op_reads & writes or op_writes & (reads | writes))
            before.properties["barrier"] = Bool(meets)
            if meets:
                reads, writes = set(), set()
        reads |= op_reads
        writes |= op_writes
        before = op
    if before is not None:
        before.properties["barrier"] = Bool(True)
