"""One call of a layer under a tracer: what it is given, whether another is like it, and what it adds to the graph.

`repeated_layers` copies what the first of like calls added; `replayed_layers` holds later calls against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import torch

PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))
MOST_TEMPLATES: Final = 6
"""So many calls of a stack are kept as such that others may be like."""


def stacks_of(model: torch.nn.Module) -> dict[int, list[Any]]:
    """For each module that stands in a list with others of its class: all modules of the list."""
    import torch

    found: dict[int, list[Any]] = {}
    for module in model.modules():
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
            layers = list(module)
            if len({id(layer) for layer in layers}) > 1:
                found |= {id(one): layers for one in layers if sum(type(o) is type(one) for o in layers) > 1}
    return found


def alike(a: Any, b: Any) -> bool:
    """Whether two attributes or arguments are the same for whoever reads them."""
    if isinstance(a, PLAIN):
        return type(a) is type(b) and (a is b or bool(a == b))
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, (dict, set)) and not a:
        return type(a) is type(b) and not b
    return a is b


def hooked(layer: Any) -> bool:
    """Whether anything is called before or after a layer or a part of it."""
    return any(
        held
        for module in layer.modules()
        for name, held in vars(module).items()
        if name.endswith("_hooks") and isinstance(held, dict)
    )


@dataclass
class LayerCall:
    """A call of a layer under a tracer. tensors: its arguments' and own tensors by place, with their nodes."""

    tracer: Any
    layer: Any
    path: str
    given: tuple[Any, Any]
    spec: Any
    leaves: list[Any]
    tensors: dict[str, tuple[Any, Any]]
    modes: tuple[Any, ...]

    @staticmethod
    def of(tracer: Any, layer: Any, args: Any, kwargs: Any) -> LayerCall | None:
        """None where a tensor among the arguments or of the layer has no node of its own."""
        import torch
        from torch.utils import _pytree as pytree

        leaves, spec = pytree.tree_flatten((args, kwargs))
        own = [*layer.named_parameters(remove_duplicate=False), *layer.named_buffers(remove_duplicate=False)]
        tensors: dict[str, tuple[Any, Any]] = {}
        for place, value in [*((f"#{i}", leaf) for i, leaf in enumerate(leaves)), *own]:
            if isinstance(value, torch.Tensor):
                proxy = tracer.tensor_tracker.get(value)
                if proxy is None or proxy.constant is not None:
                    return None
                tensors[place] = (value, proxy.proxy.node)
        path = tracer.path_of_module(layer) if hasattr(tracer, "scope_root") else ""
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        return LayerCall(tracer, layer, path, (args, kwargs), spec, leaves, tensors, modes)

    def nodes_like(self, other: LayerCall) -> dict[Any, Any] | None:
        """The other call's nodes by this one's, place by place; None where the calls are not alike."""
        if self.tracer is not other.tracer or self.spec != other.spec or self.modes != other.modes:
            return None
        if self.tensors.keys() != other.tensors.keys():
            return None
        there: dict[Any, Any] = {}
        back: dict[Any, Any] = {}
        for place, (value, node) in self.tensors.items():
            theirs, their_node = other.tensors[place]
            if not _same_kind(value, theirs):
                return None
            if there.setdefault(node, their_node) is not their_node or back.setdefault(their_node, node) is not node:
                return None
        for number, (a, b) in enumerate(zip(self.leaves, other.leaves, strict=True)):
            if f"#{number}" not in self.tensors and not _same_number(a, b):
                return None
        return there


def _same_kind(a: Any, b: Any) -> bool:
    """Whether two traced tensors have one shape, layout and dtype, symbol by symbol."""
    return (
        type(a) is type(b)
        and a.dtype == b.dtype
        and a.device == b.device
        and a.requires_grad == b.requires_grad
        and len(a.shape) == len(b.shape)
        and all(_same_number(x, y) for x, y in zip((*a.shape, *a.stride()), (*b.shape, *b.stride()), strict=True))
        and _same_number(a.storage_offset(), b.storage_offset())
    )


def _same_number(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return type(a) is type(b) and bool(a.node.expr == b.node.expr)
    return alike(a, b) if isinstance(a, PLAIN) else a is b and isinstance(a, (torch.dtype, torch.device))


class Made(NamedTuple):
    """What a call added. nodes: in order. out: what it returned, leaf by leaf. out_spec: how that is nested."""

    nodes: list[Any]
    out: list[Any]
    out_spec: Any


def recorded(call: LayerCall, run: Callable[[], Any]) -> tuple[Any, Made | None]:
    """What a call returns, and what it added to the graph; None where that cannot stand for another call."""
    from torch.utils import _pytree as pytree

    graph = call.tracer.graph
    last = graph._root._prev
    before = {id(m): dict(vars(m)) for m in call.layer.modules()}
    out = run()
    changed = any(not _unchanged(before[id(m)], vars(m)) for m in call.layer.modules() if id(m) in before)
    leaves, spec = pytree.tree_flatten(call.given)
    if changed or spec != call.spec or any(a is not b for a, b in zip(leaves, call.leaves, strict=True)):
        return out, None
    nodes = []
    node = last._next
    while node is not graph._root:
        nodes.append(node)
        node = node._next
    flat, out_spec = pytree.tree_flatten(out)
    fits = _is_closed(call, nodes) and _is_followed(call, flat, set(nodes))
    return out, Made(nodes, flat, out_spec) if fits else None


def _unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.keys() == now.keys() and all(now[n] is v for n, v in before.items())


def _is_closed(call: LayerCall, nodes: list[Any]) -> bool:
    """Whether the nodes are pure operators on each other, on the call's tensors and on sizes."""
    known = {node for _, node in call.tensors.values()} | set(nodes)
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        tags = getattr(node.target, "tags", ())
        if (
            node.op != "call_function"
            or getattr(schema, "is_mutable", False)
            or any(tag.name == "nondeterministic_seeded" for tag in tags)
            or "unbacked_bindings" in node.meta
        ):
            return False
        if any(n not in known and not is_size(n) for n in node.all_input_nodes):
            return False
    return True


def _is_followed(call: LayerCall, out: list[Any], nodes: set[Any]) -> bool:
    """Whether every tensor that a call returns is one that it was given, or new and in memory of its own."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    given = {id(value) for value, _ in call.tensors.values()}
    for leaf in out:
        if isinstance(leaf, torch.Tensor) and id(leaf) not in given:
            proxy = call.tracer.tensor_tracker.get(leaf)
            if type(leaf) is not FakeTensor or proxy is None or proxy.constant is not None:
                return False
            if proxy.proxy.node not in nodes:
                return False
        elif not isinstance(leaf, (torch.Tensor, *PLAIN)):
            return False
    return True


def is_size(node: Any) -> bool:
    """Whether a node gives a number and no tensor."""
    value = node.meta.get("val")
    return hasattr(value, "node") and not hasattr(value, "shape")
