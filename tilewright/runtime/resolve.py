"""One routine at one tuple of dims: variants chosen, slots placed, and the steps packed for the native driver.

Everything that depends on dims alone is decided here, once; a call then only fills in where its buffers lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tilewright.errors import CapacityError
from tilewright.ir.dims import Expr
from tilewright.runtime.memory import ADDRESSABLE, Footprint, Piece, shown
from tilewright.runtime.program import ALIGNMENT, HostCall, Program, Ref, Routine, Space, Step, Variant
from tilewright.runtime.step_plan import Step as PlanStep
from tilewright.runtime.step_plan import StepPlan


class Code(Protocol):
    """Kernels in memory: an address for each symbol, valid while this object lives."""

    def __getitem__(self, symbol: str) -> int: ...


class BaseTable:
    """Where each space's buffers stand among a call's base pointers: arena, dims table, then the spaces one after
    another.
    """

    ARENA = 0
    DIMS = 1
    FIRST = 2
    """The first input; the outputs follow the inputs."""

    def __init__(self, program: Program) -> None:
        self.first: dict[Space, int] = {"slot": self.ARENA, "dims": self.DIMS}
        counts: list[tuple[Space, int]] = [
            ("input", len(program.signature.tensors)),
            ("output", len(program.results)),
            ("weight", len(program.weights)),
            ("packed", len(program.packed)),
            ("state", len(program.states)),
        ]
        self.size = self.FIRST
        for space, count in counts:
            self.first[space] = self.size
            self.size += count

    def place(self, ref: Ref, slots: Sequence[int], value: Mapping[Expr, int]) -> tuple[int, int]:
        """(index of the base, offset in bytes). slots: each slot's offset in the arena."""
        offset = value[ref.offset]
        match ref.space:
            case "slot":
                return self.ARENA, slots[ref.index] + offset
            case "dims":
                return self.DIMS, 8 * ref.index + offset
            case space:
                return self.first[space] + ref.index, offset


@dataclass(frozen=True, slots=True)
class NativePart:
    """Steps `first` .. `first + plan.nsteps` of a routine, run by the driver in one launch. address: the plan's."""

    first: int
    plan: StepPlan
    address: int

    @staticmethod
    def of(first: int, steps: Sequence[PlanStep]) -> NativePart:
        plan = StepPlan(steps)
        return NativePart(first, plan, plan.address)


@dataclass(frozen=True, slots=True)
class HostPart:
    """One step run in Python: where its tensors lie and the shapes they have."""

    index: int
    call: HostCall
    places: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A routine ready to run. copies: (source place, destination place, bytes). variants: the symbol each step runs."""

    parts: tuple[NativePart | HostPart, ...]
    arena: int
    copies: tuple[tuple[tuple[int, int], tuple[int, int], int], ...]
    shapes: tuple[tuple[int, ...], ...]
    variants: tuple[str | None, ...]


class Values(dict[Expr, int]):
    """The value of every expression asked for, each evaluated once: a program has far fewer expressions than uses."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self._sizes = sizes

    def __missing__(self, expr: Expr) -> int:
        value = self[expr] = expr.evaluate(self._sizes)
        return value


def place_slots(routine: Routine, value: Mapping[Expr, int]) -> tuple[list[int], int]:
    """Each slot's offset and the bytes of all: a slot is as large as its largest buffer, rounded up to 64 bytes."""
    offsets, end = [], 0
    for slot in routine.slots:
        offsets.append(end)
        size = max((value[e] for e in slot.sizes), default=0)
        end += -(-max(size, 0) // ALIGNMENT) * ALIGNMENT
    return offsets, end


def choose(step: Step, dims: Sequence[int]) -> Variant:
    """The first variant whose limit the guard keeps, at the values of the step's formal dims."""
    if len(step.variants) == 1:
        return step.variants[0]
    guard = step.guard.evaluate(dict(zip(step.formal_dims, dims, strict=True)))
    return next(v for v in step.variants if v.limit is None or guard <= v.limit)


def resolve(
    program: Program, routine: Routine, bases: BaseTable, code: Code, sizes: Mapping[str, int], *, main: bool
) -> Resolved:
    """Resolves a routine at these sizes of the dims. main: it is @main, which has results and copies."""
    value = Values(sizes)
    slots, arena = place_slots(routine, value)
    if arena > ADDRESSABLE:
        raise CapacityError(f"a call needs {shown(arena)} of scratch memory", step="call it with smaller dims")
    variants: list[str | None] = []
    parts = tuple(_parts(routine, bases, code, slots, value, variants))
    copies = tuple(
        (bases.place(c.source, slots, value), bases.place(c.destination, slots, value), value[c.size])
        for c in (program.copies if main else ())
    )
    shapes = tuple(tuple(value[d] for d in spec.dims) for spec in (program.results if main else ()))
    return Resolved(parts, arena, copies, shapes, tuple(variants))


def _parts(
    routine: Routine,
    bases: BaseTable,
    code: Code,
    slots: Sequence[int],
    value: Mapping[Expr, int],
    variants: list[str | None],
) -> Iterator[NativePart | HostPart]:
    pending: list[PlanStep] = []
    for index, step in enumerate(routine.steps):
        places = tuple(bases.place(ref, slots, value) for ref in step.buffers)
        if step.host is not None:
            if pending:
                yield NativePart.of(index - len(pending), pending)
                pending = []
            specs = (*step.host.inputs, *step.host.outputs)
            yield HostPart(index, step.host, places, tuple(tuple(value[d] for d in s.dims) for s in specs))
            variants.append(None)
            continue
        dims = [value[e] for e in step.dims]
        variant = choose(step, dims)
        pending.append(PlanStep(code[variant.symbol], places, dims, step.barrier_after))
        variants.append(variant.symbol)
    if pending:
        yield NativePart.of(len(routine.steps) - len(pending), pending)


def footprint(program: Program, sizes: Mapping[str, int]) -> Footprint:
    """What the program holds while one call runs at these sizes of all its dims."""
    value = Values(sizes)
    _, arena = place_slots(program.main, value)
    slots = []
    for number, slot in enumerate(program.main.slots):
        largest = max(slot.sizes, key=lambda e: value[e], default=Expr.of(0))
        others = f", {len(slot.sizes)} buffers" if len(slot.sizes) > 1 else ""
        slots.append(Piece(f"slot {number}", value[largest], f"{largest}{others}"))
    return Footprint(
        dims=dict(sizes),
        weights=tuple(Piece(s.name, value[s.bytes], str(s.bytes)) for s in program.stored),
        states=tuple(Piece(f"state {s.spec.name}", value[s.spec.bytes], str(s.spec.bytes)) for s in program.states),
        slots=tuple(slots),
        results=tuple(Piece(f"result {s.name}", value[s.bytes], str(s.bytes)) for s in program.results),
        arena=arena,
    )
