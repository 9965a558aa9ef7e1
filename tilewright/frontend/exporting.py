"""torch.export under our rules: declared axes dynamic, everything else static, every failure a coded error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.errors import CaptureError, TilewrightError
from tilewright.frontend.captured import Guard
from tilewright.frontend.examples import Example
from tilewright.frontend.export_faults import capture_error
from tilewright.frontend.keywords import with_named_keywords
from tilewright.frontend.quiet import quiet
from tilewright.frontend.sizing import export_sizes, own_sizes
from tilewright.frontend.symbols import Symbols, admitted, require_admitted
from tilewright.ir.dims import Dim, DimSpace, Expr

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Exported:
    """A functional exported program, the example it was exported with and the dims its symbols stand for."""

    program: ExportedProgram
    example: Example
    symbols: Symbols
    guards: tuple[Guard, ...]


def export(model: torch.nn.Module, example: Example) -> Exported:
    """Exports a module with its declared dims dynamic.

    Tries sizes that collide with nothing first, so that no dim is fixed by an accidental equality. A model that only
    works at sizes like the example's (multiples of something, equal dims) is then exported with those.
    """
    taken = {int(n) for tensor in (*model.parameters(), *model.buffers()) for n in tensor.shape}
    attempts = [export_sizes(example, taken)]
    own = own_sizes(example)
    if own not in attempts:
        attempts.append(own)
    fault: TilewrightError | None = None
    for sizes in attempts:
        try:
            return _attempt(model, example.resized(sizes))
        except TilewrightError as failure:
            fault = failure
    raise fault if fault is not None else CaptureError("nothing was exported", step="give example arguments")


def _attempt(model: torch.nn.Module, example: Example) -> Exported:
    import torch

    args, kwargs = example.call()
    model = with_named_keywords(model, kwargs)
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in example.leaves:
        dynamic = {axis: _dynamic(dim) for axis, dim in enumerate(leaf.axes) if dim is not None}
        if dynamic:
            shapes[leaf.value] = dynamic
    try:
        with quiet(), torch.no_grad():
            spec = shapes.dynamic_shapes(model, args, kwargs) if example.dims else None
            program = torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False)
    except TilewrightError:
        raise
    except Exception as fault:
        raise capture_error(fault, example) from fault
    return describe(program, example)


def _dynamic(dim: Dim) -> Any:
    import torch

    bounds: dict[str, int] = {}
    if dim.min > 2:
        bounds["min"] = dim.min
    # the exporter reasons about sizes of 2 and more; below that it would see an empty range
    if dim.max is not None and dim.max > 3:
        bounds["max"] = dim.max
    return torch.export.Dim.AUTO(**bounds) if bounds else torch.export.Dim.AUTO


def describe(program: ExportedProgram, example: Example) -> Exported:
    """The dims behind an exported program's symbols, and the program itself in functional form."""
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
    require_admitted({dim.name: admitted(dim, symbol, shape_env) for dim, symbol in standing}.values())
    symbols = Symbols(shape_env, DimSpace(example.dims), names)
    # two dims that the model needs equal share a symbol: the first names it, the others are checked against it
    same = {(dim.name, symbols.size(symbol)) for dim, symbol in standing}
    equal = [Guard(Expr.of(name), "==", size) for name, size in sorted(same, key=str) if Expr.of(name) != size]
    return Exported(functional(program, example), example, symbols, (*equal, *symbols.guards()))


def functional(program: ExportedProgram, example: Example) -> ExportedProgram:
    """The program without in-place ops. Programs that have none are left as they are: decomposing costs seconds.

    The empty table keeps composite ops (linear, attention, norms) whole.
    """
    if not any(_is_impure(node) for module in program.graph_module.modules() for node in _nodes(module)):
        return program
    try:
        with quiet():
            decomposed: ExportedProgram = program.run_decompositions({})
            return decomposed
    except TilewrightError:
        raise
    except Exception as fault:
        raise capture_error(fault, example) from fault


def _nodes(module: Any) -> list[Any]:
    return list(module.graph.nodes) if hasattr(module, "graph") else []


def _is_impure(node: Any) -> bool:
    """Whether a node writes to its operands, or is a mark of vmap that only another trace resolves."""
    schema = getattr(node.target, "_schema", None)
    is_mark = str(getattr(node.target, "__module__", "")).startswith("torch._functorch")
    return node.op == "call_function" and (bool(getattr(schema, "is_mutable", False)) or is_mark)
