"""A program whose kernels' results are all outputs, run once: what each kernel read and wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.compiler.assemble import Interface
from tilewright.compiler.building import build_code
from tilewright.compiler.linking import ready
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.compiler.target import Target
from tilewright.errors import InterpreterError
from tilewright.frontend.captured import Captured
from tilewright.ir.attributes import Strs
from tilewright.ir.graph.base import GraphOp, Setting, tensor
from tilewright.ir.graph.structure import FuncOp, GroupOp, PackedOp, ReturnOp, StateReadOp, WeightOp
from tilewright.ir.graph_interpreter import GraphInterpreter
from tilewright.ir.module import function
from tilewright.ir.passing import Context, Pass, run_pipeline
from tilewright.ir.signature import Argument, Output, Parameter, Signature
from tilewright.ir.trees import LEAF, Tree
from tilewright.runtime.binding import Binder
from tilewright.runtime.facts import Facts
from tilewright.runtime.prepare import prepare_weights

if TYPE_CHECKING:
    import torch


@dataclass
class Exposed:
    """The groups of @main in order, and the value of everything they read and wrote in one call."""

    groups: list[GroupOp]
    sizes: Mapping[str, int]
    captured: Captured
    packed: Mapping[str, torch.Tensor]
    values: dict[SSAValue, torch.Tensor] = field(default_factory=dict)

    def value(self, wanted: SSAValue) -> torch.Tensor:
        """An input, a kernel's result, or what follows from them without a kernel (a view, a weight, a state)."""
        if wanted not in self.values:
            self.values[wanted] = self._derived(wanted)
        return self.values[wanted]

    def _derived(self, wanted: SSAValue) -> torch.Tensor:
        match wanted.owner:
            case WeightOp() as op:
                return self.captured.weights[op.label.data]
            case StateReadOp() as op:
                return self.captured.states[op.label.data]
            case PackedOp() as op:
                return self.packed[op.label.data]
            case GraphOp() as op:
                operands = [None if slot is None else self.value(slot) for slot in op.slots()]
                found = op.evaluate(Setting(self.sizes), *operands)
                results: Sequence[torch.Tensor] = found if isinstance(found, tuple) else (found,)
                return results[list(op.results).index(wanted)]  # type: ignore[arg-type]
            case _:
                raise InterpreterError(f"nothing computes {wanted}", step="verify the module")


def kernel_results(captured: Captured, target: Target, ctx: Context, tensors: Sequence[torch.Tensor]) -> Exposed:
    """Compiles a captured model with every kernel's result as an output, and calls it. The module is consumed.

    tensors: the inputs in the order of @main's arguments.
    """
    exposure = _Exposure()
    run_pipeline(target.pipeline, captured.module, ctx, instruments=(exposure,))
    interface = _interface(captured, exposure.module)
    code = build_code(captured.module, interface, target.backend, target.machine, dims=ctx.dims, texts={})
    program, every = code.program, {**captured.weights, **captured.states}
    read = {spec.name: every[spec.name] for spec in program.weights}
    compiled = ready(
        code, Facts(), lambda library, pool: prepare_weights(program, library, pool, read), Stopwatch(),
        host=captured.externs,
    )  # fmt: skip
    sizes = program.sizes(Binder(program).bind(tensors, {}).values)
    results = compiled(*tensors)
    main = function(exposure.module, "main")
    groups = [op for op in main.block.ops if isinstance(op, GroupOp)]
    packed = GraphInterpreter(exposure.module, weights=every, states=dict(captured.states)).packed()
    exposed = Exposed(groups, sizes, captured, packed)
    exposed.values.update(zip(main.block.args, tensors, strict=True))
    exposed.values.update(zip(main.terminator.values, results, strict=True))
    return exposed


def _interface(captured: Captured, exposed: ModuleOp) -> Interface:
    """A call with the inputs one by one and a list of all results."""
    inputs = captured.signature.tensors
    results = [tensor(v) for v in function(exposed, "main").terminator.values]
    signature = Signature(
        parameters=tuple(Parameter(f"input_{i}", "positional") for i in range(len(inputs))),
        arguments=tuple(Argument(f"input_{i}", LEAF, (leaf,)) for i, leaf in enumerate(inputs)),
        output=Tree("list", children=(LEAF,) * len(results)),
        outputs=tuple(Output(t.dtype, t.dims, index=i) for i, t in enumerate(results)),
    )
    return replace(Interface.of(captured), signature=signature)


class _Exposure:
    """Before the lowering: returns every group's result, and keeps the module as it is then."""

    def __init__(self) -> None:
        self.module: ModuleOp = ModuleOp([])

    @contextmanager
    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> Iterator[None]:
        """An instrument of the pipeline."""
        if p.name == "lower-to-tile":
            expose(function(module, "main"))
            self.module = module.clone()
        yield


def expose(main: FuncOp) -> None:
    """Makes every group's result a result of the function, after those it has."""
    ends = main.terminator
    returned = list(ends.values)
    added = [r for op in main.block.ops if isinstance(op, GroupOp) for r in op.outs if r not in returned]
    names = [*main.result_names.data, *(f"kernel result {i}" for i in range(len(added)))]
    main.block.insert_op_before(ReturnOp.make([*returned, *added]), ends)
    main.block.erase_op(ends)
    main.properties["result_names"] = Strs(tuple(names))
