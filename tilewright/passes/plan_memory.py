"""plan-memory: where every launch result lives, and after which launches all threads must meet.

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
from xdsl.ir import Operation, OpResult, SSAValue

from tilewright.ir.attributes import Bool, Ints
from tilewright.ir.dims import DimSpace, Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import FuncOp, ReturnOp, StateReadOp, StateWriteOp
from tilewright.ir.passing import Context, Pass
from tilewright.ir.tile.structure import LaunchOp
from tilewright.passes.memory_plan_check import check_plans
from tilewright.passes.rewriting import erase


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Assigns slots and barriers to launches; `reuse=false` gives every result a slot of its own."""

    name: ClassVar[str] = "plan-memory"
    requires: ClassVar[tuple[str, ...]] = ("lower-to-tile",)
    reuse: bool = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"]:
            plan_function(function, ctx.dims, reuse=self.reuse)


def plan_function(function: FuncOp, dims: DimSpace, *, reuse: bool) -> None:
    """Plans one function: states are read once, then slots, then barriers. The plan is checked."""
    _forward_states(function)
    _assign(function, dims, reuse)
    _place_barriers(function)
    check_plans([function], dims)


def _forward_states(function: FuncOp) -> None:
    """Reads after a write become the written value; of several writes the last stays: states change at the end."""
    written: dict[str, StateWriteOp] = {}
    for op in list(function.block.ops):
        if isinstance(op, StateReadOp) and op.label.data in written:
            op.out.replace_all_uses_with(written[op.label.data].value)
            erase(op)
        elif isinstance(op, StateWriteOp):
            before = written.get(op.label.data)
            if before is not None:
                erase(before)
            written[op.label.data] = op


@dataclass
class Slot:
    """One region of an arena: the sizes of the buffers that live in it one after another, in bytes."""

    sizes: list[Expr] = field(default_factory=list)


def storage_of(value: SSAValue) -> SSAValue:
    """The value whose bytes these are: reshapes name the bytes of what they reshape."""
    while isinstance(value.owner, ReshapeOp):
        value = value.owner.x
    return value


def _position(value: SSAValue) -> int:
    """Which result of its launch a value is."""
    return value.index if isinstance(value, OpResult) else 0


def slots_of(function: FuncOp) -> list[Slot]:
    """The slots of a planned function, with the size of each buffer in them."""
    slots: list[Slot] = []
    for op in function.block.ops:
        if isinstance(op, LaunchOp):
            for number, result in zip(op.slots.data, op.outputs, strict=True):
                while number >= len(slots):
                    slots.append(Slot())
                if number >= 0:
                    slots[number].sizes.append(tensor(result).bytes)
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
        numbers = []
        for result in op.outputs:
            if result in outputs:
                numbers.append(-1 - outputs[result])
                continue
            size = tensor(result).bytes
            number = _choose(slots, free, size, dims) if reuse else None
            if number is None:
                slots.append(Slot())
                number = len(slots) - 1
            slots[number].sizes.append(size)
            free.discard(number)
            busy[result] = number
            numbers.append(number)
        op.properties["slots"] = Ints(tuple(numbers))
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


def _places(op: Operation) -> tuple[set[object], set[object]]:
    """What a launch reads and writes, as places in memory: slots and outputs (states change only at the end)."""
    reads: set[object] = set()
    for operand in op.operands:
        source = storage_of(operand)
        if isinstance(source.owner, LaunchOp):
            reads.add(source.owner.slots.data[_position(source)])
    writes: set[object] = set(op.slots.data) if isinstance(op, LaunchOp) else set()
    return reads, writes


def _place_barriers(function: FuncOp) -> None:
    """Threads meet before an op that touches what an unmet launch wrote, or writes what one reads."""
    reads: set[object] = set()
    writes: set[object] = set()
    before: LaunchOp | None = None
    for op in function.block.ops:
        if not isinstance(op, LaunchOp):
            continue
        op_reads, op_writes = _places(op)
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
