"""The registry of functions that `graph.extern` may call: what the graph dialect has no op for, kept in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

EXTERNS: Final[dict[str, Callable[..., Any]]] = {}


def register_extern(name: str) -> Callable[[Function], Function]:
    """Registers a function of torch tensors (then constants by name) under the name that `callee` gives.

    It results in a tensor or a tuple of tensors and must not change its arguments.
    """

    def register(function: Function) -> Function:
        EXTERNS[name] = function
        return function

    return register
