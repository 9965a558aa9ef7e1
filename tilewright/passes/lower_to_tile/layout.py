"""Buffers as strides over a group's axes, and the merging of axes that every buffer walks alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.access import Axis, Space


@dataclass(slots=True)
class Strides:
    """A buffer's element strides per axis (absent: it does not vary along it) and the offset of its first element."""

    steps: dict[int, Expr]
    offset: Expr


def strides_of(space: Space, value: SSAValue) -> Strides:
    """The strides of a dense row-major value under its map."""
    return strides_along(space, space.maps[value], ViewOp.row_major(tensor(value).dims))


def strides_along(space: Space, axes: Sequence[Axis], pitches: Sequence[Expr]) -> Strides:
    """The strides of what has these axes of the space, so many elements apart."""
    steps: dict[int, Expr] = {}
    offset = Expr.of(0)
    for axis, stride in zip(axes, pitches, strict=True):
        offset = offset + axis.offset * stride
        inner = stride * axis.step
        for number in reversed(axis.axes):
            steps[number] = steps.get(number, Expr.of(0)) + inner
            inner = inner * space.extents[number]
    return Strides(steps, offset)


@dataclass(slots=True)
class Walk:
    """The merged axes a kernel iterates over: `extents[i]` is the size of merged axis i, made of `members[i]`."""

    extents: list[Expr]
    members: list[tuple[int, ...]]

    def strides(self, buffer: Strides) -> list[Expr | None]:
        """A buffer's stride along each merged axis; None where it does not vary."""
        return [buffer.steps.get(m[-1]) if m else None for m in self.members]


def merge_axes(
    space: Space, axes: Sequence[int], buffers: Mapping[SSAValue, Strides], apart: frozenset[int] = frozenset()
) -> Walk:
    """Merges neighbouring axes that every buffer walks as one dense axis (or not at all); `apart` axes stay alone."""
    extents: list[Expr] = []
    members: list[tuple[int, ...]] = []
    for axis in axes:
        extent = space.extents[axis]
        if (
            members
            and axis not in apart
            and members[-1][-1] not in apart
            and all(_continues(b, members[-1][-1], axis, extent) for b in buffers.values())
        ):
            extents[-1] = extents[-1] * extent
            members[-1] = (*members[-1], axis)
        else:
            extents.append(extent)
            members.append((axis,))
    return Walk(extents, members)


def _continues(buffer: Strides, outer: int, inner: int, extent: Expr) -> bool:
    if outer not in buffer.steps or inner not in buffer.steps:
        return outer not in buffer.steps and inner not in buffer.steps
    return buffer.steps[outer] == buffer.steps[inner] * extent
