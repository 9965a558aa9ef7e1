"""The rules a program must keep, checked once when it is made or read: every reference in range, every dim known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from tilewright.errors import IRError, Problem
from tilewright.ir.dims import Expr
from tilewright.ir.solve import solvable
from tilewright.runtime.program import SPACES, Program, Ref, Routine, Step, TensorSpec

# What @prepare may touch: it runs before any call exists.
_PREPARE_SPACES = ("weight", "packed", "slot")
# What the steps of @main may write: all else is the caller's, or read by every call at once.
_WRITABLE = ("output", "state", "slot", "dims")


def check_program(program: Program) -> None:
    """Raises IRError that lists everything wrong with a program; a program that passes never fails inside a call."""
    faults = list(_faults(program))
    if faults:
        raise IRError(faults, step="this is a fault of whoever built the program: report it with the lines above")


def _faults(program: Program) -> Iterator[Problem]:
    known = {dim.name for dim in program.dims}
    if len(known) != len(program.dims):
        yield Problem("two dims share a name")
    declared = {dim.name for dim in program.dims if dim.kind == "declared"}
    for dim in program.dims:
        if dim.kind == "runtime" and dim.max is None:
            yield Problem(f"run-time dim {dim.name} has no upper bound, so no buffer can be sized")
    read = [r.dim for r in program.reads]
    if sorted(read) != sorted(dim.name for dim in program.dims if dim.kind == "read"):
        yield Problem("the read dims are not those that `reads` lists")
    tensors = program.signature.tensors
    for entry in program.reads:
        if not 0 <= entry.input < len(tensors) or entry.element < 0:
            yield Problem(f"{entry.dim} is read from input {entry.input}, element {entry.element}: there is none")
        elif (dtype := tensors[entry.input].dtype) is None or not dtype.is_integer:
            yield Problem(f"{entry.dim} is read from {tensors[entry.input].name}, which holds no integers")
    for name in sorted(declared - solvable((d for leaf in tensors for d in leaf.dims), read)):
        yield Problem(f"dim {name} stands on no input's axis, so no call gives it a value")
    for leaf in tensors:
        yield from _unknown(f"input {leaf.name}", leaf.dims, known)
    for spec in program.results:
        yield from _unknown(f"result {spec.name}", spec.dims, known)
    statics = (*program.weights, *program.packed, *(s.spec for s in program.states))
    for spec in statics:
        if any(not d.is_static for d in spec.dims):
            yield Problem(f"{spec}: weights, packed tensors and states have static sizes")
    yield from _duplicates("weight", program.weights)
    for name in sorted(set(program.transient) - {spec.name for spec in program.weights}):
        yield Problem(f"{name} is transient, but no weight")
    yield from _duplicates("packed tensor", program.packed)
    yield from _duplicates("state", [s.spec for s in program.states])
    for state in program.states:
        if state.initial is not None and not 0 <= state.initial < len(program.weights):
            yield Problem(f"state {state.spec.name} starts from weight {state.initial}: there is none")
    for guard in program.guards:
        yield from _unknown(f"guard {guard}", (guard.left, guard.right), known)
    yield from _signature_faults(program, known)
    yield from _routine_faults(program, program.main, "main", known)
    for step in program.main.steps:
        for ref in _writes(step):
            if ref.space not in _WRITABLE:
                yield Problem(f"main: writes {ref.space} {ref.index}", op=step.name, where=step.location)
    for number, routine in enumerate(program.prepare):
        yield from _routine_faults(program, routine, f"prepare {number}", set())
        for step in routine.steps:
            if step.host is not None:
                yield Problem(f"prepare {number} calls the host", op=step.name)
            for ref in step.buffers:
                if ref.space not in _PREPARE_SPACES:
                    yield Problem(f"prepare {number} touches the space {ref.space!r}", op=step.name)
    made = {ref.index for r in program.prepare for step in r.steps for ref in step.buffers if ref.space == "packed"}
    for number, spec in enumerate(program.packed):
        if number not in made:
            yield Problem(f"no routine of prepare touches packed tensor {spec.name}")
    for copy in program.copies:
        for ref in (copy.source, copy.destination):
            yield from (Problem(text) for text in _ref_faults(program, program.main, ref, known))
        yield from _unknown("a copy", (copy.size,), known)


def _signature_faults(program: Program, known: set[str]) -> Iterator[Problem]:
    names = {leaf.name for leaf in program.signature.tensors}
    for name, index in program.signature.mutations:
        if name not in names or not 0 <= index < len(program.results):
            yield Problem(f"result {index} is to be written back to input {name}: one of them does not exist")
    for leaf in program.signature.outputs:
        if leaf.index is not None and not 0 <= leaf.index < len(program.results):
            yield Problem(f"the output holds result {leaf.index}; there are {len(program.results)}")
        if leaf.size is not None:
            yield from _unknown("an output", (leaf.size,), known)


def _routine_faults(program: Program, routine: Routine, name: str, known: set[str]) -> Iterator[Problem]:
    for number, slot in enumerate(routine.slots):
        yield from _unknown(f"{name}: slot {number}", slot.sizes, known)
    for step in routine.steps:
        for text in _step_faults(program, routine, step, known):
            yield Problem(f"{name}: {text}", op=step.name, where=step.location)
    yield from _hazards(routine, name)


def _writes(step: Step) -> tuple[Ref, ...]:
    """The buffers that a step writes: its last ones."""
    count = step.written if step.host is None else len(step.host.outputs)
    return step.buffers[len(step.buffers) - count :] if 0 < count <= len(step.buffers) else ()


def _hazards(routine: Routine, name: str) -> Iterator[Problem]:
    """Steps between which no thread waits touch nothing that one of them writes, and none reads what it writes."""
    read: set[tuple[str, int]] = set()
    written: set[tuple[str, int]] = set()
    for step in routine.steps:
        if step.host is not None:
            # it runs alone, when all steps before it are done
            read, written = set(), set()
        writes = {(ref.space, ref.index) for ref in _writes(step)}
        reads = {(ref.space, ref.index) for ref in step.buffers[: len(step.buffers) - len(_writes(step))]}
        for space, index in sorted(writes & reads):
            yield Problem(f"{name}: writes {space} {index} while it reads it", op=step.name, where=step.location)
        for space, index in sorted((reads | writes) & written | writes & read):
            yield Problem(f"{name}: touches {space} {index} before a barrier", op=step.name, where=step.location)
        waits = step.barrier_after or step.host is not None
        read, written = (set(), set()) if waits else (read | reads, written | writes)


def _step_faults(program: Program, routine: Routine, step: Step, known: set[str]) -> Iterator[str]:
    if (step.host is None) != bool(step.variants):
        yield "a step has either variants or a host call"
    if step.host is not None and len(step.buffers) != len(step.host.inputs) + len(step.host.outputs):
        count = len(step.host.inputs) + len(step.host.outputs)
        yield f"its host call names {count} tensors for {len(step.buffers)} buffers"
    if not 0 <= step.written <= len(step.buffers):
        yield f"writes {step.written} of {len(step.buffers)} buffers"
    if len(step.dims) != len(step.formal_dims):
        yield f"{len(step.formal_dims)} formal dims but {len(step.dims)} values"
    limits = [v.limit for v in step.variants]
    if limits and (limits[-1] is not None or None in limits[:-1]):
        yield "exactly the last variant must have no limit"
    elif any(a >= b for a, b in pairwise(limits) if a is not None and b is not None):
        yield f"the variants' limits {limits} do not increase"
    if extra := step.guard.symbols - set(step.formal_dims):
        yield f"its guard uses {', '.join(sorted(extra))}, which are no formal dims of it"
    for expr in step.dims:
        if unknown := expr.symbols - known:
            yield f"unknown dims {', '.join(sorted(unknown))}"
    for ref in step.buffers:
        yield from _ref_faults(program, routine, ref, known)


def _ref_faults(program: Program, routine: Routine, ref: Ref, known: set[str]) -> Iterator[str]:
    count = {
        "input": len(program.signature.tensors),
        "output": len(program.results),
        "weight": len(program.weights),
        "packed": len(program.packed),
        "state": len(program.states),
        "slot": len(routine.slots),
        "dims": len(program.dims),
    }
    if ref.space not in SPACES:
        yield f"there is no space {ref.space!r}"
    elif not 0 <= ref.index < count[ref.space]:
        yield f"buffer {ref.space} {ref.index}: there are {count[ref.space]}"
    if unknown := ref.offset.symbols - known:
        yield f"unknown dims {', '.join(sorted(unknown))} in a buffer's offset"


def _unknown(what: str, exprs: Iterable[Expr], known: set[str]) -> Iterator[Problem]:
    missing = sorted({s for e in exprs for s in e.symbols} - known)
    if missing:
        yield Problem(f"{what} uses unknown dims {', '.join(missing)}")


def _duplicates(what: str, specs: Iterable[TensorSpec]) -> Iterator[Problem]:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            yield Problem(f"two {what}s are called {spec.name!r}")
        seen.add(spec.name)
