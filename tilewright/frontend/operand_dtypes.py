"""Products whose operands differ in dtype: torch refuses them when it computes, but not always when it traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tilewright.errors import DTypeError, Problem
from tilewright.ir.dtypes import from_torch_name

# what torch computes for tensors of one dtype alone: none of these casts an operand
_ONE_DTYPE: Final = frozenset(
    f"aten.{name}.default"
    for name in ("linear", "matmul", "mm", "bmm", "mv", "dot", "vdot", "addmm", "baddbmm", "addmv", "bilinear")
)

PARTS_APART: Final = "complex numbers are not supported; pass real and imaginary parts apart: torch.view_as_real(x)"


def require_one_dtype(node: Any, inputs: Mapping[Any, str], weights: Mapping[Any, str], where: str | None) -> None:
    """Raises DTypeError where a node multiplies tensors of several dtypes.

    inputs, weights: nodes that are arguments of the user's call or tensors of the model, by the user's names; empty
    where the graph has no such names. where: the user's place of the node.
    """
    if str(node.target) not in _ONE_DTYPE:
        return
    operands = [a for a in (*node.args, *node.kwargs.values()) if hasattr(_value(a), "dtype")]
    dtypes = {operand: _value(operand).dtype for operand in operands}
    if len(set(dtypes.values())) < 2:
        return
    named = {**inputs, **weights}
    listed: dict[Any, list[str]] = {}
    for operand, dtype in dtypes.items():
        nameless = "an argument" if operand.op == "placeholder" else "computed"
        listed.setdefault(dtype, []).append(named.get(operand, nameless))
    text = " and ".join(f"{_shown(dtype)} ({', '.join(names)})" for dtype, names in listed.items())
    raise DTypeError(
        Problem(f"its operands must have one dtype, and are {text}", op=str(node.target), where=where),
        step=_step(dtypes, inputs, weights),
    )


def _step(dtypes: Mapping[Any, Any], inputs: Mapping[Any, str], weights: Mapping[Any, str]) -> str:
    """What to convert to what: arguments, where those bring the other dtype, else the model or a line of it."""
    if any(dtype.is_complex for dtype in dtypes.values()):
        # a cast to a real dtype would leave the imaginary part out
        return PARTS_APART
    if not inputs:
        return "convert before they meet, as torch asks without a compiler, too: x.to(dtype)"
    of_weights = [dtype for operand, dtype in dtypes.items() if operand in weights]
    floats = [dtype for dtype in dtypes.values() if dtype.is_floating_point]
    wanted = next(iter(of_weights or floats or dtypes.values()))
    if len(set(of_weights)) > 1:
        return f"give the model weights of one dtype: model.to({wanted})"
    converted: dict[str, None] = {}
    for operand, dtype in dtypes.items():
        if dtype != wanted:
            found = [operand] if operand in inputs else _arguments_of(operand, dtype, inputs)
            if not found:
                return f"convert where the model computes it: .to({wanted})"
            converted |= {f"{inputs[argument]}.to({wanted})": None for argument in found}
    return f"convert: {', '.join(converted)}"


def _arguments_of(node: Any, dtype: Any, inputs: Mapping[Any, str]) -> list[Any]:
    """The arguments of a float dtype that a value of this dtype was computed from; whole numbers may be indices."""
    found: list[Any] = []
    seen, pending = {node}, [node]
    while pending and dtype.is_floating_point:
        for operand in pending.pop().all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                pending.append(operand)
                found += [operand] if operand in inputs and getattr(_value(operand), "dtype", None) == dtype else []
    return found


def _value(argument: Any) -> Any:
    return argument.meta.get("val") if hasattr(argument, "meta") else None


def _shown(dtype: Any) -> str:
    return str(from_torch_name(str(dtype)) or str(dtype).removeprefix("torch."))
