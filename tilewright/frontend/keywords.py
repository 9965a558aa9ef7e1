"""Tensors that reach forward through **kwargs, under parameters of their own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def with_named_keywords(model: torch.nn.Module, kwargs: Mapping[str, Any]) -> torch.nn.Module:
    """A module whose forward names every keyword argument of the example.

    The exporter cannot match dynamic shapes to the parts of **kwargs. Where the example has such parts, a shallow copy
    of the module (its parameters and submodules are the same objects) gets a forward that lists them.
    """
    signature = inspect.signature(model.forward)
    variable = [p for p in signature.parameters.values() if p.kind == inspect.Parameter.VAR_KEYWORD]
    unnamed = [name for name in kwargs if name not in signature.parameters]
    if not variable or not unnamed:
        return model
    named = copy.copy(model)
    inner = model.forward.__func__ if inspect.ismethod(model.forward) else None

    def forward(*args: Any, **given: Any) -> Any:
        return model.forward(*args, **given) if inner is None else inner(named, *args, **given)

    kept = [p for p in signature.parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in unnamed]
    forward.__signature__ = signature.replace(parameters=[*kept, *extra])  # type: ignore[attr-defined]
    named.__dict__["forward"] = forward
    return named
