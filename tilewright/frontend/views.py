"""Results that are views: a graph's outputs taken apart into tensors to compute and views of them to make.

Two outputs of a torch function may share memory, and a result of `permute` is no copy. Programs give tensors of their
own, row by row; so the views at a graph's end are left to torch, which moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Views:
    """The end of a graph. module: from the tensors computed, then the integers, to the graph's outputs. integers: the
    numbers of the graph's arguments that are integers.
    """

    module: Any
    integers: tuple[int, ...]

    def __call__(self, computed: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The graph's outputs. arguments: all of the graph's."""
        return list(self.module(*computed, *(arguments[i] for i in self.integers)))


def split_views(graph_module: Any) -> Views | None:
    """Makes a functional graph give what its outputs are views of, each once, and gives what makes the outputs of that.

    None, and the graph as it was, where every output is a tensor of its own. Views of the graph's inputs are not
    touched: who asked for the graph restores them.
    """
    import torch

    graph = graph_module.graph
    (output,) = [node for node in graph.nodes if node.op == "output"]
    leaves = list(output.args[0])
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    integers = [node for node in placeholders if not hasattr(node.meta.get("val"), "shape")]
    owners = {leaf: _owner(leaf, integers) for leaf in leaves if isinstance(leaf, torch.fx.Node)}
    computed = list(dict.fromkeys(owners.values()))
    if computed == [leaf for leaf in leaves if leaf in owners]:
        return None
    tail = torch.fx.Graph()
    made = {node: tail.placeholder(f"computed_{i}") for i, node in enumerate(computed)}
    made |= {node: tail.placeholder(node.name) for node in integers if node not in made}
    for node in graph.nodes:
        if node not in made and node.op == "call_function" and any(_leads(node, leaf, owners) for leaf in owners):
            made[node] = tail.node_copy(node, lambda operand: made[operand])
    tail.output([made[leaf] if leaf in owners else leaf for leaf in leaves])
    output.args = (tuple(computed),)
    graph.eliminate_dead_code()
    taken = tuple(i for i, node in enumerate(placeholders) if node in integers and node not in computed)
    return Views(torch.fx.GraphModule(graph_module, tail), taken)


def _storages(node: Any) -> set[int]:
    """The memory that a node's value lies in; several for a tuple of tensors."""
    value = node.meta.get("val")
    parts = value if isinstance(value, (tuple, list)) else [value]
    return {part.untyped_storage()._cdata for part in parts if hasattr(part, "untyped_storage")}


def _owner(leaf: Any, integers: Sequence[Any]) -> Any:
    """The tensor that an output is a view of: itself, where it is none, or a view of an input."""
    chain = _chain(leaf)
    owner = [node for node in chain if hasattr(node.meta.get("val"), "shape")][-1] if chain else leaf
    if owner.op in ("placeholder", "get_attr"):
        return leaf
    between = chain[: chain.index(owner)] if chain else []
    # sizes must come from what the end of the graph is given
    reachable = all(_given(operand, owner, between, integers) for node in between for operand in node.all_input_nodes)
    return owner if reachable else leaf


def _chain(leaf: Any) -> list[Any]:
    """The nodes from an output to the first with its memory."""
    memory = _storages(leaf)
    if not hasattr(leaf.meta.get("val"), "shape"):
        return []
    chain = [leaf]
    while (source := next((n for n in chain[-1].all_input_nodes if memory & _storages(n)), None)) is not None:
        chain.append(source)
    return chain


def _given(node: Any, owner: Any, between: Sequence[Any], integers: Sequence[Any]) -> bool:
    if node is owner or node in between or node in integers:
        return True
    is_size = node.op == "call_function" and not hasattr(node.meta.get("val"), "shape")
    return is_size and all(_given(operand, owner, between, integers) for operand in node.all_input_nodes)


def _leads(node: Any, leaf: Any, owners: dict[Any, Any]) -> bool:
    """Whether a node is a step from an output's owner to the output, or a size that such a step reads."""
    chain = _chain(leaf)
    steps = chain[: chain.index(owners[leaf])] if chain else []
    pending, seen = [operand for step in steps for operand in step.all_input_nodes], set(steps)
    while pending:
        operand = pending.pop()
        if operand not in seen and operand is not owners[leaf] and operand.op == "call_function":
            seen.add(operand)
            pending += operand.all_input_nodes
    return node in seen
