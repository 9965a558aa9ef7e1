"""Proves a memory plan from the launches alone: it knows places and barriers, and nothing of how they were chosen.

The checker replays a function. Every place holds the value that was last written to it, and every state at first what
it was before the call; a launch has to find in each place the value it wants, and to see it behind a barrier: between
two launches without one, threads may be anywhere in either. What is returned, or copied into a state, is looked for
when all launches are done; a state that a launch changed must have been meant to change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, OpResult, SSAValue

from tilewright.errors import MemoryPlanError
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import FuncOp, ReturnOp, StateReadOp, StateWriteOp
from tilewright.ir.tile.residence import Place
from tilewright.ir.tile.structure import LaunchOp

Held: TypeAlias = SSAValue | str
"""What a place holds: the result of a launch, or the name of a state that is as it was before the call."""


def check_memory_plan(module: ModuleOp) -> None:
    """Checks the planned functions of a module, those of kind `main`."""
    mains = [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"]
    check_plans(mains)


def check_plans(functions: Iterable[FuncOp]) -> None:
    """Raises MemoryPlanError with every fault of the plans."""
    faults = [fault for function in functions for fault in _Replay(function).run()]
    if faults:
        raise MemoryPlanError(faults, step="report the module: tilewright opt --print-after=lower-to-tile shows it")


@dataclass
class _Replay:
    """One function's run: what each place holds, and who read or wrote it since all threads last met."""

    function: FuncOp
    faults: list[str] = field(default_factory=list)
    holds: dict[Place, Held] = field(default_factory=dict)
    readers: dict[Place, str] = field(default_factory=dict)
    writers: dict[Place, str] = field(default_factory=dict)

    def run(self) -> list[str]:
        """The faults found."""
        ops = list(self.function.block.ops)
        for op in ops:
            if isinstance(op, StateReadOp):
                self.holds[Place.state(op.label.data)] = op.label.data
        for op in ops:
            if isinstance(op, LaunchOp):
                self._launch(op, self._reads(op, op.read))
        for op in ops:
            if isinstance(op, ReturnOp):
                self._reads(op, op.operands)
        written = set()
        for op in ops:
            if isinstance(op, StateWriteOp):
                self._reads(op, op.operands)
                self.holds[Place.state(op.label.data)] = op.value
                written.add(op.label.data)
        for place, held in self.holds.items():
            if place.kind == "state" and not isinstance(held, str) and place.name not in written:
                self.fault(f"{place} is changed, and nothing writes it")
        return self.faults

    def fault(self, text: str) -> None:
        self.faults.append(f"{self.function.symbol}: {text}")

    def _reads(self, op: Operation, values: Iterable[SSAValue]) -> dict[Place, str]:
        """The places that an op reads, each checked to hold what the op wants."""
        name, read = _name(op), {}
        for value in values:
            place = self._found(name, value, behind_barrier=isinstance(op, LaunchOp))
            if place is not None:
                read[place] = name
        return read

    def _found(self, name: str, value: SSAValue, *, behind_barrier: bool) -> Place | None:
        """Where a value is, if in a place that may change; checked to be there."""
        wanted = _made(value)
        if wanted is None:
            return None
        place = Place.state(wanted) if isinstance(wanted, str) else self._place(wanted)
        if place is None:
            self.fault(f"{name} reads a result that has no place")
            return None
        if self.holds.get(place) is not wanted and self.holds.get(place) != wanted:
            self.fault(f"{name} reads {place}, which no longer holds its operand")
        if place in self.writers and behind_barrier:
            self.fault(f"{name} reads {place} before all threads wrote it")
        return place

    @staticmethod
    def _place(result: SSAValue) -> Place | None:
        launch, number = result.owner, result.index if isinstance(result, OpResult) else 0
        places = launch.places.data if isinstance(launch, LaunchOp) else ()
        return places[number] if number < len(places) else None

    def _launch(self, op: LaunchOp, read: dict[Place, str]) -> None:
        name, places, changed = _name(op), op.places.data, op.updated
        if len(places) != len(op.outputs) or len(set(places)) != len(places):
            self.fault(f"{name} has results without a place of their own")
            return
        for place, result in zip(places, op.outputs, strict=True):
            if place in read:
                self.fault(f"{name} writes {place} while it reads it")
            if result in changed:
                if self._found(name, changed[result], behind_barrier=True) != place:
                    self.fault(f"{name} changes a value in place that is not in {place}")
            elif place.kind == "state":
                self.fault(f"{name} writes all of {place}, which takes values after the launches")
            if place in self.readers:
                self.fault(f"{name} overwrites {place} while {self.readers[place]} may still read it")
            if place in self.writers and result not in changed:
                self.fault(f"{name} and {self.writers[place]} both write {place} without a barrier")
            self.holds[place] = result
        if op.barrier.data:
            self.readers, self.writers = {}, {}
        else:
            self.readers.update(read)
            self.writers.update(dict.fromkeys(places, name))


def _name(op: Operation) -> str:
    return op.callees.data[0] if isinstance(op, LaunchOp) else op.name


def _made(value: SSAValue) -> Held | None:
    """The launch result or the state whose bytes a value names; None for inputs, weights and packed tensors."""
    while isinstance(value.owner, ReshapeOp):
        value = value.owner.x
    if isinstance(value.owner, StateReadOp):
        return value.owner.label.data
    return value if isinstance(value.owner, LaunchOp) else None
