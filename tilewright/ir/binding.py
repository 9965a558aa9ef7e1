"""Finds the sizes of named dims from the shapes of actual tensors, and checks every dim against them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tilewright.errors import DimDeclarationError, DimMismatchError, DimRangeError, RankError
from tilewright.ir.dims import DimSpace, Expr


@dataclass(frozen=True, slots=True)
class Bound:
    """A tensor that a call brings: its name, the dims it was declared with, and its shape."""

    name: str
    dims: tuple[Expr, ...]
    shape: tuple[int, ...]


def bind(
    tensors: Sequence[Bound], space: DimSpace, needed: Iterable[str] = (), known: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The size of every symbol that the shapes determine.

    A symbol is found where it stands alone on an axis, or in a sum whose other symbols are found: `2*tokens + 1`. Then
    every axis is compared with its dim. needed: symbols that must come out. known: sizes from elsewhere (read dims).
    Raises RankError, DimMismatchError or DimRangeError with all offending axes, DimDeclarationError for what stays
    unknown.
    """
    wrong = [
        f"{t.name} has {len(t.shape)} axes, {len(t.dims)} are declared" for t in tensors if len(t.dims) != len(t.shape)
    ]
    if wrong:
        raise RankError(wrong, step="give each input the number of axes it was declared with")
    axes = [(t.name, i, d, n) for t in tensors for i, (d, n) in enumerate(zip(t.dims, t.shape, strict=True))]
    sizes = dict(known or {})
    pending = True
    while pending:
        pending = False
        for _, _, dim, size in axes:
            found = _solve(dim, size, sizes)
            if found is not None:
                sizes[found[0]] = found[1]
                pending = True

    unknown = sorted(set(needed) - set(sizes))
    if unknown:
        raise DimDeclarationError(
            f"no input's shape determines the dims {', '.join(unknown)}",
            step="let each dim be the whole size of an axis",
        )
    # an axis with a symbol that stays unknown (a run-time dim) says nothing yet
    settled = [(name, i, dim, size) for name, i, dim, size in axes if dim.symbols <= set(sizes)]
    mismatches = [
        f"axis {i} of {name} is {size}, {_explain(dim, sizes)}"
        for name, i, dim, size in settled
        if dim.evaluate(sizes) != size
    ]
    if mismatches:
        raise DimMismatchError(mismatches, step="make the shapes agree with the declared dims")
    check_bounds(sizes, space)
    return sizes


def check_bounds(sizes: Mapping[str, int], space: DimSpace) -> None:
    """Raises DimRangeError for sizes outside their declared bounds, with the lines that would admit them."""
    outside = []
    lines = []
    for dim in space.dims.values():
        size = sizes.get(dim.name)
        if size is not None and not (dim.min <= size and (dim.max is None or size <= dim.max)):
            outside.append(f"{dim.name} is {size}, declared {dim}")
            high = None if dim.max is None else max(dim.max, size)
            lines.append(f'tw.Dim("{dim.name}", {min(dim.min, size)}, {high})')
    if outside:
        raise DimRangeError(outside, step=f"declare {', '.join(lines)}")


def _solve(dim: Expr, size: int, sizes: Mapping[str, int]) -> tuple[str, int] | None:
    """The one unknown symbol of a dim and the size it must have, where the dim is linear in it."""
    unknown = dim.symbols - set(sizes)
    if len(unknown) != 1:
        return None
    (name,) = unknown
    rest = dim.substitute(sizes)
    offset = rest.substitute({name: 0}).constant
    # linear exactly when the polynomial is slope * name + offset, which is canonical
    slope = (rest - Expr.of(offset or 0)).terms
    if offset is None or len(slope) != 1 or slope[0][0] != Expr.of(name).terms[0][0]:
        return None
    value = (size - offset) // slope[0][1]
    # where it does not divide, the closest size is taken and the comparison reports the axis
    return name, max(value, 0)


def _explain(dim: Expr, sizes: Mapping[str, int]) -> str:
    if dim.is_static:
        return f"declared {dim}"
    parts = ", ".join(f"{s} = {sizes[s]}" for s in sorted(dim.symbols))
    return f"declared {dim} = {dim.evaluate(sizes)} (with {parts})"
