"""Operators without a lowering of their own, by what torch says they are made of.

A lowering is written where an operator has a form in the graph dialect that is better than a composition. The other
operators, a long tail (interpolation, grid sampling, distances, folds of windows), arrive as compositions of those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from tilewright.frontend import custom_ops
from tilewright.frontend.aten.complex import takes_parts
from tilewright.frontend.registry import lowerings

_CALLED: Final = "tilewright.called"


def table_for(targets: set[Any]) -> dict[Any, Callable[..., Any]]:
    """What the operators of a graph are made of that have no lowering; empty where all have one.

    Of no others: what an operator is made of asks for sizes that the operator itself does not ask for. The parts may
    have no lowering in their turn, and are asked for again.
    """
    own = custom_ops.decompositions(targets)
    # what writes to its operand arrives as the operator that does not
    unknown = {
        target
        for target in targets
        if hasattr(target, "_schema")
        and target not in own
        and not _is_known(str(target))
        and not _is_known(str(target).replace("_.", "."))
    }
    made = compositions() if unknown else {}
    return {**{target: made[target] for target in unknown if target in made}, **own}


def name_operators(program: Any) -> None:
    """Keeps with each operator of an exported program what it is called, for the parts that it is taken apart into."""
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        for node in graph.nodes if graph is not None else ():
            if hasattr(node.target, "_schema"):
                # the one entry of a node's meta that torch hands on to whatever comes of the node
                node.meta["custom"] = {**node.meta.get("custom", {}), _CALLED: str(node.target)}


def called(node: Any) -> str:
    """The operator that the model called and that a node is a part of, or the node's own."""
    return str(node.meta.get("custom", {}).get(_CALLED, node.target))


@cache
def compositions() -> dict[Any, Callable[..., Any]]:
    """torch's decompositions of all operators that have no lowering."""
    import torch
    from torch._decomp import decomposition_table

    composite: Any = torch.export.default_decompositions()
    # torch's references, the rest of that table, are made of its primitives, which nothing lowers
    written = {op: f for op, f in decomposition_table.items() if f.__module__ == "torch._decomp.decompositions"}
    found = {**written, **dict(composite.items()), **_made_here()}
    return {op: function for op, function in found.items() if not _is_known(str(op))}


def _made_here() -> dict[Any, Callable[..., Any]]:
    """Operators that torch's tables leave out, by what torch itself says of them elsewhere."""
    import torch
    from torch import _refs as references

    return {
        torch.ops.aten.triu_indices.default: references.triu_indices,
        torch.ops.aten.tril_indices.default: references.tril_indices,
    }


def _is_known(name: str) -> bool:
    return name in lowerings() or takes_parts(name) or custom_ops.registered(name) is not None
