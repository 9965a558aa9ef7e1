"""The sizes of declared dims to export with: the exporter decides by them, so they are chosen, not taken as given."""

from __future__ import annotations

from tilewright.frontend.examples import Example
from tilewright.ir.dims import Dim


def export_sizes(example: Example, taken: set[int]) -> dict[str, int]:
    """A size for each declared dim to export with: distinct, 3 or more, unlike static sizes, within bounds if possible.

    The exporter decides by these sizes, so an equality that holds by accident would become part of the graph.
    """
    sizes: dict[str, int] = {}
    static = taken | {size for size, dim in _axes(example) if dim is None}
    for dim in example.dims:
        low, high = max(dim.min, 3), dim.max
        choices = [n for n in _primes_from(low, 400) if n not in sizes.values()]
        inside = [n for n in choices if high is None or n <= high]
        free = [n for n in inside if n not in static]
        sizes[dim.name] = (free or inside or choices)[0]
    return sizes


def sizes_of(example: Example) -> dict[str, int]:
    """The size that each declared dim has in the example."""
    sizes: dict[str, int] = {}
    for size, dim in _axes(example):
        if dim is not None:
            sizes.setdefault(dim.name, size)
    return sizes


def raised_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """An example's sizes with those below 3 raised: dims that are equal there stay equal."""
    free = iter([n for n in _primes_from(3, 8 + len(sizes)) if n not in sizes.values()])
    raised = {size: next(free) for size in set(sizes.values()) if size < 3}
    return {name: raised.get(size, size) for name, size in sizes.items()}


def _axes(example: Example) -> list[tuple[int, Dim | None]]:
    """Size and dim of every axis of every tensor."""
    return [
        (int(size), leaf.axes[axis] if leaf.axes else None)
        for leaf in example.leaves
        if leaf.is_tensor
        for axis, size in enumerate(leaf.value.shape)
    ]


def _primes_from(low: int, count: int) -> list[int]:
    found: list[int] = []
    candidate = low
    while len(found) < count and candidate < low + 100_000:
        if all(candidate % k for k in range(2, int(candidate**0.5) + 1)):
            found.append(candidate)
        candidate += 1
    return found
