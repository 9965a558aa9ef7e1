"""Puts a capture together: `@main` with its arguments, weights, states and results, and the signature of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xdsl.ir import Block, SSAValue

from tilewright.errors import CaptureError, Problem
from tilewright.frontend.builder import Builder, Weak
from tilewright.frontend.captured import Captured, Source
from tilewright.frontend.exporting import Exported
from tilewright.frontend.externs import Externs
from tilewright.frontend.liveness import live_nodes
from tilewright.frontend.lowering import GraphLowering, arrange
from tilewright.frontend.operand_dtypes import PARTS_APART
from tilewright.frontend.operators import ATTENTION
from tilewright.frontend.proving import nonnegative
from tilewright.frontend.registry import Unsupported
from tilewright.frontend.state_updates import update_in_place
from tilewright.frontend.structures import tree_of_spec
from tilewright.frontend.symbols import Symbols
from tilewright.frontend.weights import Tensors, pattern
from tilewright.ir.attributes import Str
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DTYPES, from_torch_name, torch_name
from tilewright.ir.entry_attributes import require
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import ConstantOp, FuncOp, StateReadOp, StateWriteOp, WeightOp
from tilewright.ir.module import new_module
from tilewright.ir.operation import LOC
from tilewright.ir.signature import Argument, Input, Output, Signature
from tilewright.ir.types import TensorType

_ATTENTIONS = (ATTENTION, "aten.scaled_dot_product_attention.default")


def assemble(exported: Exported, tensors: Tensors, *, source: str, notes: Sequence[str], fallback: str) -> Captured:
    """Lowers an exported program into a captured module. UnsupportedOpError lists what has no lowering."""
    program, symbols = exported.program, exported.symbols
    graph = program.graph_module.graph
    externs = Externs() if fallback == "torch" else None
    arguments, types = _arguments(exported)
    main = FuncOp.begin("main", types)
    builder = Builder(main.block, symbols)
    builder.token_dims = token_dims(graph, builder)
    lowering = GraphLowering(builder, externs=externs)
    lowering.inputs = {n: leaf.name for n, leaf in zip(_user_nodes(program), exported.example.leaves, strict=True)}
    _bind(lowering, program, tensors, list(main.block.args))

    lowered = lowering.run(program.graph_module)
    lowering.require_supported()
    results, outputs, mutations, states = _results(program, _placeholder_names(exported), lowered)
    became: dict[SSAValue, SSAValue] = {}
    for name, value in states:
        became |= update_in_place(main.block, name, value)
    results = [became.get(value, value) for value in results]
    states = [(name, became.get(value, value)) for name, value in states]
    arrange(main.block, [*results, *(value for _, value in states)])
    _require_sizes(main.block, symbols)
    for name, value in states:
        builder.add(StateWriteOp.make(value, name=name))
    names = [*_result_names(program, outputs), *[f"mutated.{name}" for name, _ in mutations]]
    main.finish(results, names)

    module = new_module(exported.example.dims)
    require(module, exported.guards())
    module.body.block.add_op(main)
    module.body.block.add_ops(lowering.launches.kernels.values())
    mutated = {name for name, _ in mutations}
    return Captured(
        module=module,
        weights=tensors.weights,
        aliases=dict(tensors.aliases),
        transient=frozenset(tensors.transient),
        states=tensors.states,
        signature=Signature(
            parameters=exported.example.parameters,
            arguments=tuple(_marked(a, mutated) for a in arguments),
            output=tree_of_spec(program.call_spec.out_spec, "the output"),
            outputs=outputs,
            mutations=tuple(mutations),
        ),
        dims=exported.example.dims,
        notes=tuple(notes),
        source=Source(source, captured_by(), dict(lowering.operators)),
        externs=externs.functions if externs is not None else {},
    )


def _require_sizes(block: Block, symbols: Symbols) -> None:
    """Holds the calls to sizes at which no axis is shorter than nothing: x[1:] beside x[:-1] of an x without a row."""
    for op in block.ops:
        for result in op.results:
            if isinstance(result.type, TensorType):
                for size in result.type.dims:
                    if size.constant is None and not nonnegative(symbols.space, size):
                        where = op.attributes.get(LOC)
                        symbols.require(Expr.of(0), "<=", size, where.data if isinstance(where, Str) else None)


def captured_by() -> str:
    """The library that traced the model, with its version."""
    import torch

    return f"torch.export {torch.__version__}"


def _arguments(exported: Exported) -> tuple[list[Argument], dict[str, TensorType]]:
    """The captured arguments, and @main's: one for each tensor among them."""
    arguments: list[Argument] = []
    types: dict[str, TensorType] = {}
    nodes = iter(_user_nodes(exported.program))
    for entry in exported.example.entries:
        inputs: list[Input] = []
        for leaf in entry.leaves:
            fake = next(nodes).meta.get("val")
            if not leaf.is_tensor:
                inputs.append(Input(leaf.name, constant=leaf.value))
                continue
            dtype = from_torch_name(str(leaf.value.dtype))
            if dtype is None:
                problem = Problem(f"{leaf.name} is {leaf.value.dtype}, which the IR has no type for")
                step = f"pass it in one of {', '.join(map(torch_name, DTYPES.values()))}"
                if leaf.value.is_complex():
                    step = f"{PARTS_APART}, which the model takes back with torch.view_as_complex"
                raise CaptureError(problem, step=step)
            declared = tuple(
                Expr.of(dim) if dim is not None else Expr.of(int(size))
                for dim, size in zip(leaf.axes or (None,) * leaf.value.dim(), leaf.value.shape, strict=True)
            )
            inputs.append(Input(leaf.name, dtype, declared))
            types[leaf.name] = TensorType.of(exported.symbols.dims(fake.shape), dtype)
        arguments.append(Argument(entry.name, entry.tree, tuple(inputs)))
    return arguments, types


def _user_nodes(program: Any) -> list[Any]:
    """The placeholders of the arguments' leaves, in order."""
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    return [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]


def _placeholder_names(exported: Exported) -> dict[str, str]:
    """The user's name of each of those placeholders."""
    leaves = exported.example.leaves
    return {node.name: leaf.name for node, leaf in zip(_user_nodes(exported.program), leaves, strict=True)}


def token_dims(graph: Any, builder: Builder) -> set[Expr]:
    """The varying sizes that count queries of an attention: what counts up to them counts tokens."""
    found: set[Expr] = set()
    for node in graph.nodes:
        if str(node.target) in _ATTENTIONS and hasattr(node.args[0], "meta"):
            try:
                size = builder.type_of(node.args[0].meta["val"]).dims[-2]
            except Unsupported:
                continue
            if not size.is_static:
                found.add(size)
    return found


def _bind(lowering: GraphLowering, program: Any, tensors: Tensors, arguments: list[SSAValue]) -> None:
    """Gives every placeholder its value: an argument of @main, a weight, a state, or numbers written into the graph."""
    builder = lowering.builder
    made: dict[str, SSAValue] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    rest = iter(arguments)
    live = live_nodes(program.graph)
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if specs[node.name].kind.name == "USER_INPUT":
            lowering.values[node] = next(rest) if hasattr(value, "shape") else value
        elif node in live and node.name in tensors.roles:
            role, name = tensors.roles[node.name]
            if name not in made:
                made[name] = stored(builder, tensors, role, name, value)
            lowering.values[node] = made[name]
            lowering.weights[node] = name


def stored(builder: Builder, tensors: Tensors, role: str, name: str, fake: Any) -> SSAValue:
    """A tensor of the model as a value: a weight, a state, or its numbers."""
    try:
        found = builder.type_of(fake)
    except Unsupported as verdict:
        step = "convert the module with .to(dtype) before compiling"
        raise CaptureError(Problem(f"{name}: {verdict} is not supported"), step=step) from verdict
    if role == "state":
        return builder.add(StateReadOp.make(name=name, result_types=[found])).results[0]
    if role == "weight":
        return builder.add(WeightOp.make(name=name, result_types=[found])).results[0]
    value = tensors.inline[name]
    follows = pattern(value) or {}
    if "start" in follows:
        return builder.iota(found.dims, found.rank - 1, found.dtype, start=follows["start"])
    numbers = [follows["splat"]] if "splat" in follows else value.reshape(-1).tolist()
    return builder.add(ConstantOp.of(numbers, found.dims, found.dtype)).results[0]


def _results(
    program: Any, names: Mapping[str, str], lowered: list[Any]
) -> tuple[list[SSAValue], tuple[Output, ...], list[tuple[str, int]], list[tuple[str, SSAValue]]]:
    """@main's results, the leaves of the user's output, the mutated inputs and the states to write.

    names: the user's name of each placeholder that is an argument.
    """
    results: list[SSAValue] = []
    outputs: list[Output] = []
    mutations: list[tuple[str, int]] = []
    states: list[tuple[str, SSAValue]] = []
    for spec, value in zip(program.graph_signature.output_specs, lowered, strict=True):
        kind = spec.kind.name
        if kind == "BUFFER_MUTATION":
            states.append((spec.target, value))
        elif kind == "USER_INPUT_MUTATION":
            mutations.append((names.get(spec.target, spec.target), len(results)))
            results.append(value)
        else:
            outputs.append(output_of(value, results))
    # the user's outputs come first, so that result i of most programs is output i
    order = [o.index for o in outputs if o.index is not None] + [index for _, index in mutations]
    place = {old: new for new, old in enumerate(order)}
    moved = [o if o.index is None else Output(o.dtype, o.dims, index=place[o.index]) for o in outputs]
    return [results[i] for i in order], tuple(moved), [(n, place[i]) for n, i in mutations], states


def output_of(value: Any, results: list[SSAValue]) -> Output:
    """A leaf of a call's output as what it was lowered to says: a tensor joins the results, a size or constant not."""
    if isinstance(value, SSAValue):
        results.append(value)
        return Output(tensor(value).dtype, tensor(value).dims, index=len(results) - 1)
    if isinstance(value, Weak):
        raise CaptureError(
            "an output is a float computed from sizes; a compiled program returns tensors, sizes and constants",
            step="return the size itself, and compute the float where the model is called",
        )
    return Output(size=value) if isinstance(value, Expr) else Output(constant=value)


def _result_names(program: Any, outputs: Sequence[Output]) -> list[str]:
    tree = tree_of_spec(program.call_spec.out_spec, "the output")
    return [path or "out" for path, out in zip(tree.paths(""), outputs, strict=True) if out.index is not None]


def _marked(argument: Argument, mutated: set[str]) -> Argument:
    inputs = tuple(
        Input(i.name, i.dtype, i.dims, i.constant, mutated=True) if i.name in mutated else i for i in argument.inputs
    )
    return Argument(argument.name, argument.tree, inputs)
