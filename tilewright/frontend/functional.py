"""Functional graphs to `@main`: what torch.compile hands over, one piece of a program between two graph breaks.

Everything that the graph reads is an argument of the graph: tensors, parameters among them, and integers that stand for
sizes. An integer that no tensor's shape gives is a tensor of one element of `@main`, and a dim read from it. Dims are
never negative: an integer that may be is the difference of two of them, of which one is 0 in every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from xdsl.ir import SSAValue

from tilewright.errors import CaptureError, DeviceError, Problem
from tilewright.frontend.agreeing import compare_sizes
from tilewright.frontend.assembling import captured_by, output_of, stored, token_dims
from tilewright.frontend.builder import Builder
from tilewright.frontend.captured import Captured, Source
from tilewright.frontend.liveness import live_nodes
from tilewright.frontend.lowering import REFUSED, GraphLowering, arrange
from tilewright.frontend.operand_dtypes import PARTS_APART
from tilewright.frontend.registry import Unsupported
from tilewright.frontend.symbols import Symbols, finite
from tilewright.frontend.weights import Tensors, is_structure
from tilewright.ir.dims import Dim, DimSpace, Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.entry_attributes import Read, require, set_reads
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.module import new_module
from tilewright.ir.signature import Argument, Input, Output, Parameter, Signature
from tilewright.ir.solve import solvable
from tilewright.ir.trees import LEAF, Tree
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Functional:
    """A captured piece. arguments: for each tensor of a call to the program, the number of the graph's argument.
    signs: by the number of such a tensor, for those that hold an integer n of the graph: 1 for max(n, 0), -1 for
    max(-n, 0).
    """

    captured: Captured
    arguments: tuple[int, ...]
    signs: Mapping[int, int]


def capture_functional(graph_module: Any, frozen: Mapping[int, tuple[str, torch.Tensor]]) -> Functional:
    """Captures a functional graph of ATen operators whose placeholders carry fake tensors and symbolic sizes.

    frozen: by the placeholder's number, the name and value of tensors that become weights of the program.
    Raises UnsupportedOpError listing what has no lowering, DeviceError for tensors elsewhere than on the CPU,
    CaptureError for a dtype that the IR lacks.
    """
    graph = graph_module.graph
    tensors = Tensors()
    constants = _lift_constants(graph_module, tensors)
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and node not in constants]
    _require_cpu(placeholders)
    compare_sizes(graph)
    symbols = _symbols(placeholders)
    taken = _arguments(graph, placeholders, symbols, frozen)
    told = [Read(part.dim, i) for i, (_, part) in enumerate(taken) if part is not None]
    symbols.space = _taken_dims(symbols, taken, {read.dim for read in told})
    types = {_name(node, part): _type(node, symbols) for node, part in taken}
    main = FuncOp.begin("main", types)
    builder = Builder(main.block, symbols)
    builder.token_dims = token_dims(graph, builder)
    lowering = GraphLowering(builder, externs=None)
    for (node, _), argument in zip(taken, main.block.args, strict=True):
        lowering.values[node] = argument
    for number, (name, value) in frozen.items():
        tensors.weights[name] = value.detach()
        tensors.roles[placeholders[number].name] = ("weight", name)
    for node in (*placeholders, *constants):
        if not hasattr(node.meta.get("val"), "shape"):
            value = node.meta.get("val")
            lowering.values[node] = symbols.size(value) if hasattr(value, "node") else value
        elif node.name in tensors.roles:
            role, name = tensors.roles[node.name]
            lowering.values[node] = stored(builder, tensors, role, name, node.meta["val"])
            lowering.weights[node] = name
    lowered = lowering.run(graph_module)
    lowering.require_supported()
    results: list[SSAValue] = []
    outputs = tuple(output_of(None if value is REFUSED else value, results) for value in lowered)
    arrange(main.block, results)
    main.finish(results, [f"out.{i}" for i, o in enumerate(outputs) if o.index is not None])
    module = new_module(symbols.space.dims.values())
    require(module, symbols.required.values())
    set_reads(module, told)
    module.body.block.add_op(main)
    module.body.block.add_ops(lowering.launches.kernels.values())
    captured = Captured(
        module=module,
        weights=tensors.weights,
        aliases={},
        transient=frozenset(n for r, n in tensors.roles.values() if n not in {name for name, _ in frozen.values()}),
        states={},
        signature=_signature(types, outputs),
        dims=tuple(symbols.space.dims.values()),
        notes=(),
        source=Source("torch.compile graph", captured_by(), dict(lowering.operators)),
        externs={},
    )
    numbers = {node: i for i, node in enumerate(placeholders)}
    signs = {i: part.sign for i, (_, part) in enumerate(taken) if part is not None}
    return Functional(captured, tuple(numbers[node] for node, _ in taken), signs)


def _lift_constants(graph_module: Any, tensors: Tensors) -> list[Any]:
    """Tensors that the graph holds as attributes become placeholders: single numbers as such, others as weights."""
    import torch

    graph = graph_module.graph
    made: list[Any] = []
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        value = getattr(graph_module, node.target, None)
        if not isinstance(value, torch.Tensor):
            continue
        with graph.inserting_before(next(iter(graph.nodes))):
            lifted = graph.placeholder(f"constant_{len(made)}")
        lifted.meta["val"] = node.meta.get("val", value)
        node.replace_all_uses_with(lifted)
        graph.erase_node(node)
        name = f"constant.{len(made)}"
        inline = is_structure(value, lifted=True)
        (tensors.inline if inline else tensors.weights)[name] = value.detach()
        tensors.roles[lifted.name] = ("inline" if inline else "weight", name)
        made.append(lifted)
    return made


def _require_cpu(placeholders: Sequence[Any]) -> None:
    values = [(node.name, node.meta.get("val")) for node in placeholders]
    elsewhere = [f"{n} is on {v.device}" for n, v in values if hasattr(v, "device") and v.device.type != "cpu"]
    if elsewhere:
        raise DeviceError(elsewhere, step="move the model and its inputs: model.cpu()")


def _symbols(placeholders: Sequence[Any]) -> Symbols:
    """Every symbol among the arguments as the dims of its parts, with the range that it is guarded to."""
    shape_env: Any = None
    found: set[Any] = set()
    for node in placeholders:
        value = node.meta.get("val")
        for size in (*getattr(value, "shape", ()), *(() if hasattr(value, "shape") else (value,))):
            if hasattr(size, "node"):
                shape_env = size.node.shape_env
                found |= size.node.expr.free_symbols
        fake = getattr(value, "fake_mode", None)
        shape_env = shape_env or getattr(fake, "shape_env", None)
    names: dict[Any, Expr] = {}
    dims: list[Dim] = []
    own: dict[str, int] = {}
    for symbol in sorted(found, key=str):
        least, most = _range(symbol, shape_env)
        value = int(shape_env.backed_var_to_val[symbol])
        parts = _parts(str(symbol), least, most)
        names[symbol] = sum((part.sign * Expr.of(part.dim) for part in parts), start=Expr.of(0))
        for part in parts:
            low, high = (least, most) if part.sign > 0 else (None if n is None else -n for n in (most, least))
            dims.append(Dim(part.dim, max(low or 0, 0), high))
            own[part.dim] = max(part.sign * value, 0)
    return Symbols(shape_env, DimSpace(dims), names, own)


@dataclass(frozen=True, slots=True)
class _Part:
    """A dim that is an integer where that has the sign, and 0 elsewhere."""

    dim: str
    sign: int


def _parts(symbol: str, least: int | None, most: int | None) -> list[_Part]:
    """The dims whose sum, with their signs, is the symbol: one where its range has one sign."""
    signs = [1] if least is not None and least >= 0 else [-1] if most is not None and most <= 0 else [1, -1]
    return [_Part(symbol if sign > 0 else f"minus_{symbol}", sign) for sign in signs]


_UNBOUNDED: Final = 2**62
"""torch's own ends of ranges lie about here; they bound nothing."""


def _range(symbol: Any, shape_env: Any) -> tuple[int | None, int | None]:
    """What torch guards a symbol to; None where there is no end."""
    bounds: Any = shape_env.var_to_range.get(symbol)
    ends = (finite(bounds.lower), finite(bounds.upper))
    least, most = (end if end is not None and abs(end) < _UNBOUNDED else None for end in ends)
    return least, most


_Taken: TypeAlias = tuple[Any, _Part | None]
"""A placeholder that is an argument of @main; of an integer, the part that it is."""


def _arguments(graph: Any, placeholders: Sequence[Any], symbols: Symbols, frozen: Mapping[int, Any]) -> list[_Taken]:
    """The placeholders that are arguments of @main: tensors that are used, then what else it takes to know the dims of
    all that is computed. The steps of a strided input are integers of the graph that nothing is computed from.
    """
    live = live_nodes(graph)
    values = {node: node.meta.get("val") for i, node in enumerate(placeholders) if i not in frozen}
    sizes = {node: symbols.dims(v.shape) for node, v in values.items() if hasattr(v, "shape")}
    taken: list[_Taken] = [(n, None) for n in sizes if n in live]

    def known() -> set[str]:
        return solvable([d for n, part in taken if part is None for d in sizes[n]], read)

    read: set[str] = set()
    wanted = {symbol for node in live for symbol in _free(node, symbols)}
    for node, dims in sizes.items():
        if node not in live and set().union(*(d.symbols for d in dims)) & wanted - known():
            taken.append((node, None))
    for node, value in values.items():
        if hasattr(value, "node") and (symbol := value.node.expr).is_Symbol:
            for part in _parts(str(symbol), *_range(symbol, symbols.shape_env)):
                if part.dim in wanted - known():
                    taken.append((node, part))
                    read.add(part.dim)
    return taken


def _free(node: Any, symbols: Symbols) -> set[str]:
    """The dims that the sizes of what a node gives are made of."""
    found: set[str] = set()
    pending = [node.meta.get("val")]
    while pending:
        value = pending.pop()
        if isinstance(value, (tuple, list)):
            pending += value
        elif hasattr(value, "shape"):
            pending += value.shape
        elif hasattr(value, "node"):
            free = [symbols.names[s] for s in value.node.expr.free_symbols if s in symbols.names]
            found |= set().union(*(expr.symbols for expr in free))
    return found


def _name(node: Any, part: _Part | None) -> str:
    return str(node.name) if part is None or part.sign > 0 else f"minus_{node.name}"


def _is_tensor(node: Any) -> bool:
    return hasattr(node.meta["val"], "shape")


def _taken_dims(symbols: Symbols, taken: Sequence[_Taken], read: set[str]) -> DimSpace:
    """The dims of the arguments, those that no shape gives marked as read from an input."""
    shaped = [symbols.dims(node.meta["val"].shape) for node, part in taken if part is None]
    known = read.union(*(d.symbols for dims in shaped for d in dims))
    dims = [d for d in symbols.space.dims.values() if d.name in known]
    return DimSpace([Dim(d.name, d.min, d.max, "read") if d.name in read else d for d in dims])


def _type(node: Any, symbols: Symbols) -> TensorType:
    value = node.meta["val"]
    if not _is_tensor(node):
        return TensorType.of((), I64)
    try:
        return Builder.type_in(symbols, value)
    except Unsupported as verdict:
        step = "leave this part out with torch.compiler.disable"
        if value.dtype.is_complex:
            step = PARTS_APART
        raise CaptureError(Problem(f"{node.name}: {verdict} is not supported"), step=step) from verdict


def _signature(types: Mapping[str, TensorType], outputs: tuple[Output, ...]) -> Signature:
    return Signature(
        parameters=tuple(Parameter(name) for name in types),
        arguments=tuple(Argument(name, LEAF, (Input(name, t.dtype, t.dims),)) for name, t in types.items()),
        output=Tree("tuple", children=(LEAF,) * len(outputs)),
        outputs=outputs,
    )
