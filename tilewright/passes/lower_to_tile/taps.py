"""The taps of a window: counted in row-major order, folded one after the other by one loop.

What convolutions, depthwise convolutions and pools share. That the order is row-major whatever the tile is what keeps a
sum's bits the same on all machines of a family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp

NUMBER = Expr.of("a0")
"""A tap's number, as the expressions of `Tap.index` name it."""


@dataclass(frozen=True, slots=True)
class Tap:
    """The tap that one turn of the loop is at. number: None where there is one, and no loop. extents: of its axes."""

    b: KernelBuilder
    extents: tuple[int, ...]
    number: SSAValue | None

    def index(self, expr: Expr) -> SSAValue | int:
        """An expression of NUMBER, here."""
        here = expr if self.number is not None else expr.substitute({"a0": 0})
        if here.constant is not None:
            return here.constant
        if self.number is None or here != NUMBER:
            return self.b.index(here, *([] if self.number is None else [self.number]))
        return self.number

    @property
    def coordinates(self) -> tuple[Expr, ...]:
        """The tap's place along each axis, as expressions of NUMBER."""
        found: list[Expr] = []
        inner, count = 1, prod(self.extents)
        for size in reversed(self.extents):
            place = NUMBER // inner
            inner *= size
            # nothing is counted beyond the outermost axis that has several taps
            found.append(Expr.of(0) if size == 1 else place if inner == count else place % size)
        return tuple(reversed(found))


def fold_taps(
    b: KernelBuilder, extents: Sequence[int], start: SSAValue, step: Callable[[Tap, SSAValue], SSAValue]
) -> SSAValue:
    """What `step` makes of the tap and the value so far, for every tap in order; the start where there is none."""
    extents, count = tuple(extents), prod(extents)
    if not count:
        return start
    if count == 1:
        return step(Tap(b, extents, None), start)
    with b.loop(0, count, 1, [start]) as loop:
        loop.give(step(Tap(b, extents, loop.at), loop.carried[0]))
    return loop.out[0]


def window_steps(op: ConvolutionOp) -> tuple[list[Expr], list[Expr]]:
    """Steps through a channels-last image, in elements: of batch and positions, and of taps along each spatial axis."""
    batch, *spatial, _ = ViewOp.row_major(tensor(op.x).dims)
    positions = [s * n for s, n in zip(spatial, op.strides.data, strict=True)]
    return [batch, *positions], [s * d for s, d in zip(spatial, op.dilation.data, strict=True)]
