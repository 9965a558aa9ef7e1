"""Operators of other libraries that have been registered: by a kernel of their own, or by what they are made of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from xdsl.ir import SSAValue

from tilewright.errors import Problem, UnsupportedOpError
from tilewright.frontend.builder import Builder
from tilewright.frontend.locations import of_node
from tilewright.frontend.registry import Unsupported
from tilewright.frontend.shape_rules import has_our_rule
from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Instance:
    """A kernel for operands of certain types: the values of its dims, and the types of its results."""

    kernel: KernelOp
    dims: tuple[Expr, ...]
    results: tuple[TensorType, ...]


Instantiate: TypeAlias = Callable[[Sequence[TensorType], Mapping[str, tuple[Any, bool]]], Instance]
"""From the types of an operator's tensors and its other arguments, by name with whether each has its default.

Raises Unsupported where the kernel does not fit, and a coded error of its own where the kernel is wrong.
"""


@dataclass(frozen=True, slots=True)
class CustomOp:
    """kernel: instantiates its kernel. reference: a function of the operator's arguments made of operators we lower.

    shape: what it gives, as it was registered with us. sources: what the kernel is built from: its signature and its
    function; with reference and shape it tells one registration from another.
    """

    kernel: Instantiate | None
    reference: Callable[..., Any] | None
    shape: Callable[..., Any] | None = None
    sources: tuple[Any, ...] = ()


_REGISTERED: Final[dict[str, CustomOp]] = {}
_LOCK: Final = threading.Lock()


def register(name: str, op: CustomOp) -> None:
    """Registers an operator by the name torch prints, "mylib.swiglu.default"; the last registration counts."""
    with _LOCK:
        _REGISTERED[name] = op


def registered(name: str) -> CustomOp | None:
    """What is known of an operator."""
    return _REGISTERED.get(name)


def decompositions(targets: set[Any]) -> dict[Any, Callable[..., Any]]:
    """For those of the operators that are registered without a kernel, what they are made of."""
    found = {}
    for target in targets:
        op = _REGISTERED.get(str(target))
        if op is not None and op.kernel is None and op.reference is not None:
            found[target] = op.reference
    return found


def require_agreement(nodes: Iterable[Any]) -> None:
    """Holds what references and shapes give against what torch was told that their operators give, at each call in a
    graph.

    UnsupportedOpError names the operators whose results have other dtypes or sizes.
    """
    problems = []
    for node in nodes:
        target = getattr(node.target, "default", node.target)
        op = _REGISTERED.get(str(target)) if node.op == "call_function" else None
        if op is None:
            continue
        wanted, where = _traced(node), of_node(node)
        told: list[tuple[str, Callable[..., Any], str]] = []
        if op.kernel is None and op.reference is not None:
            told.append(("reference", op.reference, "its shape rule"))
        if op.shape is not None and not has_our_rule(target):
            told.append(("shape=", op.shape, "the rule that torch has, from register_fake,"))
        for what, function, rule in told:
            try:
                found = _shown(called := _called(function, node, wanted))
            except Exception as fault:  # noqa: BLE001 (whatever a user's function raises, it is what is wrong)
                said = " ".join(f"{type(fault).__name__}: {fault}".split())[:300]
                problems.append(Problem(f"its {what} fails: {said}", str(target), where))
                continue
            if not _are_alike(called, wanted):
                problems.append(Problem(f"its {what} gives {found}, {rule} {_shown(wanted)}", str(target), where))
    if problems:
        raise UnsupportedOpError(problems, step="correct one of them: what they give must be the same")


def _traced(node: Any) -> Any:
    return node.meta.get("val", node.meta.get("example_value"))


def _called(reference: Callable[..., Any], node: Any, wanted: Any) -> Any:
    """What a reference gives for the traced operands of a node."""
    import torch
    from torch.fx.node import map_arg

    args, kwargs = map_arg((node.args, node.kwargs), _traced)
    modes = [v.fake_mode for v in _listed(wanted) if hasattr(v, "fake_mode")]
    with modes[0] if modes else contextlib.nullcontext(), torch.no_grad():
        return reference(*args, **kwargs)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _are_alike(found: Any, wanted: Any) -> bool:
    """Whether values have the same dtypes and sizes; sizes that only data decides are left to the call."""
    ours, theirs = _listed(found), _listed(wanted)
    return len(ours) == len(theirs) and all(_is_like(a, b) for a, b in zip(ours, theirs, strict=True))


def _is_like(found: Any, wanted: Any) -> bool:
    if not hasattr(wanted, "shape"):
        return type(found) is type(wanted)
    if not hasattr(found, "shape") or found.dtype != wanted.dtype or len(found.shape) != len(wanted.shape):
        return False
    hints = [(_hint(a), _hint(b)) for a, b in zip(found.shape, wanted.shape, strict=True)]
    return all(a == b or a is None or b is None for a, b in hints)


def _hint(size: Any) -> int | None:
    """The size in the trace; None where data decides it."""
    node = getattr(size, "node", None)
    if node is None:
        return int(size)
    return int(node.hint) if node.has_hint() else None


def _shown(value: Any) -> str:
    """Dtypes and sizes, as in "f32[3, 5]"."""
    texts = [
        f"{str(v.dtype).removeprefix('torch.')}[{', '.join(map(str, v.shape))}]" if hasattr(v, "shape") else repr(v)
        for v in _listed(value)
    ]
    return ", ".join(texts)


class Launches:
    """Calls of registered operators as launches; `kernels` is what they launch, to be added to the module."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelOp] = {}
        self._names: dict[str, str] = {}

    def call(self, builder: Builder, node: Any, op: CustomOp, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The results of one call. Unsupported where the kernel does not fit the operands or torch's results."""
        assert op.kernel is not None  # decomposed before
        schema = {a.name: a for a in node.target._schema.arguments}
        passed = {**dict(zip(schema, args, strict=False)), **kwargs}
        # in the schema's order, and what the call leaves out has its default: the kernel's own may be another
        given = {name: passed.get(name, a.default_value) for name, a in schema.items()}
        operands = [value for value in given.values() if isinstance(value, SSAValue)]
        others = {
            name: (value, schema[name].has_default_value() and _is_same(value, schema[name].default_value))
            for name, value in given.items()
            if not isinstance(value, SSAValue)
        }
        made = op.kernel([tensor(v) for v in operands], others)
        val = node.meta["val"]
        several = isinstance(val, (tuple, list))
        wanted = [builder.type_of(v) for v in (val if several else [val])]
        if len(wanted) != len(made.results) or not all(
            _fits(builder, m, w, of_node(node)) for w, m in zip(wanted, made.results, strict=True)
        ):
            theirs, ours = (", ".join(map(str, types)) for types in (wanted, made.results))
            raise Unsupported(f"torch says that it gives {theirs}, its kernel gives {ours}")
        launch = LaunchOp.make(
            operands,
            result_types=[list(made.results)],
            callees=[self._name(made.kernel)],
            guard=[Expr.of(0)],
            limits=[],
            dims=list(made.dims),
        )
        builder.append(launch)
        return tuple(launch.outputs) if several else launch.outputs[0]

    def _name(self, kernel: KernelOp) -> str:
        """The name under which the module holds the kernel: its own, numbered where others have it."""
        text = str(kernel)
        if text not in self._names:
            base, count = kernel.sym_name.data, 1 + len(self._names)
            name = base if base not in self.kernels else f"{base}_{count}"
            clone = kernel.clone()
            clone.properties["sym_name"] = type(kernel.sym_name)(name)
            self._names[text], self.kernels[name] = name, clone
        return self._names[text]


def _is_same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _fits(builder: Builder, made: TensorType, wanted: TensorType, where: str | None) -> bool:
    """Whether a kernel's result may be what torch says of it. Sizes that may be equal are held equal at every call."""
    if made.dtype != wanted.dtype or len(made.dims) != len(wanted.dims):
        return False
    for ours, theirs in zip(made.dims, wanted.dims, strict=True):
        equal = builder.symbols.space.compare(ours, "==", theirs)
        if equal is False:
            return False
        if equal is None:
            builder.symbols.require(ours, "==", theirs, where)
    return True
