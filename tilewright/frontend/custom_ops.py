"""Operators of other libraries that have been registered: by a kernel of their own, or by what they are made of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tilewright.errors import TilewrightError
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import Unsupported
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


Instantiate: TypeAlias = Callable[[Sequence[TensorType], Mapping[str, Any]], Instance]
"""From the types of an operator's tensors and its other arguments by name. Raises a coded error where it cannot be."""


@dataclass(frozen=True, slots=True)
class CustomOp:
    """kernel: instantiates its kernel. reference: a function of the operator's arguments made of operators we lower."""

    kernel: Instantiate | None
    reference: Callable[..., Any] | None


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


class Launches:
    """Calls of registered operators as launches; `kernels` is what they launch, to be added to the module."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelOp] = {}
        self._names: dict[str, str] = {}

    def call(self, builder: Builder, node: Any, op: CustomOp, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The results of one call. Unsupported where the kernel does not fit the operands or torch's results."""
        assert op.kernel is not None  # decomposed before
        schema = [a.name for a in node.target._schema.arguments]
        given = {**dict(zip(schema, args, strict=False)), **kwargs}
        operands = [value for value in given.values() if hasattr(value, "type")]
        others = {name: value for name, value in given.items() if not hasattr(value, "type")}
        try:
            made = op.kernel([tensor(v) for v in operands], others)
        except TilewrightError as fault:
            raise Unsupported(fault.problems[0].text) from fault
        val = node.meta["val"]
        several = isinstance(val, (tuple, list))
        wanted = [builder.type_of(v) for v in (val if several else [val])]
        if [t.dtype for t in wanted] != [t.dtype for t in made.results] or any(
            len(w.dims) != len(m.dims) for w, m in zip(wanted, made.results, strict=True)
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
