"""Dims as the user declares them, matched to the axes of the example arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any

from tilewright.errors import DimDeclarationError
from tilewright.frontend.examples import Entry, Example, Leaf
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.trees import Tree


def declare(example: Example, dims: Mapping[str, Any] | None) -> Example:
    """The example with its declared axes marked. DimDeclarationError lists every entry that does not fit."""
    if not dims:
        return example
    if not isinstance(dims, Mapping):
        raise DimDeclarationError(
            f"dims is a {type(dims).__name__}, not a mapping from argument names to axes",
            step=f"follow the arguments: {_pattern(example, ())}",
        )
    problems: list[str] = []
    known = [entry.name for entry in example.entries]
    problems += [f"dims names {name!r}, the arguments are {', '.join(known)}" for name in dims if name not in known]
    specs = {e.name: _leaf_specs(e.tree, dims.get(e.name), e.name, problems) for e in example.entries}
    named: dict[str, Dim] = {}
    for spec in (s for listed in specs.values() for s in listed):
        for dim in _dims_in(spec):
            named.setdefault(dim.name, dim)
    entries = tuple(
        replace(
            entry,
            leaves=tuple(
                replace(leaf, axes=_axes(leaf, spec, named, problems))
                for leaf, spec in zip(entry.leaves, specs[entry.name], strict=True)
            ),
        )
        for entry in example.entries
    )
    problems += _disagreements(entries)
    if problems:
        raise DimDeclarationError(problems, step=f"follow the arguments: {_pattern(example, dims)}")
    used = {axis.name: axis for entry in entries for leaf in entry.leaves for axis in leaf.axes if axis is not None}
    space = DimSpace(dim for listed in specs.values() for spec in listed for dim in _dims_in(spec))
    known_dims = tuple(space.dims.get(name, dim) for name, dim in used.items())
    given = {
        axis.name: int(leaf.value.shape[i])
        for entry in entries
        for leaf in entry.leaves
        for i, axis in enumerate(leaf.axes)
        if axis is not None
    }
    outside = [
        f"{dim.name} is {given[dim.name]} in the example, and declared {dim}"
        for dim in known_dims
        # a dim of one size is that size, whatever the example has
        if dim.min != dim.max and (given[dim.name] < dim.min or (dim.max is not None and given[dim.name] > dim.max))
    ]
    if outside:
        raise DimDeclarationError(
            outside, step="declare a range that holds the example's sizes, or give another example"
        )
    return _without_single_sizes(replace(example, entries=entries, dims=known_dims, given=given))


def _pattern(example: Example, named: Iterable[Any]) -> str:
    """A dims line to paste and edit: a tensor of the arguments with a dim on its first axis, nested as it is passed.

    named: the names that the user wrote; the first argument among them, also by the path of a part, is the one shown.
    """
    wanted = [str(name).partition(".")[0] for name in named]
    entries = sorted(example.entries, key=lambda e: wanted.index(e.name) if e.name in wanted else len(wanted))
    for entry in entries:
        for leaf, path in zip(entry.leaves, _paths(entry.tree), strict=True):
            if leaf.is_tensor and leaf.value.dim():
                line = '{0: tw.Dim("batch", 1, 64)}'
                for key in reversed([entry.name, *path]):
                    line = f"{{{json.dumps(key) if isinstance(key, str) else key}: {line}}}"
                return f"dims={line}"
    return "dims=None, because no argument is a tensor with axes"


def _paths(tree: Tree) -> Iterator[tuple[Any, ...]]:
    """The keys on the way to each leaf."""
    if tree.kind == "leaf":
        yield ()
        return
    for key, child in zip(_keys(tree), tree.children, strict=True):
        yield from ((key, *rest) for rest in _paths(child))


def _keys(tree: Tree) -> Sequence[Any]:
    """What dims names the parts of a nested argument by."""
    return tree.keys if tree.kind in ("dict", "record") else range(len(tree.children))


def _without_single_sizes(example: Example) -> Example:
    """The example with the dims that admit one size only turned into that size: nothing varies there."""
    single = {dim.name: dim.min for dim in example.dims if dim.min == dim.max}
    example = example.resized(single) if single else example
    entries = tuple(
        replace(
            entry,
            leaves=tuple(
                replace(leaf, axes=tuple(None if dim is None or dim.name in single else dim for dim in leaf.axes))
                for leaf in entry.leaves
            ),
        )
        for entry in example.entries
    )
    return replace(example, entries=entries, dims=tuple(dim for dim in example.dims if dim.name not in single))


def _leaf_specs(tree: Tree, spec: Any, where: str, problems: list[str]) -> list[Any]:
    """One declaration (or None) for each leaf, following the argument's structure."""
    if spec is None or tree.kind == "leaf":
        return [spec] * tree.leaves
    keys = _keys(tree)
    if isinstance(spec, (list, tuple)) and tree.kind in ("list", "tuple"):
        spec = dict(enumerate(spec))
    if not isinstance(spec, Mapping):
        problems.append(f"{where} is a {tree.kind}: its dims must be one too, got {type(spec).__name__}")
        return [None] * tree.leaves
    parts = f"its parts are {', '.join(map(repr, keys))}" if keys else "it is empty"
    problems += [f"{where} has no part {key!r}: {parts}" for key in spec if key not in keys]
    return [
        leaf
        for key, child in zip(keys, tree.children, strict=True)
        for leaf in _leaf_specs(child, spec.get(key), f"{where}.{key}", problems)
    ]


def _dims_in(spec: Any) -> list[Dim]:
    items = spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, (list, tuple)) else ()
    return [item for item in items if isinstance(item, Dim)]


def _axes(leaf: Leaf, spec: Any, named: dict[str, Dim], problems: list[str]) -> tuple[Dim | None, ...]:
    """The dim of each axis of one leaf."""
    if not leaf.is_tensor:
        if spec is not None:
            problems.append(f"{leaf.name} is {leaf.value!r}, not a tensor: it has no dims")
        return ()
    rank = leaf.value.dim()
    axes: list[Any] = [None] * rank
    if isinstance(spec, Mapping):
        for axis, item in spec.items():
            if not isinstance(axis, int) or not -rank <= axis < rank:
                problems.append(f"{leaf.name} has {rank} axes, dims names axis {axis!r}")
            else:
                axes[axis] = item
    elif isinstance(spec, (list, tuple)) and len(spec) <= rank:
        # axes after those named are fixed
        axes[: len(spec)] = spec
    elif spec is not None:
        shape = ", ".join(map(str, leaf.value.shape))
        problems.append(
            f"{leaf.name} has {rank} axes ({shape}), dims gives {_counted(spec)} an axis,"
            " None where fixed, none for fixed axes at the end"
        )
    return tuple(_axis(leaf, axis, item, named, problems) for axis, item in enumerate(axes))


def _counted(spec: Any) -> str:
    """What stands where the entries of a tensor's axes belong."""
    if isinstance(spec, (list, tuple)):
        return f"{len(spec)} entries: one"
    if isinstance(spec, (Dim, str)):
        return f"the dim {spec.name if isinstance(spec, Dim) else spec!r} without its axis: write one entry"
    return f"{spec!r} alone: write one entry"


def _axis(leaf: Leaf, axis: int, item: Any, named: dict[str, Dim], problems: list[str]) -> Dim | None:
    size = leaf.value.shape[axis]
    if isinstance(item, str):
        item = named.setdefault(item, Dim(item))
    if isinstance(item, Dim):
        return item
    if isinstance(item, (int, NoneType)) and not isinstance(item, bool):
        if item is not None and item != size:
            problems.append(f"{leaf.name} axis {axis} is {size} in the example, but dims says {item}")
    elif type(item).__module__.startswith("torch.export"):
        problems.append(f"{leaf.name} axis {axis} is given a torch.export.Dim; use tw.Dim(name, least, largest)")
    else:
        problems.append(
            f"{leaf.name} axis {axis} is given {item!r}, which is neither a tw.Dim, nor a dim's name, nor {size}, "
            "nor None for fixed"
        )
    return None


def _disagreements(entries: tuple[Entry, ...]) -> list[str]:
    """Axes of the example that share a dim and have different sizes."""
    first: dict[str, tuple[int, str]] = {}
    problems: list[str] = []
    for leaf in (leaf for entry in entries for leaf in entry.leaves):
        for axis, dim in enumerate(leaf.axes):
            if dim is None:
                continue
            size, where = int(leaf.value.shape[axis]), f"{leaf.name} axis {axis}"
            known, elsewhere = first.setdefault(dim.name, (size, where))
            if known != size:
                problems.append(f"{dim.name} is {known} at {elsewhere} of the example and {size} at {where}")
    return problems
