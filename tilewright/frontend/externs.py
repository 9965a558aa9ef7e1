"""Operators that stay in torch: `graph.extern` with the operator's name and its constants as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder, Weak
from tilewright.frontend.registry import Unsupported
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F64, I64
from tilewright.ir.graph.externs import EXTERNS, register_extern
from tilewright.ir.graph.structure import ExternOp

_TORCH_CONSTANTS = ("dtype", "device", "layout", "memory_format")


class Externs:
    """Wraps operators without a lowering, and keeps the functions that run them."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}

    def call(self, builder: Builder, node: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """An extern for one node: tensors and sizes become operands, everything else travels as JSON."""
        if not hasattr(node.target, "_schema"):
            raise Unsupported("it is not an operator that torch can call by name")
        tensors: list[SSAValue] = []
        template = {
            "args": [_encode(builder, a, tensors) for a in args],
            "kwargs": {key: _encode(builder, a, tensors) for key, a in kwargs.items()},
        }
        name = f"torch.{node.target}"
        if name not in EXTERNS:
            register_extern(name)(_runner(node.target))
        self.functions[name] = EXTERNS[name]
        val = node.meta["val"]
        several = isinstance(val, (tuple, list))
        types = [builder.type_of(v) for v in (val if several else [val])]
        made = builder.add(ExternOp.make(tensors, callee=name, arguments=json.dumps(template), result_types=[types]))
        return tuple(made.results) if several else made.results[0]


def _encode(builder: Builder, value: Any, tensors: list[SSAValue]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_encode(builder, item, tensors) for item in value]
    if isinstance(value, SSAValue):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, (Expr, Weak)):
        kind = "size" if isinstance(value, Expr) else "number"
        tensors.append(builder.operand(value, I64 if kind == "size" else F64))
        return {kind: len(tensors) - 1}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for module_name in _TORCH_CONSTANTS:
        if type(value).__name__ == module_name:
            return {"torch": [module_name, str(value).removeprefix("torch.")]}
    raise Unsupported(f"its argument {value!r} cannot be stored")


def _runner(target: Any) -> Callable[..., Any]:
    def run(*tensors: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        def decode(value: Any) -> Any:
            import torch

            if isinstance(value, list):
                return [decode(item) for item in value]
            if not isinstance(value, dict):
                return value
            ((kind, content),) = value.items()
            if kind == "torch":
                name, text = content
                return torch.device(text) if name == "device" else getattr(torch, text)
            return tensors[content] if kind == "tensor" else tensors[content].item()

        return target(*decode(args), **{key: decode(value) for key, value in kwargs.items()})

    return run
