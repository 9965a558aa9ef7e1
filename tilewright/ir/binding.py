"""Finds the sizes of named dims from the shapes of actual tensors, and checks every dim against them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tilewright.errors import DimDeclarationError, DimMismatchError, DimRangeError, RankError
from tilewright.ir.dims import DimSpace, Expr
from tilewright.ir.solve import Axis, linear, solve


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

    Symbols are found as `solve` says, and every axis is compared with its dim. needed: symbols that must come out.
    known: sizes from elsewhere (read dims). Raises RankError, DimMismatchError or DimRangeError with all offending
    axes, DimDeclarationError for what stays
    unknown.
    """
    wrong = [
        f"{t.name} has {len(t.shape)} axes, {len(t.dims)} are declared" for t in tensors if len(t.dims) != len(t.shape)
    ]
    if wrong:
        raise RankError(wrong, step="give each input the number of axes it was declared with")
    axes = [Axis(t.name, i, d, n) for t in tensors for i, (d, n) in enumerate(zip(t.dims, t.shape, strict=True))]
    solution = solve(axes, known or {})
    sizes = solution.values
    # An axis with a symbol that no axis can give (a run-time dim) says nothing yet.
    mismatches = [
        f"axis {axis.axis} of {axis.input} is {axis.size}, {_explain(axis.expr, sizes)}"
        for axis in solution.wrong
        if axis.expr.symbols <= sizes.keys() or linear(axis.expr.substitute(sizes)) is not None
    ]
    if mismatches:
        raise DimMismatchError(mismatches, step="make the shapes agree with the declared dims")
    unknown = sorted(set(needed) - sizes.keys())
    if unknown:
        raise DimDeclarationError(
            f"no input's shape determines the dims {', '.join(unknown)}",
            step="let each dim be the whole size of an axis",
        )
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


def _explain(dim: Expr, sizes: Mapping[str, int]) -> str:
    unknown = sorted(dim.symbols - sizes.keys())
    if unknown:
        return f"declared {dim}, which no {', '.join(unknown)} gives"
    if dim.is_static:
        return f"declared {dim}"
    parts = ", ".join(f"{s} = {sizes[s]}" for s in sorted(dim.symbols))
    return f"declared {dim} = {dim.evaluate(sizes)} (with {parts})"
