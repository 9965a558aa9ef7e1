"""Scratch memory for calls: arenas that grow on demand and wait in a pool, and the account of what a call needs.

An arena serves one call at a time. The pool holds as many as calls ran at once, so a steady load allocates nothing.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import CapacityError, OptionError
from tilewright.runtime.tensors import address_of

_HUGE_PAGE = 2 << 20
_SMALL = 64 << 10
ADDRESSABLE = 1 << 62
_ROWS_SHOWN = 12


def fresh_pages(size: int) -> NDArray[np.uint8]:
    """At least `size` zeroed bytes of the system's, at a page's start; huge pages where they are large, which halve the
    time of the first write. OSError, OverflowError, ValueError or MemoryError where there are none.

    Memory is private to the process: a forked child gets its own copy.
    """
    unit = _HUGE_PAGE if size >= _HUGE_PAGE else _SMALL
    room = max(1, -(-size // unit)) * unit
    if room > ADDRESSABLE:
        raise OverflowError("the size does not fit in an address")
    # Not Python's default, MAP_SHARED: parent and child of a fork would compute in the same bytes.
    memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if room >= _HUGE_PAGE:
        memory.madvise(mmap.MADV_HUGEPAGE)
    # The array keeps the mapping; the mapping goes when the last view does.
    return np.frombuffer(memory, np.uint8)


class Arena:
    """Bytes at a fixed address, aligned to a page; fresh ones read as zero."""

    def __init__(self, size: int) -> None:
        self.size = 0
        self._reserve(size)

    def _reserve(self, size: int) -> None:
        try:
            self._view = fresh_pages(size)
        except (OSError, OverflowError, ValueError, MemoryError) as fault:
            raise CapacityError(
                f"a call needs {shown(size)} of scratch memory, which this machine does not give: {fault}",
                step="call it with smaller dims, or free memory",
            ) from fault
        self.address = address_of(self._view)
        self.size = self._view.size

    def view(self, at: int, size: int) -> memoryview:
        """`size` bytes from offset `at`, to read and write."""
        return self._view[at : at + size].data

    def clear(self, size: int) -> None:
        """Zeros in the first `size` bytes."""
        self._view[:size] = 0

    def grow(self, size: int) -> None:
        """Make room for at least `size` bytes; contents are lost when it had less."""
        if size > self.size:
            # Given back first, so that a call never holds both.
            self._view = np.empty(0, np.uint8)
            self.size = 0
            self._reserve(size)


class ArenaPool:
    """Arenas between calls. Last given, first taken: its pages are the warmest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Arena] = []
        _pools.add(self)

    def take(self, size: int) -> Arena:
        """An arena of at least `size` bytes, for one call."""
        with self._lock:
            arena = self._idle.pop() if self._idle else None
        if arena is None:
            return Arena(size)
        arena.grow(size)
        return arena

    def give_back(self, arena: Arena) -> None:
        with self._lock:
            self._idle.append(arena)

    @property
    def held(self) -> int:
        """Bytes that idle arenas hold."""
        with self._lock:
            return sum(arena.size for arena in self._idle)

    def clear(self) -> None:
        """Give the idle arenas' memory back to the system."""
        with self._lock:
            self._idle.clear()

    def renew(self) -> None:
        """In a forked child: a lock that another thread held at the fork would stay locked for good."""
        self._lock = threading.Lock()


_pools: weakref.WeakSet[ArenaPool] = weakref.WeakSet()


def _renew_in_child() -> None:
    for pool in list(_pools):
        pool.renew()


os.register_at_fork(after_in_child=_renew_in_child)


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of a memory account: what it is ("slot 3", "result logits"), its bytes, and which formula gave them."""

    name: str
    bytes: int
    formula: str


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes a program holds while one call runs at given dims, the caller's own inputs not counted.

    weights: resident weights and packed tensors. states: tensors that live from call to call. slots: scratch memory of
    one call. results: the call's fresh outputs.
    """

    dims: dict[str, int]
    weights: tuple[Piece, ...]
    states: tuple[Piece, ...]
    slots: tuple[Piece, ...]
    results: tuple[Piece, ...]
    arena: int

    @property
    def total(self) -> int:
        """weights + states + the arena with its alignment + results."""
        return self.arena + sum(piece.bytes for piece in (*self.weights, *self.states, *self.results))

    def to_dict(self) -> dict[str, object]:
        """The figures as plain data, in bytes."""
        return {
            "dims": dict(self.dims),
            "weights": sum(p.bytes for p in self.weights),
            "states": sum(p.bytes for p in self.states),
            "scratch": self.arena,
            "results": sum(p.bytes for p in self.results),
            "total": self.total,
        }

    def __str__(self) -> str:
        at = ", ".join(f"{name}={value}" for name, value in self.dims.items())
        rows = [
            ("weights", sum(p.bytes for p in self.weights), f"{len(self.weights)} tensors"),
            ("states", sum(p.bytes for p in self.states), f"{len(self.states)} tensors"),
            ("scratch", self.arena, f"{len(self.slots)} slots"),
            ("results", sum(p.bytes for p in self.results), f"{len(self.results)} tensors"),
        ]
        lines = [f"{name:<8} {shown(size):>10}  {note}" for name, size, note in rows if size or name == "scratch"]
        lines += table((*self.weights, *self.states, *self.slots, *self.results))
        return f"one call at {at or 'its only sizes'} needs {shown(self.total)}\n" + "\n".join(lines)

    def check(self, limit: int | None) -> None:
        """CapacityError with the buffer table when the total is above `limit` bytes."""
        if limit is not None and self.total > limit:
            raise CapacityError(
                f"{self}\n  but memory_limit is {shown(limit)}",
                step=f"call it with smaller dims, or give compile() or tw.load() memory_limit={self.total}",
            )


def table(pieces: Sequence[Piece]) -> list[str]:
    """The largest pieces as lines, the rest as one sum."""
    ranked = sorted(pieces, key=lambda p: (-p.bytes, p.name))
    lines = [f"  {p.name:<24} {shown(p.bytes):>10}  {p.formula}" for p in ranked[:_ROWS_SHOWN]]
    rest = ranked[_ROWS_SHOWN:]
    if rest:
        lines.append(f"  {f'{len(rest)} smaller':<24} {shown(sum(p.bytes for p in rest)):>10}")
    return lines


def shown(size: int) -> str:
    """A number of bytes for people: 0 B, 1.5 KiB, 12.0 MiB."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def parse_bytes(text: str) -> int:
    """`1000B`, `512MiB`, `2GiB` in bytes. OptionError otherwise, and without a unit: 2 are hardly ever bytes."""
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    number = text.strip().rstrip("BKMGTi")
    try:
        amount, unit = float(number), text.strip()[len(number) :].strip()
        if not unit:
            raise OptionError(f"{text!r} has no unit", step=f"write {number}B, {number}MiB or {number}GiB")
        return int(amount * units[unit])
    except (KeyError, ValueError, OverflowError):
        raise OptionError(f"{text!r} is not a number of bytes", step="write 500000000B, 512MiB or 2GiB") from None
