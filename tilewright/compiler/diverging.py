"""The first op whose values differ from the original model's: in the captured graph, or among the kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from xdsl.ir import Operation

from tilewright.compiler.instrumented import call_of, machine_of
from tilewright.compiler.native_launches import NativeLaunches
from tilewright.errors import Problem
from tilewright.ir.graph.structure import FuncOp, GroupOp
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.module import parse_module
from tilewright.ir.operation import TwOperation
from tilewright.ir.tile.structure import LaunchOp

if TYPE_CHECKING:
    import torch

    from tilewright.compiler.compiled import Compiled

Tensors = Mapping[str, Any]


def first_difference(
    compiled: Compiled, model: Any, weights: Tensors, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Problem | None:
    """What differs first, with the user's line; None where no single step is at fault.

    weights: the original model's tensors by captured name. The graph as captured is run by its references and held
    against the outputs of the model's submodules; where they agree, each kernel is held against the group of ops it was
    made from, fed with the same values.
    """
    return _in_graph(compiled, model, weights, args, kwargs) or _in_kernels(compiled, weights, args, kwargs)


def differs(wanted: torch.Tensor, found: torch.Tensor) -> str | None:
    """How far two tensors are apart where rounding does not explain it."""
    bound = tolerance(wanted)
    if wanted.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(wanted.shape)}"
    a, b = wanted.double(), found.double()
    unlike = ~((a - b).abs() <= bound) & (a != b) & ~(a.isnan() & b.isnan())
    if not unlike.any():
        return None
    odd = int((unlike & ~(a.isfinite() & b.isfinite())).sum())
    if odd:
        return f"{odd} elements are NaN or infinite on one side only"
    return f"largest difference {(a - b)[unlike].abs().max().item():.3g}, bound {bound:.3g}"


def tolerance(expected: torch.Tensor) -> float:
    """The largest difference that rounding explains: 4096 units in the last place of the largest magnitude."""
    import torch

    if not expected.is_floating_point():
        return 0.0
    finite = expected[expected.isfinite()].double()
    size = finite.abs().max().item() if finite.numel() else 0.0
    kind = torch.float32 if expected.dtype == torch.float64 else expected.dtype
    return 4096 * torch.finfo(kind).eps * max(size, 1e-30)


def _in_graph(
    compiled: Compiled, model: Any, weights: Tensors, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Problem | None:
    import torch

    if not isinstance(model, torch.nn.Module):
        return None
    eager: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                eager[path] = output.clone()

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for path, part in model.named_modules():
            if path:
                stack.callback(part.register_forward_hook(keep(path)).remove)
        model(*args, **kwargs)
    last: dict[str, tuple[Operation, torch.Tensor]] = {}

    def watch(op: Operation, results: Sequence[torch.Tensor]) -> None:
        if isinstance(op, TwOperation) and op.path in eager and len(results) == 1:
            last.pop(op.path, None)
            last[op.path] = (op, results[0])

    module = parse_module(compiled.code.texts["captured"], "captured")
    _, inputs, _, states = call_of(compiled, args, kwargs)
    interpret(module, inputs, weights=weights, states=states, observe=watch)
    for path, (op, found) in last.items():
        # where a submodule ends in an op that is not its output's, shapes mostly tell
        if found.shape == eager[path].shape and (fault := differs(eager[path], found)):
            where = op.loc if isinstance(op, TwOperation) else None
            return Problem(f"the captured graph differs at {path}: {fault}", op=op.name, where=where)
    return None


def _in_kernels(
    compiled: Compiled, weights: Tensors, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Problem | None:
    groups: list[Sequence[torch.Tensor]] = []
    grouped = parse_module(compiled.code.texts["graph"], "graph")
    module, inputs, stored, states = call_of(compiled, args, kwargs)

    def watch(op: Operation, results: Sequence[torch.Tensor]) -> None:
        if isinstance(op, GroupOp) and _is_main(op):
            groups.append(list(results))

    interpret(grouped, inputs, weights=weights, states=dict(states), observe=watch)
    launched: list[tuple[LaunchOp, Sequence[torch.Tensor]]] = []
    backend, machine = machine_of(compiled.code.program.target)
    launches = NativeLaunches(module, backend, machine, observe=lambda op, results: launched.append((op, results)))
    interpret(module, inputs, weights=stored, states=states, launch=launches)
    if len(groups) != len(launched):
        return None
    for wanted, (op, found) in zip(groups, launched, strict=True):
        for number, (a, b) in enumerate(zip(wanted, found, strict=False)):
            fault = differs(a, b.reshape(a.shape)) if a.numel() == b.numel() else None
            if fault:
                return Problem(f"result {number} of kernel {op.callees.data[0]}: {fault}", op=op.path, where=op.loc)
    return None


def _is_main(op: GroupOp) -> bool:
    parent = op.parent_op()
    return isinstance(parent, FuncOp) and parent.kind.data == "main"
