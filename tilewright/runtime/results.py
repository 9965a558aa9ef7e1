"""Memory for results: every call's own, and what callers have let go of serves the calls after.

A fresh page costs more than what a kernel does with it: the system clears it first and maps it, 0.2 to 0.5 ms a MiB,
where memory takes 0.03. So large results lie in blocks of our own. A block comes back when the last tensor, array or
view of it is gone, whichever thread drops it, and waits here for a result of about its size.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.dtypes import DType, from_torch_name
from tilewright.runtime.memory import fresh_pages
from tilewright.runtime.tensors import address_of, numpy_dtype, refused, room_of

Plan: TypeAlias = Sequence[tuple[Sequence[int], Sequence[int], Any]]
"""Tensors to make: (shape, strides in elements, dtype) of each."""

LARGE_BYTES = 2 << 20
"""From here on results lie in blocks; below, the C library's allocator keeps memory by itself, and takes 20 us less."""

_IDLE_TAKES = 64
# A block serves a result that leaves at most a fifth of it unused, and what rounding to pages adds.
_SPARE, _SLACK = 1.25, 2 << 20


_Pages: TypeAlias = NDArray[np.uint8]


class _Block:
    """Pages that are in use until nobody has this object. last: when they were taken."""

    __slots__ = ("_idle", "_last", "_pages")

    def __init__(self, pages: _Pages, idle: deque[tuple[int, _Pages]], last: int) -> None:
        self._pages, self._idle, self._last = pages, idle, last

    def __del__(self) -> None:
        self._idle.append((self._last, self._pages))


class Blocks:
    """Blocks between results. One waits until 64 other results were made without it, then the system has it back.

    No lock: a block may come back in the middle of anything, also of `take`, and the deque's own operations are
    indivisible.
    """

    def __init__(self) -> None:
        self._idle: deque[tuple[int, _Pages]] = deque()
        self._takes = 0

    def take(self, size: int) -> tuple[Any, int]:
        """`size` bytes as an object that NumPy and torch read, and their address; raises what `fresh_pages` does."""
        self._takes = now = self._takes + 1
        found = None
        for _ in range(len(self._idle)):
            try:
                last, pages = self._idle.popleft()
            except IndexError:  # another thread took it
                break
            if found is None and size <= pages.size <= _SPARE * size + _SLACK:
                found = pages
            elif now - last < _IDLE_TAKES:
                self._idle.append((last, pages))
        if found is None:
            found = fresh_pages(size)
        address = address_of(found)
        raw: Any = (ctypes.c_char * size).from_address(address)
        raw._keep = _Block(found, self._idle, now)
        return raw, address

    @property
    def held(self) -> int:
        """Bytes that wait."""
        return sum(pages.size for _, pages in list(self._idle))


_blocks = Blocks()


def fresh_numpy(plan: Plan) -> list[tuple[Any, int]]:
    """Fresh arrays on boundaries of 64 bytes, each with its address. Dtypes are the IR's."""
    return [_array(shape, dtype) for shape, _, dtype in plan]


def _array(shape: Sequence[int], dtype: DType) -> tuple[NDArray[Any], int]:
    element, size = numpy_dtype(dtype), math.prod(shape) * dtype.bytes
    try:
        if size >= LARGE_BYTES:
            raw, address = _blocks.take(size)
            return np.frombuffer(raw, element).reshape(shape), address
        room, address = room_of(size)
    except (OSError, MemoryError, ValueError, OverflowError) as fault:
        raise refused(shape, dtype, fault) from fault
    return room.view(element).reshape(shape), address


def fresh_torch(plan: Plan) -> list[tuple[Any, int]]:
    """Fresh torch tensors, each with its address. Dtypes are torch's."""
    # torch.empty takes twice as long; without `device` a default device of the user's would be taken.
    torch = sys.modules["torch"]
    empty = torch.empty_strided
    made = []
    for shape, strides, dtype in plan:
        try:
            count = math.prod(shape)
            if count * dtype.itemsize >= LARGE_BYTES:
                raw, address = _blocks.take(count * dtype.itemsize)
                made.append((torch.frombuffer(raw, dtype=dtype).view(shape), address))
                continue
            tensor = empty(shape, strides, dtype=dtype, device="cpu")
        except (OSError, MemoryError, RuntimeError, OverflowError, TypeError, ValueError) as fault:
            raise refused(shape, from_torch_name(str(dtype)) or dtype, fault) from fault
        made.append((tensor, tensor.data_ptr()))
    return made


def cleared_numpy(plan: Plan) -> list[tuple[Any, int]]:
    """As `fresh_numpy`, of zeros: nothing of what the memory held before is in them."""
    return _cleared(fresh_numpy(plan))


def cleared_torch(plan: Plan) -> list[tuple[Any, int]]:
    """As `fresh_torch`, of zeros."""
    return _cleared(fresh_torch(plan))


def _cleared(made: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    for tensor, address in made:
        ctypes.memset(address, 0, tensor.nbytes)
    return made
