"""Whether the exported graph does what the model does at given sizes: operator by operator, without any numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tilewright.frontend.arithmetic import evaluated
from tilewright.frontend.concrete import Noticed, concrete, held_by
from tilewright.frontend.examples import Example
from tilewright.frontend.locations import of_node
from tilewright.frontend.numbering import Numbered, Numbering, Unfollowed, constant

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

# Tensors of so few elements are the same where their numbers are: constants are made anew in every trace.
_SMALL: Final = 4_096


@dataclass(frozen=True)
class Departure:
    """The first operator that the model runs and its graph does not: "aten.clamp", and the user's line.

    runs: False where the model does not run at these sizes, as far as can be told without numbers.
    """

    op: str
    where: str | None
    runs: bool = True


def departure(
    model: torch.nn.Module,
    program: ExportedProgram,
    example: Example,
    sizes: Mapping[str, int],
    *,
    exporting: bool = True,
    noticed: Noticed | None = None,
    every_layer: bool = True,
) -> Departure | None:
    """How the model departs from the graph at these sizes of the dims; None where the two are proved to be one.

    program: as exported, before any decomposition, from an example of these arguments in any sizes. exporting: what the
    model is told when it asks whether it is being exported. noticed: receives what it asks and changes. every_layer:
    see `concrete`; False where a trace of every layer showed already that the model is its graph. The proof
    compares the model's trace at the sizes with the graph in which the sizes stand for its symbols: the same operators
    on the same operands with the same constants. It covers every value of the tensors, because a model that decides by
    values is not exported at all.
    """
    at = example.resized(sizes)
    held = list(held_by(model).values())
    own = {_identity(value) for value in held}
    try:
        trace: Any = concrete(model, at, places=False, exporting=exporting, noticed=noticed, every_layer=every_layer)
    except Exception as fault:  # noqa: BLE001 (whatever a model raises: it does not run at this size)
        return Departure(type(fault).__name__, None, runs=False)
    numbers = Numbering()
    indices = [i for i, leaf in enumerate(at.leaves) if leaf.is_tensor]
    try:
        graph = numbers.read(program.graph_module, _exported_leaves(program, at, own), _sizes(program, at, sizes))
        run = numbers.read(trace, _traced_leaves(trace, held, indices, own), int)
    except Unfollowed as verdict:
        return Departure(str(verdict), None)
    if run.outputs == graph.outputs and run.effects == graph.effects:
        return None
    return _first(model, at, run, graph, exporting)


def _first(model: torch.nn.Module, example: Example, run: Numbered, graph: Numbered, exporting: bool) -> Departure:
    """The first operator of the model's run that is not in its graph; a second trace says where it was called."""
    known = {number for _, number in graph.nodes}
    for position, (node, number) in enumerate(run.nodes):
        if number not in known:
            again: Any = concrete(model, example, places=True, exporting=exporting)
            same = [n for n in again.graph.nodes if n.op == "call_function" and n.target == node.target]
            before = sum(n.target == node.target for n, _ in run.nodes[:position])
            name = str(node.target).rpartition(".")[0] or str(node.target)
            return Departure(name, of_node(same[before]) if before < len(same) else None)
    return Departure("the output", None)


def _exported_leaves(program: ExportedProgram, example: Example, own: set[Hashable]) -> Callable[[Any], Hashable]:
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    stored: Mapping[str, Any] = {**program.constants, **program.state_dict}
    given = [name for name, spec in specs.items() if spec.kind.name == "USER_INPUT"]
    places = {name: i for i, name in enumerate(given)}

    def leaf(node: Any) -> Hashable:
        spec = specs.get(node.name)
        if spec is None:
            return _told(getattr(program.graph_module, str(node.target), None), own)
        return ("input", places[node.name]) if node.name in places else _told(stored.get(spec.target), own)

    return leaf


def _traced_leaves(
    trace: Any, held: list[torch.Tensor], indices: list[int], own: set[Hashable]
) -> Callable[[Any], Hashable]:
    known = [*(_told(value, own) for value in held), *(("input", i) for i in indices)]
    places = dict(zip((n for n in trace.graph.nodes if n.op == "placeholder"), known, strict=True))
    return lambda node: places[node] if node in places else _told(getattr(trace, str(node.target)), own)


def _identity(value: Any) -> Hashable:
    return value.data_ptr(), tuple(value.shape), tuple(value.stride()), str(value.dtype)


def _told(value: Any, own: set[Hashable]) -> Hashable:
    """A tensor that the graph holds: the model's own by its memory, others by what they contain."""
    if not hasattr(value, "data_ptr"):
        return repr(value)
    if _identity(value) in own or value.numel() > _SMALL:
        return _identity(value)
    return constant(value)


def _sizes(program: ExportedProgram, example: Example, sizes: Mapping[str, int]) -> Callable[[Any], int | float | bool]:
    """The value of a symbolic number of the program at given sizes of the dims."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    symbols: dict[Any, Any] = {}
    for leaf, value in zip(example.leaves, values[len(values) - len(example.leaves) :], strict=True):
        for axis, dim in enumerate(leaf.axes):
            if dim is not None and hasattr(value.shape[axis], "node"):
                size = value.shape[axis].node
                symbols[size.shape_env.replace(size.expr)] = sizes[dim.name]
    known: dict[Any, int | float | bool] = {}

    def value_of(number: Any) -> int | float | bool:
        if not hasattr(number, "node"):
            return int(number)
        expr = number.node.expr
        if expr not in known:
            replaced = number.node.shape_env.replace(expr)
            if not replaced.free_symbols <= symbols.keys():
                raise Unfollowed(f"the size {expr}")
            try:
                known[expr] = number.node.pytype(evaluated(replaced, symbols))
            except ArithmeticError as fault:
                # the model does not come to it at these sizes, else it had not run
                raise Unfollowed(f"a number without a value at these sizes ({expr})") from fault
        return known[expr]

    return value_of
