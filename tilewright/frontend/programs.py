"""Exported programs handed over as they are: their arguments and the dims their dynamic axes stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tilewright.errors import ArgumentError, DimDeclarationError
from tilewright.frontend.declaring import declare
from tilewright.frontend.examples import Entry, Example, Leaf
from tilewright.frontend.structures import tree_of
from tilewright.frontend.symbols import finite, least_asked
from tilewright.ir.dims import Dim
from tilewright.ir.signature import Parameter


def example(program: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dims: Mapping[str, Any] | None) -> Example:
    """The program's example arguments with its dynamic axes as dims: as declared, else as exported."""
    if not args and not kwargs:
        if program.example_inputs is None:
            raise ArgumentError("the program carries no example inputs", step="pass args=(...) as it was exported with")
        args, kwargs = program.example_inputs
    names = _names(program, len(args), kwargs)
    entries: list[Entry] = []
    for name, keyword, value in [
        *((name, None, value) for name, value in zip(names, args, strict=False)),
        *((name, name, value) for name, value in kwargs.items()),
    ]:
        tree, values = tree_of(value, name)
        leaves = tuple(Leaf(path, v) for path, v in zip(tree.paths(name), values, strict=True))
        entries.append(Entry(name, keyword, tree, leaves))
    parameters = [Parameter(name) for name in names[: len(args)]]
    parameters += [Parameter(name, "keyword") for name in kwargs]
    found = Example(tuple(parameters), tuple(entries))
    shapes = _dynamic(program, len(found.leaves))
    if dims:
        return _declared(declare(found, dims), shapes)
    env = _shape_env(program)
    return _named(found, shapes, _traced_ranges(program, env), _known_names(env))


def _names(program: Any, count: int, kwargs: Mapping[str, Any]) -> list[str]:
    """The parameters' names, where the exporter kept them."""
    graph = getattr(program, "module_call_graph", None)
    kept = getattr(graph[0].signature, "forward_arg_names", None) if graph else None
    positional = [name for name in kept or [] if name not in kwargs]
    return positional if len(positional) >= count else [f"arg{i}" for i in range(count)]


def _dynamic(program: Any, count: int) -> list[list[Any]]:
    """For each leaf of the arguments, the symbol of each axis, or None where it is fixed."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    found: list[list[Any]] = []
    for value in values[len(values) - count :]:
        shape = getattr(value, "shape", ())
        found.append([n.node.expr if hasattr(n, "node") else None for n in shape])
    return found


def _shape_env(program: Any) -> Any:
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    return next((v.fake_mode.shape_env for v in values if hasattr(v, "fake_mode")), None)


def _traced_ranges(program: Any, env: Any) -> dict[Any, tuple[int, int | None]]:
    """The sizes of each symbol for which the program was traced: a declared range may start below them."""
    found = {}
    for symbol, declared in program.range_constraints.items():
        traced = getattr(env, "var_to_range", {}).get(symbol, declared)
        lows = [finite(bounds.lower) or 0 for bounds in (declared, traced)]
        highs = [high for bounds in (declared, traced) if (high := finite(bounds.upper)) is not None]
        found[symbol] = max(*lows, least_asked(symbol, env)), min(highs, default=None)
    return found


def _known_names(env: Any) -> dict[str, str]:
    """The names that the exporting user gave, by symbol: a program in memory still has them, a file does not."""
    given: Mapping[str, str] = getattr(env, "source_name_to_debug_name", {})
    names = {}
    for symbol, sources in getattr(env, "var_to_sources", {}).items():
        texts = [source.name if isinstance(source.name, str) else source.name() for source in sources]
        names.update({str(symbol): given[text] for text in texts if text in given})
    return names


def _named(
    found: Example,
    shapes: list[list[Any]],
    ranges: Mapping[Any, tuple[int, int | None]],
    names: Mapping[str, str],
) -> Example:
    """Every dynamic axis as a dim with the range it was exported for, by the name that it was exported with where that
    is known, else by the first axis that has it.
    """
    dims: dict[str, Dim] = {}
    rows = iter(shapes)
    entries = []
    for entry in found.entries:
        leaves = []
        for leaf in entry.leaves:
            symbols = [s if s is not None and s.is_Symbol else None for s in next(rows)]
            for axis, symbol in enumerate(symbols):
                if symbol is not None and str(symbol) not in dims:
                    plain = f"{leaf.name.replace('.', '_')}_{axis}"
                    dims[str(symbol)] = Dim(names.get(str(symbol), plain), *ranges.get(symbol, (0, None)))
            leaves.append(replace(leaf, axes=tuple(None if s is None else dims[str(s)] for s in symbols)))
        entries.append(replace(entry, leaves=tuple(leaves)))
    return replace(found, entries=tuple(entries), dims=tuple(dims.values()))


def _declared(found: Example, shapes: list[list[Any]]) -> Example:
    """The declared dims, which must cover exactly the axes that the program left dynamic."""
    problems = []
    for leaf, symbols in zip(found.leaves, shapes, strict=True):
        for axis, symbol in enumerate(symbols):
            dim = leaf.axes[axis] if leaf.axes else None
            if symbol is not None and symbol.is_Symbol and dim is None:
                problems.append(f"{leaf.name} axis {axis} is dynamic in the program and has no dim")
    if problems:
        raise DimDeclarationError(problems, step="declare a dim for each dynamic axis, or leave dims out")
    return found
