"""The table from operators of an exported graph to functions that build graph ops.

A lowering is a function of the builder and the operator's own arguments, under the names of its schema: tensors arrive
as SSA values, sizes as `Expr`, everything else as Python values. It returns one value, or a tuple for several results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeAlias, TypeVar

Lowering: TypeAlias = Callable[..., Any]
_Lowering = TypeVar("_Lowering", bound=Lowering)

_LOWERINGS: Final[dict[str, Lowering]] = {}
_FAMILIES: Final = (
    "elementwise",
    "angles",
    "powers",
    "special",
    "activations",
    "comparison",
    "shape",
    "combining",
    "indexing",
    "embedding",
    "creation",
    "contraction",
    "convolution",
    "pooling",
    "reduction",
    "ordering",
    "parts",
    "normalisation",
    "attention",
    "packed_attention",
    "routing",
    "recurrence",
)


class Unsupported(Exception):  # noqa: N818  (a verdict on one node; all of them become one UnsupportedOpError)
    """The operator, or this way of calling it, has no form in the graph dialect; the message says which."""


def lowers(*operators: str) -> Callable[[_Lowering], _Lowering]:
    """Registers a function as the lowering of operators named as torch prints them: "aten.add.Tensor"."""

    def register(function: _Lowering) -> _Lowering:
        for name in operators:
            _LOWERINGS[name] = function
        return function

    return register


@cache
def lowerings() -> dict[str, Lowering]:
    """Every lowering by operator name."""
    for family in _FAMILIES:
        import_module(f"tilewright.frontend.aten.{family}")
    return _LOWERINGS
