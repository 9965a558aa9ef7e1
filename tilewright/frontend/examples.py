"""Example arguments: what the user calls their parts, which axes are declared to vary, and the sizes to export with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tilewright.errors import ArgumentError, DimDeclarationError
from tilewright.frontend.structures import tree_of
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.signature import Parameter
from tilewright.ir.trees import Tree

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Leaf:
    """One part of the arguments: its name, its value (a torch tensor or a plain constant) and the dims of its axes."""

    name: str
    value: Any
    axes: tuple[Dim | None, ...] = ()

    @property
    def is_tensor(self) -> bool:
        return hasattr(self.value, "shape")


@dataclass(frozen=True)
class Entry:
    """One argument as given: the parameter it binds to (or an entry of *args or **kwargs), its structure and leaves."""

    name: str
    keyword: str | None
    tree: Tree
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class Example:
    """The example arguments of a capture, in the order in which they were given."""

    parameters: tuple[Parameter, ...]
    entries: tuple[Entry, ...]
    dims: tuple[Dim, ...] = ()

    @property
    def leaves(self) -> list[Leaf]:
        return [leaf for entry in self.entries for leaf in entry.leaves]

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for a call with these values."""
        values = {entry.name: entry.tree.rebuild(iter([leaf.value for leaf in entry.leaves])) for entry in self.entries}
        args = tuple(values[entry.name] for entry in self.entries if entry.keyword is None)
        return args, {entry.keyword: values[entry.name] for entry in self.entries if entry.keyword is not None}

    def resized(self, sizes: Mapping[str, int]) -> Example:
        """The same example with declared axes of the given sizes; every tensor is an object of its own."""
        entries = tuple(
            replace(entry, leaves=tuple(replace(leaf, value=_resize(leaf, sizes)) for leaf in entry.leaves))
            for entry in self.entries
        )
        return replace(self, entries=entries)


def bind(forward: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Example:
    """The example arguments by the parameters of `forward`; arrays become tensors. ArgumentError where they do not fit."""
    signature = inspect.signature(forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as fault:
        raise ArgumentError(str(fault), step=f"give example arguments for forward{signature}") from fault
    parameters = tuple(Parameter.of(p) for p in signature.parameters.values())
    names = iter(_positional_names(signature))
    entries = [_entry(next(names), None, value) for value in bound.args[: len(args)]]
    entries += [_entry(name, name, value) for name, value in kwargs.items()]
    return Example(parameters, tuple(entries))


def _positional_names(signature: inspect.Signature) -> Iterator[str]:
    for parameter in signature.parameters.values():
        if parameter.kind == inspect.Parameter.VAR_POSITIONAL:
            for index in range(1 << 30):
                yield f"{parameter.name}.{index}"
        yield parameter.name


def _entry(name: str, keyword: str | None, value: Any) -> Entry:
    tree, values = tree_of(value, name)
    leaves = tuple(Leaf(path, _as_tensor(v)) for path, v in zip(tree.paths(name), values, strict=True))
    return Entry(name, keyword, tree, leaves)


def _as_tensor(value: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def declare(example: Example, dims: Mapping[str, Any] | None) -> Example:
    """The example with its declared axes marked. DimDeclarationError lists every entry that does not fit."""
    if not dims:
        return example
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
    if problems:
        raise DimDeclarationError(
            problems, step='write dims={"ids": (B, T)} or dims={"ids": {1: T}}, following the arguments'
        )
    used = {axis.name: axis for entry in entries for leaf in entry.leaves for axis in leaf.axes if axis is not None}
    space = DimSpace(dim for listed in specs.values() for spec in listed for dim in _dims_in(spec))
    known_dims = tuple(space.dims.get(name, dim) for name, dim in used.items())
    return _without_single_sizes(replace(example, entries=entries, dims=known_dims))


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
    keys = tree.keys if tree.kind in ("dict", "record") else tuple(range(len(tree.children)))
    if isinstance(spec, (list, tuple)) and tree.kind in ("list", "tuple"):
        spec = dict(enumerate(spec))
    if not isinstance(spec, Mapping):
        problems.append(f"{where} is a {tree.kind}: its dims must be one too, got {type(spec).__name__}")
        return [None] * tree.leaves
    problems += [f"{where} has no part {key!r}" for key in spec if key not in keys]
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
    elif isinstance(spec, (list, tuple)) and len(spec) == rank:
        axes = list(spec)
    elif spec is not None:
        shape = ", ".join(map(str, leaf.value.shape))
        problems.append(
            f"{leaf.name} has {rank} axes ({shape}), dims gives {spec!r}: one entry an axis, None where fixed"
        )
    return tuple(_axis(leaf, axis, item, named, problems) for axis, item in enumerate(axes))


def _axis(leaf: Leaf, axis: int, item: Any, named: dict[str, Dim], problems: list[str]) -> Dim | None:
    size = leaf.value.shape[axis]
    if isinstance(item, str):
        item = named.setdefault(item, Dim(item))
    if isinstance(item, Dim):
        return item
    if item is not None and item != size:
        problems.append(f"{leaf.name} axis {axis} is {size}, dims gives {item!r}: a Dim, its name, {size} or None")
    return None


def export_sizes(example: Example, taken: set[int]) -> dict[str, int]:
    """A size for each declared dim to export with: distinct, 3 or more, unlike any static size, within bounds if it can be.

    The exporter decides by these sizes, so an equality that holds by accident would become part of the graph.
    """
    sizes: dict[str, int] = {}
    static = taken | {
        int(n)
        for leaf in example.leaves
        for n, dim in zip(leaf.value.shape if leaf.is_tensor else (), leaf.axes, strict=False)
        if dim is None
    }
    for dim in example.dims:
        low, high = max(dim.min, 3), dim.max
        choices = [n for n in _primes_from(low, 400) if n not in sizes.values()]
        inside = [n for n in choices if high is None or n <= high]
        free = [n for n in inside if n not in static]
        sizes[dim.name] = (free or inside or choices)[0]
    return sizes


def own_sizes(example: Example) -> dict[str, int]:
    """The sizes the user's example has, with those below 3 raised: dims that are equal there stay equal."""
    sizes: dict[str, int] = {}
    for leaf in example.leaves:
        for size, dim in zip(leaf.value.shape if leaf.is_tensor else (), leaf.axes, strict=False):
            if dim is not None:
                sizes.setdefault(dim.name, int(size))
    free = iter([n for n in _primes_from(3, 8 + len(sizes)) if n not in sizes.values()])
    raised = {size: next(free) for size in set(sizes.values()) if size < 3}
    return {name: raised.get(size, size) for name, size in sizes.items()}


def _primes_from(low: int, count: int) -> list[int]:
    found: list[int] = []
    candidate = low
    while len(found) < count and candidate < low + 100_000:
        if all(candidate % k for k in range(2, int(candidate**0.5) + 1)):
            found.append(candidate)
        candidate += 1
    return found


def _resize(leaf: Leaf, sizes: Mapping[str, int]) -> Any:
    """The leaf's tensor with declared axes of the given sizes: its own values repeated, so that indices stay valid."""
    if not leaf.is_tensor:
        return leaf.value
    import torch

    value: torch.Tensor = leaf.value.detach()
    for axis, dim in enumerate(leaf.axes):
        if dim is None or dim.name not in sizes or value.shape[axis] == sizes[dim.name]:
            continue
        old, new = value.shape[axis], sizes[dim.name]
        if old == 0:
            value = value.new_zeros([new if i == axis else n for i, n in enumerate(value.shape)])
        else:
            value = value.index_select(axis, torch.arange(new, device=value.device) % old)
    # the exporter tells tensors apart by identity, and one object may have been given twice
    return value.clone() if value is leaf.value or value.data_ptr() == leaf.value.data_ptr() else value
