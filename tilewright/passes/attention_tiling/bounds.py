"""The least bytes that exact attention moves past a memory of a given size.

Two bounds hold, and the larger is given. Every operand and result moves once. And for square attention with n queries,
n keys and d features, an M-word memory lets pass at least an amount that grows as n^2 d^2 / M where M >= d^2, and as
n^2 d / sqrt(M) below (Saha and Ye, "The I/O complexity of attention", 2024; the first is what tiles reach, the second
that of a product of n by d matrices, Hong and Kung 1981). Their constants are open: here they are 1, n^2 is the number
of pairs that the mask lets see each other, and d^2 is the product of the features of k and of v.
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

from tilewright.ir.machine import Machine
from tilewright.passes.attention_tiling.sizes import Sizes


@lru_cache(64)
def compulsory(sizes: Sizes) -> int:
    """Bytes of q, of the keys and values that any query may see, of the results, and of the log-sum-exp, once each."""
    keys = sizes.visited(1, 1).touched
    operands = sizes.rows * sizes.features + sizes.batch * sizes.key_heads * keys * (
        sizes.features + sizes.value_features
    )
    return (operands + sizes.rows * sizes.value_features) * sizes.width + lse_bytes(sizes)


def lse_bytes(sizes: Sizes) -> int:
    """Bytes of the log-sum-exp, in f32 or wider."""
    return sizes.rows * max(4, sizes.width) if sizes.lse else 0


def regime(sizes: Sizes, room: int) -> str:
    """Whether a memory of `room` bytes holds a product of a key's and a value's features ("large") or not ("small")."""
    return "large" if room // sizes.width >= sizes.features * sizes.value_features else "small"


def lower_bound(sizes: Sizes, room: int) -> float:
    """Bytes that pass a memory of `room` bytes at least, by the bounds above."""
    words = max(1, room // sizes.width)
    pairs = sizes.batch * sizes.heads * sizes.seen
    square = sizes.features * sizes.value_features
    growing = pairs * square / words if regime(sizes, room) == "large" else pairs * sqrt(square) / sqrt(words)
    return max(compulsory(sizes), growing * sizes.width)


def bounds_of(sizes: Sizes, machine: Machine) -> dict[str, dict[str, float | str]]:
    """For each level that gives to one of known size: the least bytes it gives and takes, past which level, and by
    which of the bounds."""
    return {
        machine.way(level)[-2].name: {
            "past": level.name,
            "bytes": lower_bound(sizes, level.size),
            "regime": regime(sizes, level.size),
        }
        for level in machine.levels[1:]
        if level.kind != "registers" and level.size is not None
    }
