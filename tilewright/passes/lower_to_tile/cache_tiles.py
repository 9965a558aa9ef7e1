"""Blocks between the register tile and the whole: how many rows meet a stretch of a panel before the next stretch.

A stretch of k of a panel of weights is streamed from far away once, while the rows of the block multiply by the one
before it (`lower_tile_to_loops/prefetching.py`). The block's sums lie in memory between stretches, in full width, so
that an element's sum is the same chain of multiply-adds as in a register tile that walks all of k.
"""

from __future__ import annotations

from math import gcd

from tilewright.ir.dims import Expr, product
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.machine import Machine

_SHARE = 8  # a stretch, the next one, the block's rows and its sums are to fit the second-level cache together
_KEPT = 4  # weights of this part of that cache stay in it, and need not be asked for
_SPREAD = 2  # blocks may have from 1/2 of the machine's rows to a sixth more than that, to divide what there is
_MORE = 6


def block_of(machine: Machine, rows: Expr, depth: int, columns: int, size: int) -> tuple[int, int] | None:
    """(rows, k) of a block of a product [rows, depth] times panels of [depth, columns], `size` bytes an element.

    None where the register tile alone does as well: weights that stay in the cache anyway, sums in several chunks, and
    machines that hold no blocks.
    """
    most = machine.rules.block
    if not most or depth > machine.rules.reduction_chunk or not _streams(machine, depth * columns * size):
        return None
    stretch = _stretch(machine, depth, size)
    return None if stretch is None else (_rows(most, rows, machine.rules.dot[-1][1]), stretch)


def window_block(machine: Machine, op: ConvolutionOp) -> tuple[int, int] | None:
    """(image rows, k) of a block of a convolution in one group: whole rows of an image, and a stretch of a window's row
    of taps and channels. None where a register tile of positions alone does as well.
    """
    out, most = tensor(op.out), machine.rules.block
    if not most or op.groups.data != 1 or len(op.windows) < 2 or not op.channels_last.data:
        return None
    depth, filters = product((*op.windows, op.depth)).constant, op.filters.constant
    height, width = (d.constant for d in out.dims[-3:-1])
    if not depth or not filters or not height or not width:
        return None
    size = tensor(op.w).dtype.bytes
    lines = max((n for n in range(1, height + 1) if height % n == 0 and n * width <= _tallest(most)), default=0)
    if (lines < height and lines * width < most // _SPREAD) or not _streams(machine, depth * filters * size):
        return None
    if machine.rules.panel > -(-filters // machine.rules.lanes) * machine.rules.lanes:
        return None
    run = window_run(op)
    stretch = _stretch(machine, run, size)
    return None if stretch is None else (lines, stretch)


def window_run(op: ConvolutionOp) -> int:
    """Elements of an image under a window that lie dense in memory: its last axis' taps with their channels."""
    last, depth = op.windows[-1].constant or 0, op.depth.constant or 0
    dense = op.groups.data == 1 and (op.dilation.data[-1] == 1 or last == 1)
    return last * depth if dense else depth


def _streams(machine: Machine, weights: int) -> bool:
    """Whether weights of so many bytes come from beyond the second-level cache."""
    return weights > machine.block_bytes() // _KEPT


def _stretch(machine: Machine, depth: int, size: int) -> int | None:
    """The largest divisor of a depth whose panel is a small part of the cache; None where all are tiny."""
    longest = max(1, machine.block_bytes() // _SHARE // (machine.rules.panel * size))
    return next((d for d in range(min(depth, longest), longest // 4, -1) if depth % d == 0), None)


def _tallest(most: int) -> int:
    return most + most // _MORE


def _rows(most: int, rows: Expr, band: int) -> int:
    """Rows of a block: the machine's, or some that divide a number of rows that comes in multiples of a constant.

    band: rows of the register tile.
    """
    unit = gcd(*(coefficient for _, coefficient in rows.terms))
    if unit < most // _SPREAD:
        return most
    # rows beyond whole register tiles run one by one, which keeps half of the units waiting
    heights = range(most // _SPREAD, _tallest(most) + 1)
    return min(heights, key=lambda h: (-(-unit // h) * (h + h % band), -h))
