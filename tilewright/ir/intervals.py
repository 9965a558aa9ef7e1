"""Interval arithmetic on integers: the bounds of a result from the bounds of its operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

Interval: TypeAlias = tuple[int | None, int | None]  # inclusive; None is minus or plus infinity


def add(a: Interval, b: Interval) -> Interval:
    """Bounds of a sum."""
    return _both(int.__add__, a[0], b[0]), _both(int.__add__, a[1], b[1])


def multiply(a: Interval, b: Interval) -> Interval:
    """Bounds of a product."""

    def ends(interval: Interval) -> tuple[float, float]:
        low, high = interval
        return -math.inf if low is None else low, math.inf if high is None else high

    # 0 * inf is 0 here: a dim of size 0 times anything is empty.
    corners = [x * y if x and y else 0 for x in ends(a) for y in ends(b)]
    low, high = min(corners), max(corners)
    return None if low == -math.inf else int(low), None if high == math.inf else int(high)


def floordiv(a: Interval, b: Interval) -> Interval:
    """Bounds of a // b; nothing is known where b may be below 1."""
    (alo, ahi), (blo, bhi) = a, b
    if blo is None or blo < 1:
        return None, None
    low = None if alo is None else (alo // blo if alo < 0 else (0 if bhi is None else alo // bhi))
    high = None if ahi is None else (ahi // blo if ahi >= 0 else (-1 if bhi is None else ahi // bhi))
    return low, high


def mod(a: Interval, b: Interval) -> Interval:
    """Bounds of a - (a // b) * b for b of 1 or more."""
    (alo, ahi), (blo, bhi) = a, b
    positive = alo is not None and alo >= 0
    if positive and ahi is not None and blo is not None and ahi < blo:
        return a
    below = [] if bhi is None else [max(bhi - 1, 0)]
    if positive and ahi is not None:
        # what is left of a size is not more than the size
        below.append(ahi)
    return 0, min(below, default=None)


def minimum(a: Interval, b: Interval) -> Interval:
    """Bounds of the smaller."""
    return _both(min, a[0], b[0]), min((x for x in (a[1], b[1]) if x is not None), default=None)


def maximum(a: Interval, b: Interval) -> Interval:
    """Bounds of the larger."""
    return max((x for x in (a[0], b[0]) if x is not None), default=None), _both(max, a[1], b[1])


def intersect(a: Interval, b: Interval) -> Interval:
    """What two statements about the same number say together."""
    lows, highs = ([x for x in side if x is not None] for side in ((a[0], b[0]), (a[1], b[1])))
    return max(lows, default=None), min(highs, default=None)


def _both(choose: Callable[[int, int], int], a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else choose(a, b)
