"""Exported programs handed over as they are: their arguments and the dims their dynamic axes stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tilewright.errors import ArgumentError, DimDeclarationError
from tilewright.frontend.declaring import declare
from tilewright.frontend.examples import Entry, Example, Leaf
from tilewright.frontend.structures import tree_of
from tilewright.ir.dims import Dim
from tilewright.ir.signature import Parameter


def example(program: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dims: Mapping[str, Any] | None) -> Example:
    """The program's example arguments with its dynamic axes as dims: as declared, else named by their symbols."""
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
    return _declared(declare(found, dims), shapes) if dims else _named(found, shapes, program.range_constraints)


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


def _dim(symbol: Any, bounds: Any) -> Dim:
    """A symbol as a dim, in the range for which the program was exported: by default that starts at 2."""
    low, high = (_finite(getattr(bounds, side, None)) for side in ("lower", "upper"))
    return Dim(str(symbol), max(low or 0, 1 if symbol.is_positive else 0), high)


def _finite(bound: Any) -> int | None:
    return int(bound) if getattr(bound, "is_Integer", False) else None


def _named(found: Example, shapes: list[list[Any]], ranges: Mapping[Any, Any]) -> Example:
    """Every dynamic axis under the name of its symbol, with the range the program was exported for."""
    dims: dict[str, Dim] = {}
    rows = iter(shapes)
    entries = []
    for entry in found.entries:
        leaves = []
        for leaf in entry.leaves:
            symbols = [s if s is not None and s.is_Symbol else None for s in next(rows)]
            axes = [None if s is None else dims.setdefault(str(s), _dim(s, ranges.get(s))) for s in symbols]
            leaves.append(replace(leaf, axes=tuple(axes)))
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
