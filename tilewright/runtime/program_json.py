"""Programs to JSON and back: exact, canonical, and strict about what it reads.

Expressions are written as text and parsed back to equal objects. `program_text(p)` depends on the program alone, so it
can be hashed; `program_from_text(program_text(p)) == p`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args

from tilewright.errors import ArtifactError, TilewrightError
from tilewright.ir.dims import Dim, DimKind, Expr, parse_expr
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.grid_abi import Grid
from tilewright.ir.guards import Guard, Relation
from tilewright.ir.signature import Signature
from tilewright.runtime.canonical import canonical_json
from tilewright.runtime.program import (
    Copy,
    HostCall,
    KernelInfo,
    Program,
    ReadDim,
    Ref,
    Routine,
    Slot,
    State,
    Step,
    TensorSpec,
    Variant,
)
from tilewright.runtime.strict_json import items as _list
from tilewright.runtime.strict_json import number as _number
from tilewright.runtime.strict_json import number_or_none as _number_or_none
from tilewright.runtime.strict_json import one_of as _one_of
from tilewright.runtime.strict_json import text as _text
from tilewright.runtime.strict_json import text_or_none as _text_or_none
from tilewright.runtime.strict_json import truth as _truth


def program_text(program: Program) -> str:
    """The program as canonical JSON."""
    return canonical_json(program_to_json(program))


def program_from_text(text: str | bytes) -> Program:
    """Reads what `program_text` wrote; ArtifactError when it is anything else."""
    try:
        return program_from_json(json.loads(text))
    except (ValueError, RecursionError) as fault:
        raise _malformed(fault) from fault


def program_to_json(program: Program) -> dict[str, Any]:
    """The program as plain data."""
    return {
        "dims": [[d.name, d.min, d.max, d.kind] for d in program.dims],
        "signature": program.signature.to_json(),
        "main": _routine_json(program.main),
        "prepare": [_routine_json(r) for r in program.prepare],
        "results": [_spec_json(s) for s in program.results],
        "weights": [_spec_json(s) for s in program.weights],
        "packed": [_spec_json(s) for s in program.packed],
        "states": [{"spec": _spec_json(s.spec), "initial": s.initial} for s in program.states],
        "copies": [[_ref_json(c.source), _ref_json(c.destination), str(c.size)] for c in program.copies],
        "guards": [[str(g.left), g.relation, str(g.right), g.where] for g in program.guards],
        "reads": [[r.dim, r.input, r.element] for r in program.reads],
        "kernels": [_kernel_json(k) for k in program.kernels],
        "tied": [list(pair) for pair in program.tied],
        "transient": list(program.transient),
        "ignored": list(program.ignored),
        "target": program.target,
    }


def program_from_json(data: Any) -> Program:
    """Reads what `program_to_json` gave; ArtifactError when it is anything else."""
    try:
        return Program(
            dims=tuple(
                Dim(_text(name), _number(low), _number_or_none(high), _one_of(get_args(DimKind), kind))
                for name, low, high, kind in _list(data["dims"])
            ),
            signature=Signature.from_json(data["signature"]),
            main=_routine_of(data["main"]),
            prepare=tuple(_routine_of(r) for r in _list(data["prepare"])),
            results=_specs_of(data["results"]),
            weights=_specs_of(data["weights"]),
            packed=_specs_of(data["packed"]),
            states=tuple(State(_spec_of(s["spec"]), _number_or_none(s["initial"])) for s in _list(data["states"])),
            copies=tuple(Copy(_ref_of(a), _ref_of(b), _expr(size)) for a, b, size in _list(data["copies"])),
            guards=tuple(
                Guard(_expr(a), _one_of(get_args(Relation), rel), _expr(b), _text_or_none(where))
                for a, rel, b, where in _list(data["guards"])
            ),
            reads=tuple(ReadDim(_text(dim), _number(i), _number(at)) for dim, i, at in _list(data["reads"])),
            kernels=tuple(_kernel_of(k) for k in _list(data["kernels"])),
            tied=tuple((_text(a), _text(b)) for a, b in _list(data["tied"])),
            transient=tuple(_text(name) for name in _list(data["transient"])),
            ignored=tuple(_text(name) for name in _list(data["ignored"])),
            target=_text(data["target"]),
        )
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, TilewrightError) as fault:
        raise _malformed(fault) from fault


def _malformed(fault: Exception) -> ArtifactError:
    said = str(fault).splitlines()[0] if isinstance(fault, TilewrightError) else repr(fault)
    return ArtifactError(f"the program is malformed: {said}", step="save the program again")


def _routine_json(routine: Routine) -> dict[str, Any]:
    return {
        "steps": [_step_json(s) for s in routine.steps],
        "slots": [[str(e) for e in s.sizes] for s in routine.slots],
    }


def _routine_of(data: Mapping[str, Any]) -> Routine:
    slots = tuple(Slot(tuple(_expr(e) for e in sizes)) for sizes in _list(data["slots"]))
    return Routine(tuple(_step_of(s) for s in _list(data["steps"])), slots)


def _step_json(step: Step) -> dict[str, Any]:
    host = step.host
    return {
        "name": step.name,
        "variants": [[v.symbol, v.limit] for v in step.variants],
        "buffers": [_ref_json(ref) for ref in step.buffers],
        "written": step.written,
        "formal_dims": list(step.formal_dims),
        "dims": [str(e) for e in step.dims],
        "guard": str(step.guard),
        "barrier_after": step.barrier_after,
        "kind": step.kind,
        "path": step.path,
        "location": step.location,
        "device": step.device,
        "host": None
        if host is None
        else {
            "callee": host.callee,
            "arguments": host.arguments,
            "inputs": [_spec_json(s) for s in host.inputs],
            "outputs": [_spec_json(s) for s in host.outputs],
        },
    }


def _step_of(data: Mapping[str, Any]) -> Step:
    host = data["host"]
    return Step(
        name=_text(data["name"]),
        variants=tuple(Variant(_text(symbol), _number_or_none(limit)) for symbol, limit in _list(data["variants"])),
        buffers=tuple(_ref_of(r) for r in _list(data["buffers"])),
        written=_number(data["written"]),
        formal_dims=tuple(_text(name) for name in _list(data["formal_dims"])),
        dims=tuple(_expr(e) for e in _list(data["dims"])),
        guard=_expr(data["guard"]),
        barrier_after=_truth(data["barrier_after"]),
        kind=_text(data["kind"]),
        path=_text(data["path"]),
        location=_text_or_none(data["location"]),
        device=_text(data["device"]),
        host=None
        if host is None
        else HostCall(
            _text(host["callee"]), _text(host["arguments"]), _specs_of(host["inputs"]), _specs_of(host["outputs"])
        ),
    )


def _kernel_json(kernel: KernelInfo) -> dict[str, Any]:
    grid = kernel.grid
    shape = None if grid is None else [str(grid.programs), grid.threads, grid.shared]
    return {"symbol": kernel.symbol, "key": kernel.key, "name": kernel.name, "grid": shape}


def _kernel_of(data: Mapping[str, Any]) -> KernelInfo:
    grid = None
    if data["grid"] is not None:
        programs, threads, shared = _list(data["grid"])
        grid = Grid(_expr(programs), _number(threads), _number(shared))
    return KernelInfo(_text(data["symbol"]), _text(data["key"]), _text(data["name"]), grid)


def _ref_json(ref: Ref) -> list[Any]:
    return [ref.space, ref.index, str(ref.offset)]


def _ref_of(data: Sequence[Any]) -> Ref:
    space, index, offset = data
    return Ref(space, _number(index), _expr(offset))


def _spec_json(spec: TensorSpec) -> list[Any]:
    return [spec.name, [str(d) for d in spec.dims], spec.dtype.name]


def _spec_of(data: Sequence[Any]) -> TensorSpec:
    name, dims, dtype = data
    return TensorSpec(_text(name), tuple(_expr(d) for d in _list(dims)), DTYPES[dtype])


def _specs_of(data: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec_of(s) for s in _list(data))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Expr:
    return parse_expr(text)


def _expr(value: Any) -> Expr:
    return _parsed(_text(value))
