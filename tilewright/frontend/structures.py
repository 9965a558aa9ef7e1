"""Torch's pytrees to plain trees: anything torch can take apart, described by data alone."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

from tilewright.errors import ArgumentError
from tilewright.ir.trees import LEAF, ORDERED, Key, Tree


def tree_of(value: Any, where: str) -> tuple[Tree, list[Any]]:
    """A value's structure and its leaves, as torch's pytree registry takes it apart."""
    import torch.utils._pytree as pytree

    leaves, spec = pytree.tree_flatten(value)
    return tree_of_spec(spec, where), leaves


def tree_of_spec(spec: Any, where: str) -> Tree:
    """The plain form of a torch TreeSpec. ArgumentError for a node whose parts have no names to keep."""
    if spec.is_leaf():
        return LEAF
    children = tuple(tree_of_spec(child, where) for child in spec.children())
    kind, context = spec.type, spec.context
    if kind in (list, tuple):
        return Tree("list" if kind is list else "tuple", children=children)
    # named tuples are all registered under one factory; their context is the class
    named = context if isinstance(context, type) else kind
    # torch's own result types (of x.max(dim)) are structure sequences: their names are the pattern arguments
    fields = getattr(named, "_fields", None) or _keys(context, len(children)) or getattr(named, "__match_args__", None)
    is_dict = isinstance(kind, type) and issubclass(kind, dict) and not dataclasses.is_dataclass(kind)
    if getattr(named, "__module__", "") == "torch" and named.__name__ == "Size":
        # a program runs without torch, and has no such class to give
        raise ArgumentError(f"{where} holds a torch.Size", step="make it a tuple of sizes: tuple(x.shape)")
    if fields is None or (not is_dict and not all(isinstance(field, str) for field in fields)):
        raise ArgumentError(
            f"{where} holds a {named.__name__}, whose parts have no names",
            step="pass dicts, lists, tuples, dataclasses (torch.export.register_dataclass) or named tuples",
        )
    if is_dict:
        return Tree("dict", tuple(fields), children, ORDERED if kind is OrderedDict else None)
    return Tree("record", tuple(fields), children, f"{named.__module__}:{named.__qualname__}")


def _keys(context: Any, count: int) -> list[Key] | None:
    """The names of the children in a pytree context: a list of them, alone or nested in a pair."""
    if isinstance(context, (list, tuple)):
        if len(context) == count and all(isinstance(key, (str, int)) for key in context):
            return list(context)
        for part in context:
            if isinstance(part, (list, tuple)) and len(part) == count:
                return list(part)
    return None
