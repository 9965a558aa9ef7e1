"""One traced kernel as a whole program: a module with one launch, its objects, and what a report tells of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.assemble import Interface
from tilewright.compiler.building import build_code, build_kernels
from tilewright.compiler.code import Code
from tilewright.compiler.code_key import plugins_of, sources_hash
from tilewright.compiler.compiled import Compiled
from tilewright.compiler.kernel_check import check_kernel
from tilewright.compiler.kernel_spec import KernelSpec, Static
from tilewright.compiler.linking import ready
from tilewright.compiler.options import Options
from tilewright.compiler.pipelines import kernel_pipeline
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.compiler.store import Store
from tilewright.compiler.target import Target
from tilewright.ir.backend import kernels_of
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.dims import Dim, DimSpace, Expr
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.module import new_module, print_module
from tilewright.ir.passing import Context, run_pipeline
from tilewright.ir.signature import Argument, Input, Output, Parameter, Signature
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.trees import LEAF, Tree
from tilewright.ir.types import TensorType
from tilewright.runtime.facts import Facts
from tilewright.runtime.prepare import prepare_weights


def kernel_module(kernel: KernelOp, spec: KernelSpec, statics: Mapping[str, Static]) -> ModuleOp:
    """@main that launches the kernel once on its arguments. Every dim is any size from 0 on."""
    types = {b.name: TensorType.of(b.dims_at(statics), b.dtype_at(statics)) for b in spec.buffers}
    main = FuncOp.begin("main", {b.name: types[b.name] for b in spec.inputs})
    launch = LaunchOp.make(
        list(main.block.args),
        result_types=[[types[b.name] for b in spec.outputs]],
        callees=[spec.name],
        guard=[Expr.of(0)],
        limits=[],
        dims=[Expr.of(d) for d in kernel.dims.data],
        like=kernel,
    )
    main.block.add_op(launch)
    main.finish(list(launch.outputs), [b.name for b in spec.outputs])
    module = new_module([Dim(name, 0) for name in spec.dims])
    module.body.block.add_op(main)
    module.body.block.add_op(kernel.clone())
    return module


def kernel_signature(spec: KernelSpec, statics: Mapping[str, Static]) -> Signature:
    """Inputs by name or position; one output as it is, several as a tuple."""
    arguments = tuple(
        Argument(b.name, LEAF, (Input(b.name, b.dtype_at(statics), b.dims_at(statics)),)) for b in spec.inputs
    )
    outputs = tuple(Output(b.dtype_at(statics), b.dims_at(statics), index=i) for i, b in enumerate(spec.outputs))
    tree = LEAF if len(outputs) == 1 else Tree("tuple", children=(LEAF,) * len(outputs))
    return Signature(tuple(Parameter(b.name) for b in spec.inputs), arguments, tree, outputs)


def kernel_code(
    module: ModuleOp, signature: Signature, spec: KernelSpec, target: Target, options: Options, watch: Stopwatch
) -> tuple[Code, Facts]:
    """Code for a target, and the facts of its report."""
    space = DimSpace([Dim(name, 0) for name in spec.dims])
    facts = Facts(
        model=f"kernel @{spec.name}",
        pipeline=str(kernel_pipeline(target.backend)),
        precision=options.precision,
        determinism=target.order(options),
    )
    ctx = Context(machine=target.machine, dims=space, options=CompileOptions(**facts.options))
    with watch.stage("passes"):
        text = print_module(module)
        run_pipeline(kernel_pipeline(target.backend), module, ctx)
        tile = print_module(module)
    code = build_code(
        module, Interface(signature, (), (), frozenset(), frozenset()), target.backend, target.machine, dims=space,
        texts={"captured": text, "graph": text, "tile": tile}, watch=watch,
    )  # fmt: skip
    return code, facts


def compile_kernel(kernel: KernelOp, spec: KernelSpec, statics: Mapping[str, Static], options: Options) -> Compiled:
    """The kernel for a target, ready to be called. Raises as `check_kernel`."""
    watch = Stopwatch()
    target = Target.of(options)
    module, signature = kernel_module(kernel, spec, statics), kernel_signature(spec, statics)
    text = print_module(module)
    pipeline = kernel_pipeline(target.backend)
    factors = {
        "kind": "kernel",
        "tile": hashlib.sha256(text.encode()).hexdigest(),
        "signature": signature.to_json(),
        "machine": target.machine.key(),
        "backend": target.backend.name,
        "pipeline": str(pipeline),
        "plugins": plugins_of(pipeline, target.backend),
        "toolchain": dict(target.backend.toolchain()),
        "tilewright": sources_hash(),
    }

    def build() -> tuple[Code, Facts]:
        # What a cache holds has been checked: its key names the kernel's text and this package's sources.
        check_kernel(kernel, [b.name for b in spec.buffers])
        return kernel_code(module, signature, spec, target, options, watch)

    code, facts, origin = Store.of(options).code(factors, build)
    return ready(
        code, facts, lambda library, pool: prepare_weights(code.program, library, pool, {}), watch, origin=origin,
        here=target.runs_here, threads=options.threads, memory_limit=options.memory_limit,
    )  # fmt: skip


def kernel_sources(kernel: KernelOp, target: Target) -> Mapping[str, str]:
    """The kernel's generated source for a target, compiled by the target's own toolchain, by name."""
    module = new_module()
    module.body.block.add_op(kernel.clone())
    ctx = Context(machine=target.machine, dims=DimSpace(()))
    run_pipeline(kernel_pipeline(target.backend), module, ctx)
    return build_kernels(kernels_of(module), target.backend, target.machine).sources
