"""Proves a memory plan from the launches alone: it knows slots and barriers, and nothing of how they were chosen.

The checker replays a function. Every slot holds the value that was last written to it; a launch has to find in each
slot the value it wants, and to see it behind a barrier: between two launches without one, threads may be anywhere in
either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, OpResult, SSAValue

from tilewright.errors import MemoryPlanError
from tilewright.ir.dims import DimSpace
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import FuncOp, ReturnOp, StateWriteOp
from tilewright.ir.tile.structure import LaunchOp


def check_memory_plan(module: ModuleOp, dims: DimSpace) -> None:
    """Checks the planned functions of a module, those of kind `main`."""
    mains = [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"]
    check_plans(mains, dims)


def check_plans(functions: Iterable[FuncOp], dims: DimSpace) -> None:
    """Raises MemoryPlanError with every fault of the plans."""
    faults = [fault for function in functions for fault in _Replay(function, dims).run()]
    if faults:
        raise MemoryPlanError(faults, step="report the module: tilewright opt --print-after=lower-to-tile shows it")


@dataclass
class _Replay:
    """One function's run: what each slot holds, and who read or wrote it since all threads last met."""

    function: FuncOp
    dims: DimSpace
    faults: list[str] = field(default_factory=list)
    holds: dict[int, SSAValue] = field(default_factory=dict)
    readers: dict[int, str] = field(default_factory=dict)
    writers: dict[int, str] = field(default_factory=dict)

    def run(self) -> list[str]:
        """The faults found."""
        for op in self.function.block.ops:
            if isinstance(op, (LaunchOp, ReturnOp, StateWriteOp)):
                read = self._reads(op)
                if isinstance(op, LaunchOp):
                    self._launch(op, read)
        return self.faults

    def fault(self, text: str) -> None:
        self.faults.append(f"{self.function.symbol}: {text}")

    def _reads(self, op: Operation) -> dict[int, str]:
        """The slots that an op reads, each checked to hold what the op wants."""
        name, read = _name(op), {}
        for operand in op.operands:
            made = _made(operand)
            if made is None:
                continue
            launch, position = made
            if position >= len(launch.slots.data):
                self.fault(f"{name} reads a result that has no slot")
                continue
            slot = launch.slots.data[position]
            if self.holds.get(slot) is not launch.outputs[position]:
                self.fault(f"{name} reads slot {slot}, which no longer holds its operand")
            if slot in self.writers and isinstance(op, LaunchOp):
                self.fault(f"{name} reads slot {slot} before all threads wrote it")
            read[slot] = name
        return read

    def _launch(self, op: LaunchOp, read: dict[int, str]) -> None:
        name, slots = _name(op), op.slots.data
        if len(slots) != len(op.outputs) or len(set(slots)) != len(slots):
            self.fault(f"{name} has results without a slot of their own")
            return
        for slot, result in zip(slots, op.outputs, strict=True):
            if slot in read:
                self.fault(f"{name} writes slot {slot} while it reads it")
            if slot in self.readers:
                self.fault(f"{name} overwrites slot {slot} while {self.readers[slot]} may still read it")
            if slot in self.writers:
                self.fault(f"{name} and {self.writers[slot]} both write slot {slot} without a barrier")
            if slot >= 0 and self._is_unbounded(result):
                self.fault(f"slot {slot} holds a buffer of unbounded size {tensor(result).bytes}")
            self.holds[slot] = result
        if op.barrier.data:
            self.readers, self.writers = {}, {}
        else:
            self.readers.update(read)
            self.writers.update(dict.fromkeys(slots, name))

    def _is_unbounded(self, result: SSAValue) -> bool:
        """Nothing bounds the size, though some dim of it was declared with a bound."""
        size, known = tensor(result).bytes, self.dims.dims
        declared = [known[s] for s in size.symbols if s in known]
        return self.dims.at_most(size) is None and any(d.max is not None for d in declared)


def _name(op: Operation) -> str:
    return op.callees.data[0] if isinstance(op, LaunchOp) else op.name


def _made(value: SSAValue) -> tuple[LaunchOp, int] | None:
    """The launch whose bytes a value names, and which of its results they are; None for inputs, weights and states."""
    while isinstance(value.owner, ReshapeOp):
        value = value.owner.x
    if isinstance(value, OpResult) and isinstance(value.owner, LaunchOp):
        return value.owner, value.index
    return None
