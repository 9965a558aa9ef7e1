"""Which nodes of an exported graph the program needs, after looking through what lowering will not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.frontend.operators import MASK

# Ops that keep consecutive integers consecutive along the last axis.
_KEEPING = {
    "aten.unsqueeze.default",
    "aten.expand.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.to.dtype",
    "aten.to.device",
    "aten.to.dtype_layout",
    "aten._to_copy.default",
    "aten.lift_fresh_copy.default",
}


def consecutive(node: Any) -> bool:
    """Whether a tensor of positions is proved to count upwards by one along its last axis, the same in every row."""
    while str(node.target) in _KEEPING or _adds_constant(node):
        if str(node.target) == "aten.unsqueeze.default" and node.args[1] in (-1, node.args[0].meta["val"].dim()):
            return False
        node = node.args[0]
    name = str(node.target)
    return name in ("aten.arange.default", "aten.arange.start") or (
        name == "aten.arange.start_step" and (node.args[2] if len(node.args) > 2 else 1) == 1
    )


def _adds_constant(node: Any) -> bool:
    if str(node.target) not in ("aten.add.Tensor", "aten.add.Scalar"):
        return False
    # sizes are the same for every element, so they shift all positions alike
    other = node.args[1]
    return isinstance(other, int) or (hasattr(other, "meta") and not hasattr(other.meta.get("val"), "dim"))


def operands(node: Any) -> list[Any]:
    """The nodes that lowering reads: sizes come from the traced shapes, and plain positions need no operand."""
    value = node.meta.get("val")
    if node.op == "call_function" and not hasattr(value, "dim") and type(value).__name__ in ("SymInt", "int"):
        return []
    if str(node.target) == MASK and len(node.args) > 1 and node.args[1] is not None and consecutive(node.args[1]):
        return [node.args[0]] if node.args[0] is not None else []
    return list(node.all_input_nodes)


def live_nodes(graph: Any, reads: Callable[[Any], list[Any]] = operands) -> set[Any]:
    """The nodes that the output depends on."""
    live: set[Any] = set()
    for node in reversed(list(graph.nodes)):
        if node.op == "output" or node in live:
            live.update(reads(node))
    return live
