"""Leaves out of a trace what nobody reads: about half the time that the exporter takes for a deep model.

While a capture runs,

- a node's stack is taken as files and lines, without reading the sources for the text of every line;
- `aten.linear`, one node of the graph, gets its shape by rule instead of by tracing through what it is made of;
- nodes do not get layouts as metadata beside their fake tensors;
- marks of gradient modes are dropped: nothing that is compiled has gradients, and splitting the graph at every such
  mark (rotary embeddings have one each) costs more than tracing them;
- Python source for a graph is not printed until someone asks for it.

Each is a name of torch replaced for a while. One that a version of torch does not have is one saving less, not a fault.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any, Final, NamedTuple

_MISSING: Final = object()


@contextmanager
def lean_tracing() -> Iterator[None]:
    """Process-wide while it lasts, as the exporter itself is."""
    with ExitStack() as stack:
        stack.enter_context(lean_nodes(WholeStack))
        stack.enter_context(
            _replaced(
                "torch._export.passes.replace_set_grad_with_hop_pass",
                "replace_set_grad_with_hop_pass",
                _without_gradient_modes,
            )
        )
        yield


@contextmanager
def lean_nodes(stack: Any = None) -> Iterator[None]:
    """Only what concerns nodes and not the exporter: their stacks, layouts and shapes, and source for their graph.

    stack: what takes the nodes' stacks in place of the usual one.
    """
    lazy = getattr(import_module("torch.fx._lazy_graph_module"), "_use_lazy_graph_module", None)
    with (
        _linear_by_rule(),
        _replaced("torch.fx.proxy", "CapturedTraceback", stack or _Stack),
        _replaced("torch.fx.experimental.proxy_tensor", "_extract_tensor_metadata", _no_metadata),
        lazy(True) if lazy is not None else nullcontext(),
    ):
        yield


@contextmanager
def _replaced(module: str, name: str, replacement: Any) -> Iterator[None]:
    owner = import_module(module)
    saved = getattr(owner, name, _MISSING)
    if saved is _MISSING:
        yield
        return
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, saved)


@cache
def torch_folder() -> str:
    """Where torch's own sources lie, with a separator at its end."""
    import torch

    return os.path.dirname(torch.__file__) + os.sep


class _Line(NamedTuple):
    """A frame as the exporter's filter and `traceback` read it."""

    filename: str
    lineno: int
    name: str
    line: str = ""


class _Stack:
    """Stands in for torch's CapturedTraceback, whose summary reads the source of every frame."""

    def __init__(self, lines: list[_Line]) -> None:
        self._lines = lines

    @classmethod
    def extract(cls, *_args: Any, **_options: Any) -> _Stack:
        lines = []
        frame: Any = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            # torch's own frames say nothing of the model; the first "forward" is where the exporter takes it to begin
            if code.co_name == "forward" or not code.co_filename.startswith(torch_folder()):
                lines.append(_Line(code.co_filename, frame.f_lineno or 0, code.co_name))
            frame = frame.f_back
        lines.reverse()
        return cls(lines)

    def summary(self) -> _Summary:
        return _Summary(self._lines)


class WholeStack(_Stack):
    """Every frame of the model goes by the one name that tracers keep: what a forward calls is the model's, too."""

    def summary(self) -> _Summary:
        # who called the model stands before its first forward
        begin = next((i for i, line in enumerate(self._lines) if line.name == "forward"), 0)
        return _Summary([line._replace(name="forward") for line in self._lines[begin:]])


class _Summary(list[_Line]):
    def format(self) -> list[str]:
        return [f'  File "{f.filename}", line {f.lineno}, in {f.name}\n' for f in self]


def _no_metadata(_tensor: Any, *_args: Any, **_options: Any) -> None:
    return None


def _without_gradient_modes(module: Any, signature: Any) -> tuple[Any, Any]:
    """The module without its nodes that switch gradients; nothing uses what they give."""
    import torch

    switch: Any = getattr(torch._C, "_set_grad_enabled")  # noqa: B009  no stub has it
    for part in module.modules():
        graph: Any = getattr(part, "graph", None)
        marks = [n for n in graph.nodes if n.op == "call_function" and n.target is switch] if graph is not None else []
        for node in marks:
            graph.erase_node(node)
        if marks:
            part.recompile()
    return module, signature


@contextmanager
def _linear_by_rule() -> Iterator[None]:
    import torch

    linear: Any = torch.ops.aten.linear.default
    key: Any = torch._C.DispatchKey.CompositeImplicitAutograd
    kernels, cache = getattr(linear, "py_kernels", None), getattr(linear, "_dispatch_cache", None)
    if kernels is None or cache is None or key in kernels:
        yield
        return

    def shaped(x: Any, weight: Any, bias: Any = None) -> Any:
        plain = (
            x.dim() > 1
            and weight.dim() == 2
            and type(x.shape[-1]) is int
            and x.shape[-1] == weight.shape[1]
            and x.dtype == weight.dtype
            and (bias is None or (bias.dtype == x.dtype and tuple(bias.shape) == tuple(weight.shape[:1])))
            and x.device == weight.device
        )
        # whatever is unusual is told by the operator itself
        return x.new_empty((*x.shape[:-1], weight.shape[0])) if plain else linear._op_dk(key, x, weight, bias)

    kernels[key] = shaped
    cache.clear()
    try:
        yield
    finally:
        del kernels[key]
        cache.clear()
