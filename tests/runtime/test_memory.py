"""Arenas: aligned, private, grown on demand, one a call; the account of what a call needs."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.programs import B, T, affine_program
from tilewright.errors import CapacityError
from tilewright.ir.dims import Expr
from tilewright.runtime.memory import Arena, ArenaPool, shown
from tilewright.runtime.program import Routine, Slot
from tilewright.runtime.resolve import footprint, place_slots


@pytest.mark.parametrize("size", [0, 1, 4096, 65537, (2 << 20) - 1, (2 << 20) + 1])
def test_an_arena_is_aligned_zero_and_all_writeable(size: int) -> None:
    arena = Arena(size)
    assert arena.size >= max(size, 1)
    assert arena.address % 4096 == 0
    view = np.frombuffer(arena.view(0, arena.size), np.uint8)
    assert not view.any()
    view[:] = 7
    assert bytes(arena.view(size, 3)) == (b"\7\7\7" if size + 3 <= arena.size else bytes(arena.view(size, 3)))


def test_an_arena_grows_and_never_shrinks() -> None:
    arena = Arena(10)
    small, address = arena.size, arena.address
    arena.grow(small)
    assert (arena.size, arena.address) == (small, address)
    arena.grow(small + 1)
    assert arena.size > small
    arena.grow(1)
    assert arena.size > small


def test_what_the_machine_has_not_got_is_a_coded_error() -> None:
    for size in (1 << 55, 1 << 70):
        with pytest.raises(CapacityError) as raised:
            Arena(size)
        assert str(raised.value).startswith(
            f"TW028 does not fit in memory: a call needs {shown(size)} of scratch memory, "
            "which this machine does not give: "
        )
        assert str(raised.value).endswith("\n  next: call it with smaller dims, or free memory")


def test_a_forked_child_writes_to_memory_of_its_own() -> None:
    arena = Arena(100)
    arena.view(0, 6)[:] = b"parent"
    child = os.fork()
    if child == 0:
        arena.view(0, 6)[:] = b"child!"
        os._exit(0)
    os.waitpid(child, 0)
    assert bytes(arena.view(0, 6)) == b"parent"


def test_a_pool_hands_each_arena_to_one_caller_at_a_time() -> None:
    pool = ArenaPool()
    taken: set[int] = set()
    seen: set[int] = set()
    clashes = []
    lock = threading.Lock()

    def caller(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            size = int(rng.integers(0, 200_000))
            arena = pool.take(size)
            with lock:
                if id(arena) in taken:
                    clashes.append(id(arena))
                taken.add(id(arena))
                seen.add(id(arena))
            mark = bytes([seed]) * size
            arena.view(0, size)[:] = mark
            if bytes(arena.view(0, size)) != mark:
                clashes.append(size)
            with lock:
                taken.discard(id(arena))
            pool.give_back(arena)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert len(seen) <= 6
    assert pool.held > 0
    pool.clear()
    assert pool.held == 0


def test_one_caller_uses_one_arena() -> None:
    pool = ArenaPool()
    first = pool.take(100)
    pool.give_back(first)
    assert pool.take(50) is first
    assert pool.take(50) is not first


@given(
    st.lists(st.lists(st.integers(0, 300).map(lambda n: Expr.of(n) * T), max_size=3).map(tuple), max_size=6),
    st.integers(0, 9),
)
def test_slots_lie_apart_on_cache_lines_and_hold_their_largest_buffer(
    sizes: list[tuple[Expr, ...]], tokens: int
) -> None:
    routine = Routine((), tuple(Slot(each) for each in sizes))
    value = {e: e.evaluate({"tokens": tokens}) for each in sizes for e in each}
    offsets, end = place_slots(routine, value)
    ends = [*offsets[1:], end] if offsets else []
    for offset, after, each in zip(offsets, ends, sizes, strict=True):
        assert offset % 64 == 0
        largest = max((value[e] for e in each), default=0)
        assert largest <= after - offset < largest + 64


def test_a_footprint_counts_everything_but_the_inputs() -> None:
    n = B * T
    program = affine_program(main=Routine(affine_program().main.steps, (Slot((n * 4, Expr.of(100))), Slot((T,)))))
    found = footprint(program, {"batch": 3, "tokens": 7})
    assert found.arena == 128 + 64
    assert found.total == found.arena + 3 * 7 * 4 + 3 * 4
    assert found.to_dict() == {
        "dims": {"batch": 3, "tokens": 7},
        "weights": 12,
        "states": 0,
        "scratch": 192,
        "results": 84,
        "total": 288,
    }
    assert str(found) == (
        "one call at batch=3, tokens=7 needs 288 B\n"
        "weights        12 B  3 tensors\n"
        "scratch       192 B  2 slots\n"
        "results        84 B  1 tensors\n"
        "  slot 0                        100 B  100, 2 buffers\n"
        "  result y                       84 B  4*batch*tokens\n"
        "  slot 1                          7 B  tokens\n"
        "  packed:power                    4 B  4\n"
        "  weight:bias                     4 B  4\n"
        "  weight:scale                    4 B  4"
    )


def test_a_long_table_ends_in_a_sum() -> None:
    program = affine_program(main=Routine((), tuple(Slot((Expr.of(n),)) for n in range(20))))
    lines = str(footprint(program, {"batch": 1, "tokens": 1})).splitlines()
    assert len(lines) == 4 + 12 + 1
    assert lines[-1].split() == ["10", "smaller", f"{sum(range(8)) + 2 * 4}", "B"]  # slots 0..7, y and power


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (12 << 20, "12.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert shown(size) == text
