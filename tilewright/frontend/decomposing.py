"""Operators without a lowering of their own, by what torch says they are made of.

A lowering is written where an operator has a form in the graph dialect that is better than a composition. The other
operators, a long tail (interpolation, grid sampling, distances, folds of windows), arrive as compositions of those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tilewright.frontend import custom_ops
from tilewright.frontend.aten.complex import takes_parts
from tilewright.frontend.registry import lowerings


def table_for(targets: set[Any]) -> dict[Any, Callable[..., Any]]:
    """What the operators of a graph are made of that have no lowering; empty where all have one.

    With any such operator the table names all: what one is made of may be made of others.
    """
    own = custom_ops.decompositions(targets)
    operators = [target for target in targets if hasattr(target, "_schema") and target not in own]
    # what writes to its operand arrives as the operator that does not
    if all(_is_known(str(target)) or _is_known(str(target).replace("_.", ".")) for target in operators):
        return own
    return {**compositions(), **own}


@cache
def compositions() -> dict[Any, Callable[..., Any]]:
    """torch's decompositions of all operators that have no lowering."""
    import torch
    from torch._decomp import decomposition_table

    composite: Any = torch.export.default_decompositions()
    # torch's references, the rest of that table, are made of its primitives, which nothing lowers
    written = {op: f for op, f in decomposition_table.items() if f.__module__ == "torch._decomp.decompositions"}
    found = {**written, **dict(composite.items())}
    return {op: function for op, function in found.items() if not _is_known(str(op))}


def _is_known(name: str) -> bool:
    return name in lowerings() or takes_parts(name) or custom_ops.registered(name) is not None
