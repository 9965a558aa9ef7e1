"""torch.export under our rules: declared axes dynamic, everything else static, every failure a coded error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tilewright.errors import CaptureError, SpecialisationError, TilewrightError
from tilewright.frontend.conversions import explained, recorded, unrolled
from tilewright.frontend.custom_ops import require_agreement
from tilewright.frontend.decomposing import name_operators, table_for
from tilewright.frontend.examples import Example
from tilewright.frontend.export_faults import capture_error, shared_memory, with_partners
from tilewright.frontend.generic_sizes import generic_sizes
from tilewright.frontend.guarding import Fact, Settled, settled, traced_facts
from tilewright.frontend.keywords import with_named_keywords
from tilewright.frontend.lean_tracing import lean_tracing
from tilewright.frontend.liveness import live_nodes
from tilewright.frontend.program_guards import carried_facts
from tilewright.frontend.quiet import quiet
from tilewright.frontend.repeated_layers import repeating
from tilewright.frontend.shape_functions import with_open_sizes
from tilewright.frontend.sizing import export_sizes, raised_sizes, sizes_of
from tilewright.frontend.slicing import name_slices
from tilewright.frontend.symbols import Symbols, admitted, require_admitted
from tilewright.frontend.varying_lengths import with_varying_lengths
from tilewright.ir.dims import Dim, DimSpace, Expr
from tilewright.ir.guards import Guard, distinct

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Exported:
    """A functional exported program, the example it was exported with and the dims its symbols stand for.

    traced: the program as it was exported. own: the sizes of the user's example, which every guard admits.
    layout_asked: whether the model asked how a tensor lies in memory, which torch answers without a record.
    """

    program: ExportedProgram
    traced: ExportedProgram
    example: Example
    symbols: Symbols
    settled: Settled
    own: Mapping[str, int]
    layout_asked: bool = False

    def guards(self) -> tuple[Guard, ...]:
        """The guards, those that lowering came to rely on included. SpecialisationError as for torch's own."""
        space = self.symbols.space
        found = settled(
            [Fact.of(guard, space) for guard in self.symbols.required.values()], space, self.own, doubts=False
        )
        return distinct((*self.settled.guards, *found.guards))


def export(model: torch.nn.Module, example: Example) -> Exported:
    """Exports a module with its declared dims dynamic.

    Tries sizes that collide with nothing first, so that no dim is fixed by an accidental equality. A model that only
    works at sizes like the example's (multiples of something, equal dims), or that takes another branch at those, is
    then exported with those.
    """
    taken = {int(n) for tensor in (*model.parameters(), *model.buffers()) for n in tensor.shape}
    own = sizes_of(example)
    attempts = [export_sizes(example, taken), raised_sizes(own), own]
    fault: TilewrightError | None = None
    for number, sizes in enumerate(attempts):
        if sizes in attempts[:number]:
            continue
        try:
            return _attempt(model, example.resized(sizes), own)
        except TilewrightError as failure:
            # that a dim is fixed says more than how a model fails at sizes of our choice
            if not isinstance(fault, SpecialisationError) or isinstance(failure, SpecialisationError):
                fault = failure
    if isinstance(fault, SpecialisationError):
        raise with_partners(fault, example) from fault
    raise fault if fault is not None else CaptureError("nothing was exported", step="give example arguments")


def _attempt(model: torch.nn.Module, example: Example, own: Mapping[str, int]) -> Exported:
    import torch

    args, kwargs = example.call()
    model = with_named_keywords(model, kwargs)
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in example.leaves:
        dynamic = {axis: _dynamic(dim) for axis, dim in enumerate(leaf.axes) if dim is not None}
        if dynamic:
            shapes[leaf.value] = dynamic
    with generic_sizes(zero=any(dim.min == 0 for dim in example.dims)) as asked, recorded() as conversions:
        try:
            with quiet(), torch.no_grad(), lean_tracing(), with_open_sizes(), with_varying_lengths(), repeating(model):
                spec = shapes.dynamic_shapes(model, args, kwargs) if example.dims else None
                program = torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False)
        except TilewrightError:
            raise
        except Exception as fault:
            raise capture_error(fault, example, model) from fault
        try:
            return replace(describe(program, example, own, doubts=True), layout_asked=asked.layout)
        except SpecialisationError as fault:
            raise unrolled(explained(fault, conversions), model) from fault


def _dynamic(dim: Dim) -> Any:
    import torch

    bounds: dict[str, int] = {}
    if dim.min > 2:
        bounds["min"] = dim.min
    # the exporter reasons about sizes of 2 and more; below that it would see an empty range
    if dim.max is not None and dim.max > 3:
        bounds["max"] = dim.max
    return torch.export.Dim.AUTO(**bounds) if bounds else torch.export.Dim.AUTO


def describe(program: ExportedProgram, example: Example, own: Mapping[str, int], *, doubts: bool) -> Exported:
    """The dims behind an exported program's symbols, and the program itself in functional form.

    example: as the program was exported with. own: the sizes of the user's example. doubts: there is a model to try
    doubtful facts with.
    """
    traced, program = program, functional(program, example)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    # weights come first among the placeholders, then the leaves of the arguments in order
    inputs = values[len(values) - len(example.leaves) :]
    shape_env: Any = next((v.fake_mode.shape_env for v in inputs if hasattr(v, "fake_mode")), None)
    names: dict[Any, Expr] = {}
    standing: list[tuple[Dim, Any]] = []
    for leaf, value in zip(example.leaves, inputs, strict=True):
        for axis, dim in enumerate(leaf.axes):
            if dim is None:
                continue
            size = value.shape[axis]
            symbol = shape_env.replace(size.node.expr) if hasattr(size, "node") else size
            standing.append((dim, symbol))
            if getattr(symbol, "is_Symbol", False):
                names.setdefault(symbol, Expr.of(dim))
    found = {dim.name: admitted(dim, symbol, shape_env) for dim, symbol in standing}
    # the ranges of a trace are torch's own guards over again, which say more and are tried out where there is a model
    require_admitted(replace(e, low=e.dim.min, high=e.dim.max) if doubts else e for e in found.values())
    space = DimSpace(example.dims)
    if not all(_admits(dim, own[dim.name]) for dim in example.dims):
        own = sizes_of(example)
    symbols = Symbols(shape_env, space, names, own)
    # two dims that the model needs equal share a symbol: the first names it, the others are checked against it
    same = {(dim.name, symbols.size(symbol)) for dim, symbol in standing}
    equal = [Guard(Expr.of(name), "==", size) for name, size in sorted(same, key=str) if Expr.of(name) != size]
    name_slices(symbols, program)
    facts = [
        *(Fact.of(guard, space) for guard in equal),
        *traced_facts(symbols),
        *carried_facts(program, example, symbols),
    ]
    sorted_out = settled(facts, space, own, doubts=doubts)
    require_admitted(replace(e, low=e.dim.min) for e in found.values() if e.dim.max is None)
    return Exported(program, traced, example, symbols, sorted_out, own)


def _admits(dim: Dim, size: int) -> bool:
    return dim.min <= size and (dim.max is None or size <= dim.max)


def functional(program: ExportedProgram, example: Example) -> ExportedProgram:
    """The program without in-place ops and without operators that only what they are made of says.

    Programs that have none are left as they are: decomposing costs seconds. A table without composite ops (linear,
    attention, norms) keeps them whole.
    """
    name_operators(program)
    if any(_is_impure(node) for node in _all_nodes(program)):
        # first, because another trace resolves some operators by itself
        program = _decomposed(program, {}, example)
    table: dict[Any, Any] = {}
    while new := {op: made for op, made in table_for(_lowered_targets(program)).items() if op not in table}:
        table |= new
        program = _decomposed(program, table, example)
    return program


def _lowered_targets(program: ExportedProgram) -> set[Any]:
    """The operators of a program that are going to be lowered."""
    import torch

    # neither the exporter's assertions, nor its questions for sizes, nor masks whose rule is known are lowered
    dead = set(program.graph.nodes) - live_nodes(program.graph)
    given = [
        node
        for node in _all_nodes(program)
        if node.users and node not in dead and isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))
    ]
    require_agreement(given)
    return {node.target for node in given if node.op == "call_function"}


def _decomposed(program: ExportedProgram, table: dict[Any, Any], example: Example) -> ExportedProgram:
    try:
        with quiet(), with_open_sizes():
            found: ExportedProgram = program.run_decompositions(table)
            return found
    except TilewrightError:
        raise
    except Exception as fault:
        raise shared_memory(fault, program) or capture_error(fault, example) from fault


def _all_nodes(program: ExportedProgram) -> list[Any]:
    return [n for module in program.graph_module.modules() if hasattr(module, "graph") for n in module.graph.nodes]


def _is_impure(node: Any) -> bool:
    """Whether a node writes to its operands, or is a mark of vmap that only another trace resolves."""
    schema = getattr(node.target, "_schema", None)
    is_mark = str(getattr(node.target, "__module__", "")).startswith("torch._functorch")
    return node.op == "call_function" and (bool(getattr(schema, "is_mutable", False)) or is_mark)
