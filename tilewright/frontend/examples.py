"""Example arguments: what the user calls their parts, which axes are declared to vary, and the sizes to export with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tilewright.errors import ArgumentError
from tilewright.frontend.structures import tree_of
from tilewright.ir.dims import Dim
from tilewright.ir.signature import Parameter, bind_call
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
    """The example arguments of a capture, in the order in which they were given.

    given: the sizes that the declared dims have in the user's own arguments.
    """

    parameters: tuple[Parameter, ...]
    entries: tuple[Entry, ...]
    dims: tuple[Dim, ...] = ()
    given: Mapping[str, int] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Leaf]:
        return [leaf for entry in self.entries for leaf in entry.leaves]

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for a call with these values."""
        values = {entry.name: entry.tree.rebuild(iter([leaf.value for leaf in entry.leaves])) for entry in self.entries}
        args = tuple(values[entry.name] for entry in self.entries if entry.keyword is None)
        return args, {entry.keyword: values[entry.name] for entry in self.entries if entry.keyword is not None}

    def with_values(self, values: Sequence[Any]) -> Example:
        """The same example with other values for its leaves, in order."""
        rest = iter(values)
        entries = tuple(
            replace(entry, leaves=tuple(replace(leaf, value=next(rest)) for leaf in entry.leaves))
            for entry in self.entries
        )
        return replace(self, entries=entries)

    def resized(self, sizes: Mapping[str, int]) -> Example:
        """The same example with declared axes of the given sizes; every tensor is an object of its own."""
        return self.with_values([_resize(leaf, sizes) for leaf in self.leaves])


def bind(forward: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Example:
    """The example arguments by the parameters of `forward`; arrays become tensors. ArgumentError if they do not fit."""
    signature = inspect.signature(forward)
    bound = bind_call(signature, args, kwargs, step=f"give example inputs: {_example_line(signature)}")
    parameters = tuple(Parameter.of(p) for p in signature.parameters.values())
    names = iter(_positional_names(signature))
    entries = [_entry(next(names), None, value) for value in bound.args[: len(args)]]
    entries += [_entry(name, name, value) for name, value in kwargs.items()]
    return Example(parameters, tuple(entries))


def _example_line(signature: inspect.Signature) -> str:
    """The `args=` and `kwargs=` of the parameters that need a value: args=(ids, mask), kwargs={"scale": scale}."""
    parameters = signature.parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    placed = [p.name for p in needed if p.kind != p.KEYWORD_ONLY]
    named = ", ".join(f'"{p.name}": {p.name}' for p in needed if p.kind == p.KEYWORD_ONLY)
    line = f"args=({', '.join(placed)}{',' if len(placed) == 1 else ''})"
    return f"{line}, kwargs={{{named}}}" if named else line


def _positional_names(signature: inspect.Signature) -> Iterator[str]:
    for parameter in signature.parameters.values():
        if parameter.kind == inspect.Parameter.VAR_POSITIONAL:
            for index in range(1 << 30):
                yield f"{parameter.name}.{index}"
        yield parameter.name


def _entry(name: str, keyword: str | None, value: Any) -> Entry:
    tree, values = tree_of(value, name)
    leaves = tuple(Leaf(path, _as_tensor(path, v)) for path, v in zip(tree.paths(name), values, strict=True))
    return Entry(name, keyword, tree, leaves)


def _as_tensor(name: str, value: Any) -> Any:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor) and (value.is_nested or value.layout != torch.strided):
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ArgumentError(f"{name} is a {kind} tensor", step="give example tensors that are dense")
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


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
