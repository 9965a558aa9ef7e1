"""Tries out what only the sizes 0 and 1 could break: the model itself against its graph, at those sizes.

Models branch on 1 where it changes nothing (a causal mask over one token, a batch of 1 expanded to itself), and asking
for two tokens or more would take single tokens away from all of them. Where the numbers differ, the sizes are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import TilewrightError
from tilewright.frontend.captured import Captured
from tilewright.frontend.examples import Example, Leaf
from tilewright.frontend.exporting import Exported
from tilewright.frontend.guarding import Fact, settled
from tilewright.frontend.huggingface import cacheless
from tilewright.frontend.preserving import preserved
from tilewright.frontend.quiet import quiet
from tilewright.ir.graph_interpreter import GraphInterpreter
from tilewright.ir.guards import Guard

if TYPE_CHECKING:
    import torch

# Draws of the inputs for each combination of sizes: single elements of either sign, large and small.
_SCALES: Final = (1.0, -1.0, 8.0, 1e4)
# Sizes that are neither 0 nor 1: one that costs little to run, and the most that another dim is tried with.
_FEW: Final = 3
_MANY: Final = 33


def tried(model: torch.nn.Module, exported: Exported, captured: Captured) -> tuple[Guard, ...]:
    """The guards for the doubtful facts that the trial did not confirm; SpecialisationError where a range says it."""
    broken = [fact for fact in exported.settled.doubtful if not _harmless(model, exported, captured, fact)]
    return settled(broken, exported.symbols.space, exported.own, doubts=False).guards


def _harmless(model: torch.nn.Module, exported: Exported, captured: Captured, fact: Fact) -> bool:
    """Whether the graph is right at the sizes that break a fact; not where no call of these sizes could be tried."""
    names = [dim.name for dim in fact.dims]
    dims, own = exported.example.dims, exported.own
    # the other dims are few, as in the example, or as small as declared: torch concludes from one dim on others
    few = {d.name: max(d.min, min(own[d.name], _FEW)) for d in dims}
    smallest = {d.name: max(d.min, 1) for d in dims}
    many = {d.name: max(d.min, _MANY if d.max is None else min(d.max, _MANY)) for d in dims}
    for refused in fact.refused() or []:
        small = dict(zip(names, refused, strict=True))
        at = [{**others, **small} for others in (few, own, smallest, many)]
        allowed = [sizes for sizes in at if all(guard.holds(sizes) for guard in captured.guards)]
        # the example's own sizes can be large, and stand in where a few are not allowed
        chosen = [sizes for sizes in allowed if sizes != at[1]] or allowed
        if not chosen or not all(_agrees(model, exported, captured, sizes) for sizes in chosen):
            return False
    return True


def _agrees(model: torch.nn.Module, exported: Exported, captured: Captured, sizes: Mapping[str, int]) -> bool:
    """Whether the graph computes what the model does at these sizes. A model that fails there does not agree."""
    example = exported.example.resized(sizes)
    draws = any(leaf.is_tensor for leaf in example.leaves)
    for number, scale in enumerate(_SCALES[: None if draws else 1]):
        given = _drawn(example, scale, number)
        try:
            outputs, after = _eager(model, given, captured.states)
            wanted = [*_leaves(outputs), *after.values()]
        except Exception:  # noqa: BLE001 (whatever a model raises: it does not run at this size)
            return False
        tensors = [leaf.value.clone() for leaf in given.leaves if leaf.is_tensor]
        states = {name: value.clone() for name, value in captured.states.items()}
        try:
            interpreter = GraphInterpreter(captured.module, weights=captured.weights, states=states)
            results = list(interpreter.run(tensors).values())
            found = [*_leaves(captured.signature.rebuild(results, dict(sizes))), *(states[name] for name in after)]
        except (TilewrightError, ZeroDivisionError, RuntimeError):
            return False
        if len(found) != len(wanted) or not all(_same(a, b) for a, b in zip(found, wanted, strict=True)):
            return False
    return True


def _drawn(example: Example, scale: float, seed: int) -> Example:
    """The example with fresh floats, and whole numbers drawn from its own, because they may be indices."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def drawn(leaf: Leaf) -> Leaf:
        if not leaf.is_tensor or not leaf.value.numel():
            return leaf
        if not leaf.value.is_floating_point():
            # the first draw is the example itself
            places = torch.randint(leaf.value.numel(), (leaf.value.numel(),), generator=generator)
            return leaf if seed == 0 else replace(leaf, value=leaf.value.flatten()[places].reshape(leaf.value.shape))
        value = torch.randn(leaf.value.shape, generator=generator).abs() + 0.1
        return replace(leaf, value=(value * scale).to(leaf.value.dtype))

    entries = tuple(replace(entry, leaves=tuple(drawn(leaf) for leaf in entry.leaves)) for entry in example.entries)
    return replace(example, entries=entries)


def _eager(
    model: torch.nn.Module, example: Example, states: Mapping[str, torch.Tensor]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model's outputs, and what it leaves in the buffers that are states."""
    import torch

    args, kwargs = replace(
        example,
        entries=tuple(
            replace(e, leaves=tuple(replace(x, value=x.value.clone()) if x.is_tensor else x for x in e.leaves))
            for e in example.entries
        ),
    ).call()
    with preserved(model), cacheless(model), _buffers_kept(model), torch.no_grad(), quiet():
        outputs = model(*args, **kwargs)
        return outputs, {name: b.clone() for name, b in model.named_buffers() if name in states}


@contextmanager
def _buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """Puts back what a forward writes into buffers."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


def _leaves(value: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return list(pytree.tree_leaves(value))


def _same(found: Any, wanted: Any) -> bool:
    import torch

    if not isinstance(wanted, torch.Tensor):
        return bool(found == wanted)
    if not isinstance(found, torch.Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    # rounding of one row differs with the way it is computed, a wrong branch differs by far more
    a, b = found.double(), wanted.double()
    tolerance = 32 * torch.finfo(wanted.dtype).eps
    largest = b[b.isfinite()].abs().max().item() if bool(b.isfinite().any()) else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(largest, 1e-30), equal_nan=True))
