"""Programs and kernels made again from the tile IR of an artifact, which is all that is believed of it.

The text is parsed and verified; slots and barriers are planned anew. What the artifact says of a call (its signature)
is held against the IR before anything is compiled, launches against their kernels, and of every view in a kernel it is
proved that it lies inside its buffer for every call that the dims and guards admit. What is not proved is not compiled.
That stores cover the outputs is not proved: the memory of such programs is zeros wherever a kernel may begin, its own
scratch (here) and what a call hands it (`runtime.executor`).
"""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.assemble import Interface
from tilewright.compiler.building import build_code
from tilewright.compiler.code import Code
from tilewright.compiler.pipelines import planning_pipeline
from tilewright.errors import ArtifactError, CpuFeatureError, IRError, ParseError, Problem
from tilewright.ir.backend import Backend, backends
from tilewright.ir.dims import Expr
from tilewright.ir.entry_attributes import guards, reads
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.machine import Machine
from tilewright.ir.module import dim_space, parse_module
from tilewright.ir.passing import Context, run_pipeline
from tilewright.ir.tile.containment import unproved
from tilewright.runtime import native
from tilewright.runtime.artifact import Rebuildable
from tilewright.runtime.program import Program, ReadDim

_STEP = "save the artifact again where the model was compiled"
_UNPROVED = "load a file that you trust with native=True, or compile the model again with bounds for all its dims"


def rebuild(parts: Rebuildable) -> Code:
    """Code for this machine from an artifact's parts.

    Raises ArtifactError where the IR is missing, malformed or at odds with the signature, CpuFeatureError where no CPU
    class of the target's backend runs here.
    """
    backend, machine = _machine(parts)
    if "tile" not in parts.ir:
        raise ArtifactError(f"{parts.path} holds no tile IR", step=_STEP)
    try:
        module = parse_module(parts.ir["tile"], f"{parts.path}:ir/tile")
    except (IRError, ParseError) as fault:
        raise ArtifactError(
            [Problem(f"{parts.path}: {p.text}", p.op, p.where) for p in fault.problems], step=_STEP
        ) from fault
    space = dim_space(module)
    _agree(module, parts)
    run_pipeline(planning_pipeline(backend), module, Context(machine=machine, dims=space))
    # last: what a backend's own passes leave is what is compiled
    _contained(module, parts)
    return build_code(
        module, Interface.again(parts.program), backend, machine, dims=space, texts=parts.ir, cleared=True
    )


def _machine(parts: Rebuildable) -> tuple[Backend, Machine]:
    """The artifact's own machine if its code runs here, else the last (richest) of its backend's that does."""
    name, _, wanted = parts.program.target.partition(":")
    backend = backends().get(name)
    if backend is None:
        raise ArtifactError(f"{parts.path} is for {parts.program.target}, and no such backend is installed", step=_STEP)
    present = native.cpu_features()
    ready = {n: m for n, m in ((n, build()) for n, build in backend.machines.items()) if set(m.features) <= present}
    if not ready:
        raise CpuFeatureError(f"none of {', '.join(backend.machines)} runs on this CPU", step=_STEP)
    return backend, ready.get(wanted) or list(ready.values())[-1]


def _agree(module: ModuleOp, parts: Rebuildable) -> None:
    """ArtifactError unless a call's tensors are what @main declares, or equal to it by a checked guard."""
    program = parts.program
    main = next((f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "main"), None)
    if main is None:
        raise ArtifactError(f"{parts.path}: its tile IR has no main function", step=_STEP)
    faults = []
    if tuple(dim_space(module).dims.values()) != program.dims:
        faults.append(f"{parts.path}: its signature and its IR declare different dims")
    if guards(module) != program.guards:
        faults.append(f"{parts.path}: its step table and its IR hold calls to different guards")
    if tuple(ReadDim(read.dim, read.argument) for read in reads(module)) != program.reads:
        faults.append(f"{parts.path}: its step table and its IR read different dims")
    leaves, arguments = program.signature.tensors, list(main.arguments.values())
    if len(leaves) != len(arguments):
        faults.append(f"{parts.path}: a call has {len(leaves)} tensors, its IR takes {len(arguments)}")
    for leaf, argument in zip(leaves, arguments, strict=False):
        declared = tensor(argument)
        same = leaf.dtype == declared.dtype and len(leaf.dims) == len(declared.dims)
        if not same or not all(_equal(a, b, program) for a, b in zip(leaf.dims, declared.dims, strict=True)):
            faults.append(
                f"{parts.path}: {leaf.name} is {leaf.dtype}[{', '.join(map(str, leaf.dims))}], in its IR {declared}"
            )
    if faults:
        raise ArtifactError(faults, step=_STEP)


def _contained(module: ModuleOp, parts: Rebuildable) -> None:
    """ArtifactError unless every access is proved to stay inside its buffer in every call."""
    problems = unproved(module, [fact for guard in guards(module) for fact in guard.facts()])
    if problems:
        raise ArtifactError([Problem(f"{parts.path}: {p.text}", p.op, p.where) for p in problems], step=_UNPROVED)


def _equal(a: Expr, b: Expr, program: Program) -> bool:
    return a == b or any(g.relation == "==" and {g.left, g.right} == {a, b} for g in program.guards)
