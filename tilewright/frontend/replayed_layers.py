"""Proves that layers run the same operators by running their Python, while torch answers from the first one's run.

A trace of every layer asks torch for every operator of every layer: its shape rule, its fake result, its node. Layers
that run the same Python ask for the same again. Here the first call of a layer is recorded as the calls that it makes
of torch, and a later layer that is given the like is run with each of its own calls held against the next recorded one:
the same function, the same constants, the tensors that stand where the first one's stood. It gets the recorded answer,
its tensors as objects of its own. What reaches the end without a difference runs the first one's operators on its own
tensors: nothing is assumed of its attributes, of what it closes over, or of state that it shares with others, because
whatever its Python makes of them shows in what it asks of torch. At the first difference the whole trace is given up
(`Departed`), and made once more without this.

What is relied on: a function of torch gives the same operators for the same arguments in the same modes. So calls are
recorded of torch's own functions alone, and of those that take or give tensors and nothing that hides more; a layer
that writes to memory, draws numbers, or asks for anything else is traced as it stands.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tilewright.frontend.layer_calls import MOST_TEMPLATES, PLAIN, LayerCall, Made, hooked, recorded, stacks_of
from tilewright.frontend.lean_tracing import torch_folder

if TYPE_CHECKING:
    import torch

_NATIVE: Final = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)


class Departed(BaseException):
    """A layer asked torch for something else than the recorded one. No model's `except Exception` takes it for its own
    failure.
    """


class Departures:
    """Whether any layer departed: a model may swallow what it is told by. replayed: how many layers did not."""

    def __init__(self) -> None:
        self.any = False
        self.replayed = 0

    def happens(self) -> Departed:
        self.any = True
        return Departed()


@contextmanager
def replaying(model: torch.nn.Module, departures: Departures) -> Iterator[None]:
    """Within it, tracers of torch run layers of a model that are called alike against the first one's record.

    Process-wide while it lasts. Only for traces in which every size is a number.
    """
    from torch.fx.experimental import proxy_tensor

    stacks = stacks_of(model)
    if not stacks:
        yield
        return
    known: dict[int, list[_Record]] = {}
    within = False
    tracer_kind: Any = proxy_tensor.PythonKeyTracer
    original = vars(tracer_kind)["call_module"]

    def call_module(tracer: Any, layer: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        nonlocal within
        stack = stacks.get(id(layer))
        # a layer inside a layer is part of what the outer one asks for
        call = None if within or stack is None or hooked(layer) else LayerCall.of(tracer, layer, args, kwargs)
        if call is None:
            return original(tracer, layer, forward, args, kwargs)
        records = known.setdefault(id(stack), [])
        within = True
        try:
            for record in records:
                there = record.call.nodes_like(call) if type(record.call.layer) is type(layer) else None
                if there is not None and record.modes == _modes():
                    return record.replayed(
                        call, there, lambda: original(tracer, layer, forward, args, kwargs), departures
                    )
            if len(records) == MOST_TEMPLATES:
                return original(tracer, layer, forward, args, kwargs)
            out, record_made = _recorded(call, lambda: original(tracer, layer, forward, args, kwargs))
            if record_made is not None:
                records.append(record_made)
            return out
        finally:
            within = False

    tracer_kind.call_module = call_module
    try:
        yield
    finally:
        tracer_kind.call_module = original


# --- what a layer asks of torch ---------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """One call of torch. state: what else decides its operators. out: as given back."""

    function: Any
    args: Any
    kwargs: Any
    state: tuple[Any, ...]
    out: Any


def _state() -> tuple[Any, ...]:
    """The switches of torch that a layer can turn without a call that is seen here."""
    import torch

    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
    )


def _modes() -> list[Any]:
    """Those who see a call of torch before it is one."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]  # type: ignore[no-untyped-call]


def _is_torch(function: Any) -> bool:
    """Whether a function is torch's own code, and one that asks, not one that sets."""
    from torch._ops import OpOverload, OpOverloadPacket

    if isinstance(function, (OpOverload, OpOverloadPacket)):
        return True
    if isinstance(function, _NATIVE):
        return function.__name__ != "__set__"
    return isinstance(function, types.FunctionType) and function.__code__.co_filename.startswith(torch_folder())


def _kept(value: Any) -> Any:
    """A value as it is now, whatever is done to its lists later. Raises _Hidden for what is not told from another."""
    import torch

    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_kept, value))
    if isinstance(value, dict):
        return dict, tuple((name, _kept(v)) for name, v in value.items())
    if isinstance(value, slice):
        return slice, tuple(map(_kept, (value.start, value.stop, value.step)))
    if isinstance(value, (torch.Tensor, torch.dtype, torch.device, torch.layout, torch.memory_format, *PLAIN)):
        return value
    if value is Ellipsis:
        return value
    raise _Hidden


class _Hidden(Exception):  # noqa: N818  (a verdict on one value: it is not compared)
    """A value that two calls can share and find different things in."""


def _tensors_of(kept: Any) -> Iterator[Any]:
    """The tensors of a value that was kept, in order."""
    import torch

    if isinstance(kept, torch.Tensor):
        yield kept
    elif isinstance(kept, tuple):
        for part in kept[1]:
            yield from _tensors_of(part[1] if kept[0] is dict else part)


def _recorder(asked: list[Any]) -> Any:
    from torch.overrides import TorchFunctionMode

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            state = _state()
            try:
                given = _kept(args), _kept(kwargs or {})
            except _Hidden:
                given = None
            out = function(*args, **(kwargs or {}))
            asked.append(None if given is None else (function, *given, state, out))
            return out

    return Recorder()


def _recorded(call: LayerCall, run: Callable[[], Any]) -> tuple[Any, _Record | None]:
    """What a call returns, and what it asked on the way; None where another call cannot be held against it."""
    modes, asked = _modes(), list[Any]()
    with _recorder(asked):
        out, made = recorded(call, run)
    if made is None or None in asked:
        return out, None
    own = {id(value) for value, _ in call.tensors.values()}
    nodes = set(made.nodes)
    fresh: set[int] = set()
    found = []
    for function, args, kwargs, state, gave in asked:
        try:
            kept = _Asked(function, args, kwargs, state, _kept(gave))
        except _Hidden:
            return out, None
        given = [*_tensors_of(args), *_tensors_of(kwargs)]
        results = list(_tensors_of(kept.out))
        getter = isinstance(function, types.MethodWrapperType)
        if not _is_torch(function) or not (given or results) or (gave is None and not getter):
            return out, None
        if any(id(value) not in own and id(value) not in fresh for value in given):
            return out, None
        for value in results:
            if id(value) not in own and id(value) not in fresh:
                if not _is_plain(call, value, nodes):
                    return out, None
                fresh.add(id(value))
        found.append(kept)
    return out, _Record(call, tuple(found), made, modes)


def _is_plain(call: LayerCall, value: Any, nodes: set[Any]) -> bool:
    """Whether a tensor is what one of the call's operators gives, and nothing besides."""
    from torch._subclasses.fake_tensor import FakeTensor

    proxy = call.tracer.tensor_tracker.get(value)
    known = proxy is not None and proxy.constant is None and proxy.proxy.node in nodes
    return known and type(value) is FakeTensor and not value.requires_grad


# --- one layer's run against another's --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """A call and what it asked for, in order. made: what it added to the graph. modes: who else saw it ask."""

    call: LayerCall
    asked: tuple[_Asked, ...]
    made: Made
    modes: list[Any]

    def replayed(self, call: LayerCall, there: dict[Any, Any], run: Callable[[], Any], departures: Departures) -> Any:
        """What a call returns that asks for the same, its operators added to the graph. there: the call's nodes by this
        one's. Raises Departed.
        """
        from torch.utils import _pytree as pytree

        pairs = ((value, call.tensors[place][0]) for place, (value, _) in self.call.tensors.items())
        run_of = _Run(self, {id(value): other for value, other in pairs}, departures)
        last = call.tracer.graph._root._prev
        with run_of.mode():
            out = run()
        flat, spec = pytree.tree_flatten(out)
        ends = run_of.at == len(self.asked) and call.tracer.graph._root._prev is last
        if not ends or departures.any or spec != self.made.out_spec:
            raise departures.happens()
        if not all(run_of.is_it(_kept(a), b) for a, b in zip(self.made.out, flat, strict=True)):
            raise departures.happens()
        self._write(call, there, run_of)
        departures.replayed += 1
        return out

    def _write(self, call: LayerCall, there: dict[Any, Any], run_of: _Run) -> None:
        """Adds the operators, and says of every tensor that is still held by someone which of them gives it."""
        from torch.fx import Proxy
        from torch.fx.experimental.proxy_tensor import track_tensor_tree

        for node in self.made.nodes:
            written = call.tracer.graph.node_copy(node, lambda n: there.get(n, n))
            written.meta = copy.copy(node.meta)
            there[node] = written
        made = [(value, weakref.ref(run_of.here[id(value)])) for value in run_of.made]
        run_of.here.clear()
        for value, held in made:
            other = held()
            if other is not None:
                node = there[call.tracer.tensor_tracker.get(value).proxy.node]
                meta = node.meta["val"]
                track_tensor_tree(other, Proxy(node, call.tracer), constant=None, tracer=call.tracer)
                node.meta["val"] = meta


class _Run:
    """A call in progress. here: its tensors, by the id of those that stood in their place. made: of these, what an
    answer brought. at: how many answers it had.
    """

    def __init__(self, record: _Record, here: dict[int, Any], departures: Departures) -> None:
        self.record, self.here, self.departures = record, here, departures
        self.made: list[Any] = []
        self.at = 0

    def mode(self) -> Any:
        from torch.overrides import TorchFunctionMode

        run = self

        class Replay(TorchFunctionMode):
            def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return run.answer(function, args, kwargs or {})

        return Replay()

    def answer(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The recorded answer, if this is the recorded question."""
        if self.at == len(self.record.asked):
            raise self.departures.happens()
        wanted = self.record.asked[self.at]
        same = wanted.function is function or (
            isinstance(function, types.MethodWrapperType) and wanted.function == function
        )
        if not (
            same and wanted.state == _state() and self.is_it(wanted.args, args) and self.is_it(wanted.kwargs, kwargs)
        ):
            raise self.departures.happens()
        self.at += 1
        return self._given(wanted.out)

    def is_it(self, kept: Any, value: Any) -> bool:
        """Whether a value is here what another one was there."""
        import torch

        if isinstance(kept, tuple):
            kind, parts = kept
            if type(value) is not kind:
                return False
            if kind is slice:
                value = (value.start, value.stop, value.step)
            elif kind is dict:
                names = tuple(name for name, _ in parts)
                return names == tuple(value) and all(self.is_it(p, value[name]) for name, p in parts)
            return len(parts) == len(value) and all(map(self.is_it, parts, value))
        if isinstance(kept, torch.Tensor):
            return self.here.get(id(kept)) is value
        if isinstance(kept, (float, complex)):
            # 0.0 and -0.0 are equal and not the same
            return type(kept) is type(value) and repr(kept) == repr(value)
        return kept is value or (type(kept) is type(value) and bool(kept == value))

    def _given(self, kept: Any) -> Any:
        """An answer, with tensors of this call's own."""
        import torch

        if isinstance(kept, tuple):
            kind, parts = kept
            if kind is dict:
                return {name: self._given(part) for name, part in parts}
            values = [self._given(part) for part in parts]
            # what torch names its results by is made of them one by one
            return slice(*values) if kind is slice else kind(*values) if hasattr(kind, "_fields") else kind(values)
        if not isinstance(kept, torch.Tensor):
            return kept
        found = self.here.get(id(kept))
        if found is None:
            from torch.fx.experimental.proxy_tensor import snapshot_fake

            with torch._C.DisableTorchFunction():
                found = snapshot_fake(kept)
            self.here[id(kept)] = found
            self.made.append(kept)
        return found
