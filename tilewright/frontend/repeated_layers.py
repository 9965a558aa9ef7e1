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

from tilewright.frontend.layer_calls import MOST_TEMPLATES, LayerCall, alike, hooked, is_size, recorded, stacks_of

if TYPE_CHECKING:
    import torch

# what every module has, and what is compared by itself
_OWN: Final = ("_parameters", "_buffers", "_modules")


@contextmanager
def repeating(model: torch.nn.Module) -> Iterator[None]:
    """Within it, tracers of torch copy the repeated layers of a model. Process-wide while it lasts."""
    from torch.fx.experimental import proxy_tensor

    stacks = stacks_of(model)
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
            if stack is None or hooked(layer):
                return original(tracer, module, forward, args, kwargs)
            call = LayerCall.of(tracer, layer, args, kwargs)
            known = traced.setdefault(id(stack), [])
            if call is None:
                return original(tracer, module, forward, args, kwargs)
            for template in known:
                copied = template.copied(call)
                if copied is not None:
                    return copied.out
            if len(known) == MOST_TEMPLATES:
                return original(tracer, module, forward, args, kwargs)
            with _reads(layer, _differing(layer, stack)) as read:
                out, made = recorded(call, lambda: original(tracer, module, forward, args, kwargs))
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


# --- what two layers have in common -----------------------------------------------------------------------------------


def _attributes(module: Any) -> dict[str, Any]:
    return {name: held for name, held in vars(module).items() if name not in _OWN}


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
        found |= {(path, n) for n in names if n not in mine or n not in theirs or not alike(mine[n], theirs[n])}
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


# --- from one call to the others --------------------------------------------------------------------------------------


class _Copied(NamedTuple):
    out: Any


@dataclass
class _Template:
    """A call that stands for others. read: the attributes that it read of those in which layers differ."""

    call: LayerCall
    read: frozenset[tuple[str, str]]
    nodes: list[Any]
    out: list[Any]
    out_spec: Any

    def copied(self, call: LayerCall) -> _Copied | None:
        """The call's result, its operators copied into the graph; None where it is not like this one."""
        different = _different(self.call.layer, call.layer) if type(self.call.layer) is type(call.layer) else None
        if different is None or different & self.read:
            return None
        there = self.call.nodes_like(call)
        if there is None:
            return None
        graph = call.tracer.graph
        for node in self.nodes:
            if is_size(node):
                # a size is one node of the graph, whoever asks for it
                there[node] = node
                continue
            made = graph.node_copy(node, lambda n: there.get(n, n))
            made.meta = copy.copy(node.meta)
            if "nn_module_stack" in made.meta:
                made.meta["nn_module_stack"] = _moved(made.meta["nn_module_stack"], self.call.path, call.path)
            there[node] = made
        return _Copied(self._result(call, there))

    def _result(self, call: LayerCall, there: Mapping[Any, Any]) -> Any:
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
