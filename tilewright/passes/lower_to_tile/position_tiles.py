"""Register tiles of windows: positions along one image row by vectors of filters or channels.

Rows of an image are short (7, 14, 28 positions), so a tile that does not divide them wastes a good part of its work,
and one that does may have fewer vectors than a matmul's. Both losses are weighed here.
"""

from __future__ import annotations

from tilewright.ir.machine import Machine
from tilewright.passes.lower_to_tile.frame import padded

_LATENCY = 8  # independent multiply-adds that keep two units busy
_BESIDE = 2  # vectors of channels beside each other, where every channel has a window of its own


def position_tile(machine: Machine, positions: int | None, filters: int, columns: int | None = None) -> tuple[int, int]:
    """(positions, vectors of filters) held in registers, for image rows of that many positions (None: any number).

    columns: of the panels that the filters lie in already.
    """
    lanes, registers = machine.rules.lanes, machine.rules.registers
    _, rows, vectors = machine.rules.dot[-1]
    needed = -(-filters // lanes)
    if positions is None or not positions:
        return rows, min(vectors, needed)
    # beside the sums a vector of filters each, one broadcast, and two vectors that are loaded ahead: with fewer
    # registers a sum is spilled in the innermost loop, which costs up to half of the rate
    heights = {
        v: min(positions, max(1, (registers - v - 1 - min(v, 2)) // v)) for v in range(1, min(vectors, needed) + 1)
    }
    if columns is not None:
        vectors = needed = columns // lanes
        heights = {vectors: min(positions, max(1, (registers - vectors - 1 - min(vectors, 2)) // vectors))}
    choices = [(h, v) for v, most in heights.items() for h in range(1, most + 1)]
    return max(choices, key=lambda c: (round(_rate(c, positions, needed), 3), c[1], -c[0]))


def channel_tile(machine: Machine, positions: int | None, channels: int | None) -> tuple[int, int]:
    """(positions, channels) whose windows one program folds where channels do not meet: depthwise sums and pools.

    Sums have half of the registers; the rest is for what the next taps load. None: any number.
    """
    lanes = machine.rules.lanes
    width = _BESIDE * lanes if channels is None else min(_BESIDE * lanes, padded(max(channels, 1), lanes))
    rows = max(1, machine.rules.registers // (2 * _BESIDE))
    return (rows if positions is None else min(rows, max(positions, 1))), width


def _rate(tile: tuple[int, int], positions: int, vectors: int) -> float:
    """Useful multiply-adds per unit of time: what is not wasted at the ends, times how well the units are kept busy.

    A step of k loads height + width operands for height * width multiply-adds; two of either run in a cycle.
    """
    height, width = tile
    useful = positions / (-(-positions // height) * height) * vectors / (-(-vectors // width) * width)
    products = height * width
    # loads that the multiply-adds do not hide cost time, and few sums wait for one another
    busy = products / max(products, height + width, _LATENCY)
    # streaming a panel of filters is shared by the positions of the tile, broadcasting by its vectors
    return useful * busy * products / (products + 0.5 * (height + width))
