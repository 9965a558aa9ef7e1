"""Results that no cache holds are written past them: only then, only where lines are whole, with the same bits."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from xdsl.ir import SSAValue

import tilewright as tw
from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tests.passes.lower_to_tile.groups import SPACE, Body, group
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.reduction import SoftmaxOp
from tilewright.ir.graph.shape import BroadcastOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.loops.text import print_kernel
from tilewright.ir.machine import Machine
from tilewright.ir.passing import Context
from tilewright.ir.types import TensorType
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

LEAST = 4096


def machine(name: str, least: int | None = LEAST) -> Machine:
    """A class that streams from a few rows on."""
    found = MACHINES[name]()
    return replace(found, rules=replace(found.rules, streaming=least))


def lowered(made: GroupOp, on: Machine) -> Lowered:
    return lower_group(made, "kernel", Context(on, SPACE))


def doubled(width: int) -> GroupOp:
    x = TensorType.of(("t", width), F32)
    return group("map", [x], lambda g, x: [g.add(MapOp.make(x, x, fn="add"))])


def soft(width: int) -> GroupOp:
    x = TensorType.of(("t", width), F32)
    return group("row-reduction", [x], lambda g, x: [g.add(SoftmaxOp.make(x, axis=1))])


def aligned(size: int) -> NDArray[np.float32]:
    room = np.zeros(size + 16, np.float32)
    start = -room.__array_interface__["data"][0] % 64 // 4
    return room[start : start + size]


@pytest.mark.parametrize("make", [doubled, soft])
def test_the_size_of_the_results_chooses(make: object) -> None:
    found = lowered(make(64), machine("avx512"))  # type: ignore[operator]
    assert [v.limit for v in found.variants] == [LEAST - 1, None]
    assert found.guard.evaluate({"t": 16}) == LEAST
    assert len(lowered(make(64), machine("avx512", None)).variants) == 1  # type: ignore[operator]
    assert len(lowered(make(64), machine("avx512", 256 * 64 * 4 + 1)).variants) == 1  # type: ignore[operator]


@pytest.mark.parametrize("cpu", list(MACHINES))
@pytest.mark.parametrize(
    ("made", "streams"),
    [(doubled(64), True), (doubled(50), True), (soft(64), True), (soft(50), False), (soft(8), False)],
    ids=["map", "map of odd rows", "rows", "rows that end inside a line", "rows of half a line"],
)
def test_only_whole_lines_are_streamed(made: GroupOp, streams: bool, cpu: str) -> None:
    on = machine(cpu)
    plain, streamed = (print_kernel(lower_kernel(v.kernel, on)) for v in lowered(made, on).variants)
    assert "stream " not in plain
    if on.rules.lanes * 4 == 64 or streams:
        assert ("stream " in streamed) == streams


def added(width: int) -> GroupOp:
    """The sum of two operands and a row."""
    x, row = TensorType.of(("t", width), F32), TensorType.of((width,), F32)

    def build(g: Body, x: SSAValue, y: SSAValue, row: SSAValue) -> list[SSAValue]:
        wide = g.add(BroadcastOp.make(row, dims=["t", width]))
        return [g.add(MapOp.make(g.add(MapOp.make(x, y, fn="add")), wide, fn="add"))]

    return group("map", [x, x, row], build)


@pytest.mark.parametrize("cpu", list(MACHINES))
@pytest.mark.parametrize(
    ("made", "asked", "sweeps"),
    [(doubled(64), {"arg0"}, 1), (added(64), {"arg0", "arg1"}, 1), (soft(64), {"arg0"}, 2), (soft(8192), {"arg0"}, 1)],
    ids=["map", "map of three", "rows", "long rows"],
)
def test_what_follows_dense_operands_is_asked_for_in_one_sweep(
    made: GroupOp, asked: set[str], sweeps: int, cpu: str
) -> None:
    on = machine(cpu)
    silent = replace(on, rules=replace(on.rules, ahead=0))
    plain, streamed = (print_kernel(lower_kernel(v.kernel, on)) for v in lowered(made, on).variants)
    assert "prefetch" not in plain
    requests = re.findall(r"prefetch far (\w+)\[", streamed)
    assert set(requests) == asked
    # two sweeps read a short row, and a line that one of them asked for is on its way; all walks of a long row ask
    for name in asked:
        assert 1 <= requests.count(name) <= len(re.findall(rf"load {name}\[", streamed)) // sweeps
    assert "prefetch" not in print_kernel(lower_kernel(lowered(made, silent).variants[-1].kernel, silent))


@pytest.mark.parametrize("cpu", host_classes())
@pytest.mark.parametrize("made", [doubled(64), doubled(50), soft(64), soft(50)], ids=["map", "odd", "rows", "odd rows"])
def test_the_bits_are_the_same(made: GroupOp, cpu: str, rng: np.random.Generator) -> None:
    on = machine(cpu)
    plain, streamed = (NativeKernel(lower_kernel(v.kernel, on), cpu) for v in lowered(made, on).variants)
    width = made.block.args[0].type.dims[1].constant  # type: ignore[union-attr]
    for rows in (0, 1, 3, 17):
        x = rng.standard_normal(rows * width).astype(np.float32)
        for threads in (1, 2):
            wanted, got = aligned(rows * width), aligned(rows * width)
            plain([x, wanted], [rows], nthreads=threads)
            streamed([x, got], [rows], nthreads=threads)
            np.testing.assert_array_equal(wanted, got)


def test_a_program_switches_where_its_result_outgrows_the_caches() -> None:
    rows = tw.Dim("rows", 1, 9000)
    norm = torch.nn.LayerNorm(1024).eval()
    program = tw.compile(norm, args=(torch.randn(3, 1024),), dims={"input": (rows, None)})
    kernels = {n: program.report.at(rows=n).rows[0].kernel for n in (8191, 8192)}
    assert [name.endswith("_streamed") for name in kernels.values()] == [False, True]
    for n in (8191, 8192):
        x = torch.randn(n, 1024)
        torch.testing.assert_close(program(x), norm(x).detach(), rtol=1e-5, atol=1e-5)
