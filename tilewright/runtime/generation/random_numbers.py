"""Random numbers without a state: what is drawn depends on (seed, request, position, use) and on nothing else.

So a request's text does not depend on who ran beside it, on chunks, or on having been preempted. The generator is
Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011), whose
32-bit arithmetic every machine has.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


class Use(IntEnum):
    """What a number is for; numbers of different uses at one position are independent."""

    TOKEN = 0
    RACE = 1


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Four random 32-bit words of a counter of four and a key of two; counters may be arrays of uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & _WORD, (low >> 32) ^ c3 ^ k1, low & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, request: int, position: int, use: Use) -> float:
    """A number in [0, 1), a multiple of 2^-53. seed and request: 64 bits; position: 32 bits."""
    return float(_numbers(seed, request, position, int(use)))


def races(seed: int, request: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each token [m], an exponentially distributed number of its own."""
    numbers = _numbers(seed, request, position, ids.astype(np.uint64) * np.uint64(len(Use)) + np.uint64(Use.RACE))
    return -np.log1p(-np.asarray(numbers, np.float64))


def _numbers(seed: int, request: int, position: int, use: Any) -> Any:
    key = (seed & _WORD, (seed >> 32) & _WORD)
    high, low, _, _ = philox((position & _WORD, use, request & _WORD, (request >> 32) & _WORD), key)
    return (high << 21 | low >> 11) * 2.0**-53
