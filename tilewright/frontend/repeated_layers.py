"""Traces a layer that a model repeats once, and writes its operators down again for the others.

Tracing costs the same for every layer of a stack, and gives the same operators for all: layers of one class whose
attributes and tensors are alike, called with arguments that are alike, run the same Python. What the first call of such
a layer adds to the graph is copied for the next ones, with their parameters and arguments in place of the first's.
Attributes may differ (a layer's number) as long as the call did not read them. A layer is traced by itself where its
call wrote to memory, drew numbers, kept constants, changed an attribute or an argument, or used a tensor that is
neither its own nor an argument.

That a capture made in this way is right is not taken for granted: the graph is held against a trace of all layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import torch

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))
# what every module has, and what is compared by itself
_OWN: Final = ("_parameters", "_buffers", "_modules")
_MOST_TEMPLATES: Final = 6


@contextmanager
def repeating(model: torch.nn.Module) -> Iterator[None]:
    """Within it, tracers of torch copy the repeated layers of a model. Process-wide while it lasts."""
    from torch.fx.experimental import proxy_tensor

    stacks = _stacks(model)
    if not stacks:
        yield
        return
    traced: dict[int, list[_Template]] = {}
    tracers: list[Any] = [proxy_tensor.PythonKeyTracer, proxy_tensor._ModuleStackTracer]
    saved = [vars(tracer)["call_module"] for tracer in tracers]

    def calling(original: Any) -> Callable[..., Any]:
        def call_module(tracer: Any, module: Any, forward: Any, args: Any, kwargs: Any) -> Any:
            layer = module.get_base() if hasattr(module, "get_base") else module
            stack = stacks.get(id(layer))
            if stack is None or _hooked(layer):
                return original(tracer, module, forward, args, kwargs)
            call = _Call.of(tracer, layer, args, kwargs)
            known = traced.setdefault(id(stack), [])
            if call is None:
                return original(tracer, module, forward, args, kwargs)
            for template in known:
                copied = template.copied(call)
                if copied is not None:
                    return copied.out
            if len(known) == _MOST_TEMPLATES:
                return original(tracer, module, forward, args, kwargs)
            with _reads(layer, _differing(layer, stack)) as read:
                out, made = _recorded(call, lambda: original(tracer, module, forward, args, kwargs))
            if made is not None:
                known.append(_Template(call, frozenset(read), *made))
            return out

        return call_module

    try:
        for tracer, original in zip(tracers, saved, strict=True):
            tracer.call_module = calling(original)
        yield
    finally:
        for tracer, original in zip(tracers, saved, strict=True):
            tracer.call_module = original


def _stacks(model: torch.nn.Module) -> dict[int, list[Any]]:
    """For each module that stands in a list with others of its class: all modules of the list."""
    import torch

    found: dict[int, list[Any]] = {}
    for module in model.modules():
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
            layers = list(module)
            if len({id(layer) for layer in layers}) > 1:
                found |= {id(one): layers for one in layers if sum(type(o) is type(one) for o in layers) > 1}
    return found


# --- what two layers have in common -----------------------------------------------------------------------------------


def _attributes(module: Any) -> dict[str, Any]:
    return {name: held for name, held in vars(module).items() if name not in _OWN}


def _alike(a: Any, b: Any) -> bool:
    """Whether two attributes or arguments are the same for whoever reads them."""
    if isinstance(a, _PLAIN):
        return type(a) is type(b) and (a is b or bool(a == b))
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, (dict, set)) and not a:
        return type(a) is type(b) and not b
    return a is b


def _hooked(layer: Any) -> bool:
    return any(
        held
        for module in layer.modules()
        for name, held in vars(module).items()
        if name.endswith("_hooks") and isinstance(held, dict)
    )


def _different(a: Any, b: Any) -> set[tuple[str, str]] | None:
    """The attributes, by module and name, in which two layers differ; None where they are built differently."""
    pairs = list(zip(a.named_modules(), b.named_modules(), strict=False))
    if len(pairs) != sum(1 for _ in a.modules()) or len(pairs) != sum(1 for _ in b.modules()):
        return None
    found = set()
    for (path, one), (other_path, other) in pairs:
        if path != other_path or type(one) is not type(other):
            return None
        mine, theirs = _attributes(one), _attributes(other)
        names = mine.keys() | theirs.keys()
        found |= {(path, n) for n in names if n not in mine or n not in theirs or not _alike(mine[n], theirs[n])}
        for table in ("_parameters", "_buffers"):
            if getattr(one, table).keys() != getattr(other, table).keys():
                return None
    return found


def _differing(layer: Any, stack: list[Any]) -> set[tuple[str, str]]:
    """The attributes in which a layer differs from any other one of its class."""
    found: set[tuple[str, str]] = set()
    for other in stack:
        if other is not layer and type(other) is type(layer):
            found |= _different(layer, other) or set()
    return found


@contextmanager
def _reads(layer: Any, names: set[tuple[str, str]]) -> Iterator[set[tuple[str, str]]]:
    """The attributes, of these, that are read within it: the classes of their modules tell of it meanwhile."""
    read: set[tuple[str, str]] = set()
    modules = dict(layer.named_modules())
    saved = []
    for path in {path for path, _ in names}:
        module = modules[path]
        kind = type(module)
        telling = {name: _telling(path, name, read) for owner, name in names if owner == path}
        own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **telling}
        saved.append((module, kind))
        module.__class__ = type(kind.__name__, (kind,), own)
    try:
        yield read
    finally:
        for module, kind in saved:
            module.__class__ = kind


def _telling(path: str, name: str, read: set[tuple[str, str]]) -> property:
    def get(module: Any) -> Any:
        read.add((path, name))
        if name not in vars(module):
            raise AttributeError(name)
        return vars(module)[name]

    def put(module: Any, value: Any) -> None:
        read.add((path, name))
        vars(module)[name] = value

    return property(get, put)


# --- one call of a layer ----------------------------------------------------------------------------------------------


@dataclass
class _Call:
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
    def of(tracer: Any, layer: Any, args: Any, kwargs: Any) -> _Call | None:
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
        return _Call(tracer, layer, path, (args, kwargs), spec, leaves, tensors, modes)

    def nodes_like(self, other: _Call) -> dict[Any, Any] | None:
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
    return _alike(a, b) if isinstance(a, _PLAIN) else a is b and isinstance(a, (torch.dtype, torch.device))


# --- from one call to the others --------------------------------------------------------------------------------------


class _Copied(NamedTuple):
    out: Any


class _Made(NamedTuple):
    """What a call added. nodes: in order. out: what it returned, leaf by leaf. out_spec: how that is nested."""

    nodes: list[Any]
    out: list[Any]
    out_spec: Any


def _recorded(call: _Call, run: Callable[[], Any]) -> tuple[Any, _Made | None]:
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
    return out, _Made(nodes, flat, out_spec) if fits else None


def _unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.keys() == now.keys() and all(now[n] is v for n, v in before.items())


def _is_closed(call: _Call, nodes: list[Any]) -> bool:
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
        if any(n not in known and not _is_size(n) for n in node.all_input_nodes):
            return False
    return True


def _is_followed(call: _Call, out: list[Any], nodes: set[Any]) -> bool:
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
        elif not isinstance(leaf, (torch.Tensor, *_PLAIN)):
            return False
    return True


def _is_size(node: Any) -> bool:
    value = node.meta.get("val")
    return hasattr(value, "node") and not hasattr(value, "shape")


@dataclass
class _Template:
    """A call that stands for others. read: the attributes that it read of those in which layers differ."""

    call: _Call
    read: frozenset[tuple[str, str]]
    nodes: list[Any]
    out: list[Any]
    out_spec: Any

    def copied(self, call: _Call) -> _Copied | None:
        """The call's result, its operators copied into the graph; None where it is not like this one."""
        different = _different(self.call.layer, call.layer) if type(self.call.layer) is type(call.layer) else None
        if different is None or different & self.read:
            return None
        there = self.call.nodes_like(call)
        if there is None:
            return None
        graph = call.tracer.graph
        for node in self.nodes:
            if _is_size(node):
                # a size is one node of the graph, whoever asks for it
                there[node] = node
                continue
            made = graph.node_copy(node, lambda n: there.get(n, n))
            made.meta = copy.copy(node.meta)
            if "nn_module_stack" in made.meta:
                made.meta["nn_module_stack"] = _moved(made.meta["nn_module_stack"], self.call.path, call.path)
            there[node] = made
        return _Copied(self._result(call, there))

    def _result(self, call: _Call, there: Mapping[Any, Any]) -> Any:
        import torch
        from torch.fx import Proxy
        from torch.fx.experimental.proxy_tensor import snapshot_fake, track_tensor_tree
        from torch.utils import _pytree as pytree

        given = {id(value): place for place, (value, _) in self.call.tensors.items()}
        made: dict[int, Any] = {}
        for leaf in self.out:
            if not isinstance(leaf, torch.Tensor) or id(leaf) in made:
                continue
            if id(leaf) in given:
                made[id(leaf)] = call.tensors[given[id(leaf)]][0]
                continue
            fresh: Any = snapshot_fake(leaf)
            node = there[call.tracer.tensor_tracker.get(leaf).proxy.node]
            track_tensor_tree(fresh, Proxy(node, call.tracer), constant=None, tracer=call.tracer)
            made[id(leaf)] = fresh
        return pytree.tree_unflatten([made.get(id(leaf), leaf) for leaf in self.out], self.out_spec)


def _moved(stack: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The modules that a node was called in, with one layer's place for another's."""

    def at(text: str) -> str:
        return new + text[len(old) :] if text == old or text.startswith((f"{old}.", f"{old}@")) else text

    return {at(key): (at(path), kind) for key, (path, kind) in stack.items()}
