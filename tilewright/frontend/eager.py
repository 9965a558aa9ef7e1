"""Runs of the model itself, on values that are drawn: what a capture is compared with where nothing is proved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tilewright.frontend.examples import Example, Leaf
from tilewright.frontend.huggingface import cacheless
from tilewright.frontend.preserving import preserved
from tilewright.frontend.quiet import quiet

if TYPE_CHECKING:
    import torch


def drawn(example: Example, scale: float, seed: int) -> Example:
    """The example with fresh floats, and whole numbers drawn from its own, because they may be indices."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def fresh(leaf: Leaf) -> Leaf:
        if not leaf.is_tensor or not leaf.value.numel():
            return leaf
        if not leaf.value.is_floating_point():
            # the first draw is the example itself
            places = torch.randint(leaf.value.numel(), (leaf.value.numel(),), generator=generator)
            return leaf if seed == 0 else replace(leaf, value=leaf.value.flatten()[places].reshape(leaf.value.shape))
        value = torch.randn(leaf.value.shape, generator=generator).abs() + 0.1
        return replace(leaf, value=(value * scale).to(leaf.value.dtype))

    entries = tuple(replace(entry, leaves=tuple(fresh(leaf) for leaf in entry.leaves)) for entry in example.entries)
    return replace(example, entries=entries)


def eager(
    model: torch.nn.Module, example: Example, states: Mapping[str, torch.Tensor], *, calls: int = 1
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The leaves of the model's outputs, and what it leaves in the buffers that are states.

    calls: so many calls follow one another; each finds the buffers as they were before the first, and the attributes
    as the call before it left them.
    """
    import torch

    with preserved(model), cacheless(model), torch.no_grad(), quiet():
        for _ in range(calls):
            args, kwargs = replace(
                example,
                entries=tuple(
                    replace(e, leaves=tuple(replace(x, value=x.value.clone()) if x.is_tensor else x for x in e.leaves))
                    for e in example.entries
                ),
            ).call()
            with buffers_kept(model):
                outputs = leaves(model(*args, **kwargs))
                # an output can be a buffer, which is about to be put back
                results = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in outputs]
                after = {name: b.clone() for name, b in model.named_buffers() if name in states}
    return results, after


@contextmanager
def buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """Puts back the buffers that a forward replaces, and what it writes into them."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    tables = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for table, entries in tables:
            table.clear()
            table.update(entries)
        for buffer, value in before:
            buffer.data.copy_(value)


def leaves(value: Any) -> list[Any]:
    """What a nested result holds, in order."""
    from torch.utils import _pytree as pytree

    return list(pytree.tree_leaves(value))


def same(found: Any, wanted: Any) -> bool:
    """Whether two results of one computation are equal, within its rounding where they are floats."""
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
