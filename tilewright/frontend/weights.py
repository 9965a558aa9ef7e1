"""The model's own tensors behind an exported program: which placeholder is which, and which share storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

# A lifted constant up to this many equal elements is written into the graph; any other is a weight.
SMALL: Final = 64


@dataclass
class Tensors:
    """The tensors of one program.

    roles: for each placeholder that is not an argument, its kind ("weight", "state" or "inline") and its name. inline:
    tensors whose numbers go into the graph. transient: names of weights that no state dict holds.
    """

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    states: dict[str, torch.Tensor] = field(default_factory=dict)
    transient: set[str] = field(default_factory=set)
    roles: dict[str, tuple[str, str]] = field(default_factory=dict)
    inline: dict[str, torch.Tensor] = field(default_factory=dict)


def collect(program: ExportedProgram) -> Tensors:
    """Sorts a program's parameters, buffers and lifted constants into weights, states and numbers for the graph."""
    signature = program.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    tensors = Tensors()
    by_storage: dict[Any, str] = {}
    constants = 0
    for spec in signature.input_specs:
        kind, target = spec.kind.name, spec.target
        if kind not in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR") or target is None:
            continue
        value = program.state_dict.get(target, program.constants.get(target))
        if value is None:
            continue
        value = value.detach()
        persistent = kind != "CONSTANT_TENSOR" and target in program.state_dict
        role, name = "weight", target
        if target in mutated:
            role = "state"
            tensors.states[name] = value.clone()
            if not persistent:
                tensors.transient.add(name)
        elif not persistent and is_structure(value, lifted=kind == "CONSTANT_TENSOR"):
            role = "inline"
            tensors.inline[name] = value
        else:
            if kind == "CONSTANT_TENSOR":
                name, constants = f"constant.{constants}", constants + 1
            name = _shared(by_storage, value, name, tensors.aliases)
            tensors.weights[name] = value
            if not persistent:
                tensors.transient.add(name)
        tensors.roles[spec.arg.name] = (role, name)
    return tensors


def add_aliases(tensors: Tensors, model: torch.nn.Module) -> None:
    """Records the state-dict names under which the module knows a tensor that the exporter listed once."""
    known = {_storage(value): name for name, value in tensors.weights.items()}
    for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        canonical = known.get(_storage(value.detach()))
        if canonical is not None and canonical != name and name not in tensors.weights:
            tensors.aliases[name] = canonical


def _shared(by_storage: dict[Any, str], value: torch.Tensor, name: str, aliases: dict[str, str]) -> str:
    """The first name of a tensor's storage; later names become aliases."""
    first = by_storage.setdefault(_storage(value), name)
    if first != name:
        aliases[name] = first
    return first


def _storage(value: torch.Tensor) -> Any:
    """Equal for tensors that are the same elements of the same storage."""
    return value.untyped_storage()._cdata, value.storage_offset(), tuple(value.shape), value.stride(), value.dtype


def is_structure(value: torch.Tensor, *, lifted: bool) -> bool:
    """Whether a tensor outside the state dict is the model's code: few numbers, a count, one repeated integer."""
    if value.device.type == "meta":
        return False
    return (lifted and _is_number(value)) or (not value.is_floating_point() and _pattern(value) is not None)


def _is_number(value: torch.Tensor) -> bool:
    """Whether a small tensor is one number, repeated or not."""
    return value.numel() <= SMALL and (value.numel() < 2 or bool((value == value.reshape(-1)[0]).all()))


def _pattern(value: torch.Tensor) -> Mapping[str, int] | None:
    """How integers follow from their places: all equal, or counting along the last axis."""
    import torch

    if value.is_complex() or not value.numel():
        return None
    flat = value.reshape(-1)
    first = int(flat[0])
    if bool((flat == flat[0]).all()):
        return {"splat": first}
    length = value.shape[-1] if value.dim() else 1
    counts = length == value.numel() and value.dtype != torch.bool
    if counts and torch.equal(flat, torch.arange(first, first + length, dtype=value.dtype)):
        return {"start": first}
    return None


def pattern(value: torch.Tensor) -> Mapping[str, int] | None:
    """`{"splat": n}` or `{"start": n}` for integers that are all n, or count from n along the last axis."""
    return None if value.is_floating_point() else _pattern(value)
