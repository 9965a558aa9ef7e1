"""A matrix unit that must not fall asleep while vectors work between two products of a block.

Left alone for longer than `MatrixUnit.idle` vectors take, the unit sleeps, and the next product waits for it: after 64
rows of 128 exponentials, 0.7 us, it waited 0.34 us; products in between, whose results nobody reads, took 0.03 us
each. Every sweep between two products that is long enough has them.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from xdsl.ir import Operation, SSAValue

from tilewright.ir.tile.compute import DotOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.pairs import paired
from tilewright.passes.lower_tile_to_loops.sweeps import Break, Space

_SUMS, _LEFT, _RIGHT = 0, 4, 6  # registers that are written before a product reads them


def staying_awake(cx: Lowering, value: SSAValue, space: Space) -> Space:
    """A sweep that evaluates a value, with products in between where the unit would fall asleep before the next one."""
    unit, op = cx.machine.rules.matrix, value.owner
    if unit is None or unit.idle is None or not cx.b.matrix or space.axis is None or not isinstance(op, Operation):
        return space
    rows = prod(n for axis, n in enumerate(space.extents) if axis != space.axis)
    vectors = -(-space.extents[space.axis] // space.lanes)
    every = max(1, unit.idle // vectors)
    if rows <= every or not _between_products(cx, op):
        return space
    return replace(space, broken=Break(every, lambda: cx.b.matrix_dot(_SUMS, _LEFT, _RIGHT)))


def _between_products(cx: Lowering, op: Operation) -> bool:
    """Whether the unit multiplies before and after an op of a block."""

    def multiplies(other: Operation) -> bool:
        return isinstance(other, DotOp) and paired(other, cx.machine.rules) is not None

    block = op.parent
    dots = [] if block is None else [other for other in block.ops if multiplies(other)]
    return any(dot.is_before_in_block(op) for dot in dots) and any(op.is_before_in_block(dot) for dot in dots)
