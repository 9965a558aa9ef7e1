"""What attention is said to move is what its kernels count, grows as its formula says, and decides by itself where it
is asked to: against counting tile by tile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tests.passes.graphs import Graph
from tests.passes.lower_to_tile.groups import SPACE, draw, group, run_lowered
from tests.passes.test_attention_tiling import anchor, brute, context, run_on
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Level, Machine
from tilewright.ir.passing import Context
from tilewright.ir.schedules import ORDERS, Schedule
from tilewright.ir.tile.counting import Counters
from tilewright.ir.types import TensorType
from tilewright.passes.attention_tiling import AttentionTiling
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import Tiling, scheduled
from tilewright.passes.lower_to_tile.skeletons import lower_group
from tilewright.testing import MACHINE


def square(heads: int, groups: int, size: int, mask: str) -> GroupOp:
    """Attention of t queries to as many keys."""
    types = [TensorType.of(("b", h, "t", size), F32) for h in (heads, groups, groups)]
    return group("attention", types, lambda g, *xs: [g.add(AttentionOp.make(*xs, scale=0.3, mask=mask))])


def counted(rng: np.random.Generator) -> None:
    """Draws n, d, Br, Bc, a mask and heads; runs the kernel in the tile interpreter and compares what it counted."""
    groups, group_size = (int(n) for n in rng.integers(1, 3, 2))
    n, size, rows, columns = (int(rng.integers(low, high)) for low, high in ((1, 97), (2, 25), (5, 49), (1, 49)))
    order, part = str(rng.choice(ORDERS)), columns * int(rng.integers(1, 4))
    made = square(groups * group_size, groups, size, str(rng.choice(["none", "causal"])))
    stated = {"order": order, "block_q": rows, "block_k": columns, "part": part}
    made.properties["schedule"] = Schedule.of(stated)
    lowered = lower_group(made, "kernel", Context(MACHINES["avx512"](), SPACE))
    sizes = {"b": 1, "t": n}
    counters = Counters()
    run_lowered(made, lowered, len(lowered.variants) - 1, draw(made, sizes, rng), sizes, counters)

    sums = Sizes.of(anchor(made), sizes)
    tiling = scheduled(sums, made.schedule, MACHINES["avx512"]().rules)
    tiling = replace(tiling, variant=None)  # the last variant runs, whatever the number of queries
    assert counters.bytes.read + counters.bytes.write == tiling.named
    assert counters.bytes.matrix == tiling.matrix
    if order != "query-outer":
        return
    by_buffer = [moved["read"] + moved["write"] for moved in counters.bytes.buffers.values()]
    visited = sum(
        min(columns, n - j * columns)
        for first in range(0, n, rows)
        for j in range(-(-(n if sums.mask == "none" else min(n, first + rows)) // columns))
    )
    row, heads = 4 * size, groups * group_size
    assert by_buffer[0] == by_buffer[3] == heads * n * row
    assert by_buffer[1] == by_buffer[2] == heads * visited * row


def test_kernels_count_what_the_sums_over_their_tiles_are(rng: np.random.Generator) -> None:
    for _ in range(8):
        counted(rng)


@pytest.mark.slow
def test_kernels_count_what_the_sums_over_their_tiles_are_in_two_hundred_cases(rng: np.random.Generator) -> None:
    for _ in range(200):
        counted(rng)


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("order", ORDERS)
def test_what_moves_grows_with_the_square_of_the_length(mask: str, order: str, rng: np.random.Generator) -> None:
    rows, columns, size = (int(rng.integers(low, high)) for low, high in ((16, 65), (16, 65), (16, 129)))
    lengths = np.array([64 * max(rows, columns) * 2**i for i in range(5)])
    at = [Sizes(1, 2, 1, n, n, size, size, F32, mask, 0, 0) for n in lengths.tolist()]
    part = 0 if order == "query-outer" else 2 * columns

    def tiling(sizes: Sizes) -> Tiling:
        return Tiling(sizes, order, rows, columns, part=part)

    slope = np.polyfit(np.log(lengths), np.log([tiling(s).named for s in at]), 1)[0]
    assert slope == pytest.approx(2, abs=0.03)


def scratchpad(rng: np.random.Generator) -> Machine:
    """A machine whose tiles lie in a memory filled by name, of any size that holds the least of them."""
    near = Level("near", int(rng.integers(10 << 10, 40 << 10)), 1e11, "explicit")
    units = tuple(replace(unit, reaches=("near",)) for unit in MACHINE.units)
    return replace(MACHINE, cores=int(rng.integers(1, 9)), levels=(MACHINE.memory, near), units=units)


@cache
def moved_one_by_one(mask: str, size: int, length: int, rows: int, columns: int) -> int:
    """Bytes that four heads on two load and store, tile of keys by tile of keys, in f32."""
    sizes = Sizes(1, 4, 2, length, length, size, size, F32, mask, 0, 0)
    total = 0
    for count, tiles in brute(sizes, rows, columns):
        total += 2 * count + 2 * sum(min(columns, length - j * columns) for j in tiles)
    return 4 * total * size * 4


def test_by_io_the_choice_is_that_of_brute_force_over_legal_tilings(rng: np.random.Generator) -> None:
    size, length, segment = 16, 256, 64
    for _ in range(50):
        machine, mask = scratchpad(rng), str(rng.choice(["none", "causal"]))
        ctx = context(machine, objective="io", determinism="run")
        g = Graph()
        q, k, v = (g.input(n, [1, h, length, size]) for n, h in (("q", 4), ("k", 2), ("v", 2)))
        g.done(g.attention(q, k, v, scale=0.3, mask=mask))
        taken = run_on(g, ctx, AttentionTiling()).schedule
        (choice,) = ctx.chosen
        # what transfers fill must fit: a tile of queries, one of keys and one of values
        own, (_, height, _) = machine.rules.query_block, machine.rules.dot[-1]
        room = machine.levels[1].size or 0
        # keys in parts, here in one, leave and read the sums of every row
        apart = 2 * 4 * length * (size + 2) * 4
        legal = {
            (order, block): moved_one_by_one(mask, size, length, block, segment)
            + (0 if order == "query-outer" else apart)
            for order in ORDERS
            for block in sorted({own, *(height << i for i in range(9) if 16 <= height << i <= 256)})
            if 4 * size * (block + 2 * segment) <= room
        }
        open_ = [c for c in choice.candidates if c.refused is None and c.schedule.number("heads", 1) == 1]
        assert {(orders(c.schedule), c.schedule.number("block_q", 0)): c.facts["named"] for c in open_} == legal
        assert legal[orders(taken), taken.number("block_q", 0)] == min(legal.values())


def orders(schedule: Schedule) -> str:
    return str(schedule.to_dict()["order"])


LONG = textwrap.dedent("""
    from pathlib import Path

    import torch, tilewright

    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def held():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

    n = tilewright.Dim("n", 1, 65536)
    small = [torch.randn(1, 1, 128, 64) for _ in range(3)]
    program = tilewright.compile(Attend().eval(), tuple(small), dims={x: {2: n} for x in "qkv"})
    program(*small)
    q, k, v = (torch.randn(1, 1, 65536, 64) for _ in range(3))
    before = held()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    out = program(q, k, v)
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024 - before)
    row = torch.softmax(q[0, 0, 65535].double() @ k[0, 0].double().T / 8, -1) @ v[0, 0].double()
    assert (out[0, 0, 65535] - row).abs().max() < 1e-5
""")


@pytest.mark.slow
def test_sixty_five_thousand_tokens_take_memory_by_their_number() -> None:
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200e6
