"""The passes below the graph, grounded: the module after them computes what it did before, through @prepare too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from tests.passes.graphs import Graph
from tilewright.backends.cpu.machines import MACHINES
from tilewright.errors import CapacityError, MemoryPlanError, PassOptionError
from tilewright.ir.attributes import Bool
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.structure import FuncOp, PackedOp, WeightOp
from tilewright.ir.machine import Level, Machine
from tilewright.ir.module import dim_space, functions, weights
from tilewright.ir.passing import Context, Pass, Pipeline, run_pipeline
from tilewright.ir.tile.containment import unproved
from tilewright.ir.tile.memory import StageOp
from tilewright.ir.tile.residence import Place, Places
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.tile_interpreter import run_module
from tilewright.ir.verifier import verify
from tilewright.passes.memory_plan_check import check_memory_plan
from tilewright.passes.pipeline import PASSES
from tilewright.passes.plan_memory import slots_of
from tilewright.testing import run

GROUPS = "canonicalize,fuse"
KERNELS = "canonicalize,hoist-weights,fuse,inline-layers,plan-layout,lower-to-tile,place-levels"


def feed_forward(dtype: str = "f32") -> Graph:
    g = Graph("b: 0..5", "t: 1..9", dtype=dtype)
    x = g.input("x", ["b", "t", 20])
    up, down = g.weight("up", [50, 20]), g.weight("down", [50, 20])
    bias = g.weight("bias", [50])
    hidden = g.map("gelu", g.map("add", g.op(MatmulOp, x, up, transpose_b=True), bias))
    g.done(g.map("add", g.op(MatmulOp, hidden, down), x))
    return g


def lowered(module: ModuleOp, text: str, machine: Machine | None = None) -> ModuleOp:
    made = module.clone()
    ctx = Context(machine=machine or MACHINES["avx512-bf16"](), dims=dim_space(made))
    run_pipeline(Pipeline.parse(text, PASSES), made, ctx, instruments=[Contained()])
    return made


class Contained:
    """After every pass that leaves kernels, each access is proved to stay inside its buffer."""

    @contextmanager
    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> Iterator[None]:
        yield
        verify(module)
        assert not unproved(module), p.name


def agree(before: ModuleOp, after: ModuleOp, rng: np.random.Generator, tolerance: float = 1e-5) -> None:
    """Both modules give equal results at three size tuples on fresh inputs and weights."""
    names = {name: [d.constant or 0 for d in kind.dims] for name, kind in weights(before).items()}
    for sizes in ({"b": 1, "t": 1}, {"b": 3, "t": 7}, {"b": 0, "t": 2}):
        given = {n: torch.from_numpy(rng.standard_normal(shape)).float() for n, shape in names.items()}
        main = next(f for f in functions(before).values() if f.kind.data == "main")
        inputs = {
            name: torch.from_numpy(rng.standard_normal([d.evaluate(sizes) for d in tensor(arg).dims])).float()
            for name, arg in main.arguments.items()
        }
        wanted = run(before, inputs, weights=given, wide=True)
        found = run_module(after, inputs, weights=given)
        for name, want in wanted.items():
            torch.testing.assert_close(found[name].double(), want.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("machine", ["generic", "avx2", "avx512", "avx512-bf16", "avx512-amx"])
def test_weights_become_panels_of_the_machine_in_prepare(machine: str, rng: np.random.Generator) -> None:
    module = feed_forward().module
    described = MACHINES[machine]()
    after = lowered(module, KERNELS, described)
    agree(module, after, rng)
    prepare = next(f for f in functions(after).values() if f.kind.data == "prepare")
    assert all(d.dims[-1].constant == described.rules.panel for d in map(tensor, prepare.terminator.values))
    assert not any(isinstance(op, WeightOp) and op.label.data in ("up", "down") for op in main_of(after).block.ops)


def test_a_weight_used_in_two_layouts_is_packed_twice_and_in_one_layout_once(rng: np.random.Generator) -> None:
    g = Graph("b: 0..5", "t: 1..9")
    x, w = g.input("x", ["b", "t", 24]), g.weight("w", [24, 24])
    g.done(g.op(MatmulOp, g.op(MatmulOp, g.op(MatmulOp, x, w), w), w, transpose_b=True))
    after = lowered(g.module, KERNELS)
    agree(g.module, after, rng, 1e-3)
    assert len({op.label.data for op in main_of(after).block.ops if isinstance(op, PackedOp)}) == 2


def test_bf16_pairs_lie_side_by_side_only_where_the_machine_multiplies_them(rng: np.random.Generator) -> None:
    module = feed_forward().module
    text = KERNELS.replace("hoist-weights", "set-precision{dtype=bf16},hoist-weights")
    for machine, rank in ((MACHINES["avx512-amx"](), 4), (MACHINES["avx512"](), 3)):
        after = lowered(module, text, machine)
        # 50 products of about 4 by 1, each operand rounded to 8 bits, in sums of about 28
        agree(module, after, rng, 50 * 4 * 2**-7)
        prepare = next(f for f in functions(after).values() if f.kind.data == "prepare")
        panels = [v for n, v in prepare.returned.items() if "panels" in n]
        assert len(panels) == 2
        assert {tensor(v).rank for v in panels} == {rank}


def test_precision_keeps_results_in_the_dtype_they_had() -> None:
    after = lowered(feed_forward().module, "set-precision{dtype=bf16}")
    assert [tensor(v).dtype.name for v in main_of(after).terminator.values] == ["f32"]
    with pytest.raises(PassOptionError, match="'i8' is not a float dtype"):
        lowered(feed_forward().module, "set-precision{dtype=i8}")


def test_what_weights_alone_decide_runs_in_prepare(rng: np.random.Generator) -> None:
    g = Graph("b: 0..5", "t: 1..9")
    x, w = g.input("x", ["b", "t", 12]), g.weight("w", [12])
    scale = g.map("exp", g.map("mul", w, 0.5))
    table = g.constant([float(i) for i in range(12)], [12])
    g.done(g.map("add", g.map("mul", x, scale), table))
    after = lowered(g.module, KERNELS)
    agree(g.module, after, rng)
    assert not any(isinstance(op, WeightOp) for op in main_of(after).block.ops)


def test_calls_become_bodies(rng: np.random.Generator) -> None:
    g = Graph("b: 0..5", "t: 1..9")
    x = g.input("x", ["b", "t", 8])
    for layer in range(3):
        g.path = f"layers.{layer}"
        x = g.map("add", g.map("gelu", g.op(MatmulOp, x, g.weight(f"w{layer}", [8, 8]))), x)
        g.path = ""
    g.done(x)
    after = lowered(g.module, KERNELS.replace("hoist-weights", "dedupe-layers"))
    agree(g.module, after, rng, 1e-4)
    assert [f.kind.data for f in functions(after).values() if f.kind.data == "layer"] == []
    kernels = [op for op in after.body.block.ops if isinstance(op, KernelOp)]
    launches = [op for op in main_of(after).block.ops if isinstance(op, LaunchOp)]
    assert len(launches) == 3
    assert len({op.callees.data for op in launches}) == 1, kernels


def main_of(module: ModuleOp) -> FuncOp:
    return next(f for f in functions(module).values() if f.kind.data == "main")


def launches_of(module: ModuleOp) -> list[LaunchOp]:
    return [op for op in main_of(module).block.ops if isinstance(op, LaunchOp)]


def chain(*widths: int, dims: tuple[str, str] = ("b: 0..5", "t: 1..9")) -> Graph:
    """Products of these widths, one after another."""
    g = Graph(*dims)
    x = g.input("x", ["b", "t", 16])
    for i, (before, after) in enumerate(zip((16, *widths), widths, strict=False)):
        x = g.op(MatmulOp, x, g.weight(f"w{i}", [before, after]))
    g.done(x)
    return g


def test_a_chain_needs_two_slots_however_long_it_is(rng: np.random.Generator) -> None:
    module = chain(*[16] * 7).module
    after = lowered(module, KERNELS + ",plan-memory")
    agree(module, after, rng, 1e-2)
    assert len(slots_of(main_of(after))) == 2
    assert len(slots_of(main_of(lowered(module, KERNELS + ",plan-memory{reuse=false}")))) == 6


@pytest.mark.parametrize("widths", [(64, 32, 16, 8, 4), (4, 8, 16, 32, 64)])
def test_a_slot_serves_what_is_smaller_and_grows_for_what_is_larger(widths: tuple[int, ...]) -> None:
    after = lowered(chain(*widths).module, KERNELS + ",plan-memory")
    assert len(slots_of(main_of(after))) == 2


@pytest.mark.parametrize("dims", [("b: 0..", "t: 1.."), ("b: 0..", "t: 1..64"), ("b: 0..7", "t: 1..")])
def test_sizes_without_any_bound_are_planned_for_the_call(dims: tuple[str, str]) -> None:
    module = chain(16, 16, 16, dims=dims).module
    check_memory_plan(lowered(module, KERNELS + ",plan-memory"))


def test_independent_launches_share_a_stretch_without_a_barrier() -> None:
    g = Graph("b: 0..5", "t: 1..9")
    x = g.input("x", ["b", "t", 16])
    parts = [g.op(MatmulOp, x, g.weight(f"w{i}", [16, 16])) for i in range(3)]
    g.done(*parts)
    after = lowered(g.module, KERNELS + ",plan-memory")
    assert [op.barrier.data for op in launches_of(after)] == [False, False, True]


def drop_barrier(module: ModuleOp) -> None:
    next(op for op in launches_of(module) if op.barrier.data).properties["barrier"] = Bool(False)


def write_what_is_read(module: ModuleOp) -> None:
    first, second = launches_of(module)[:2]
    second.properties["places"] = first.places


def overwrite_a_live_value(module: ModuleOp) -> None:
    for op in launches_of(module)[:-1]:
        op.properties["places"] = Places((Place.slot(0),))


def forget_a_slot(module: ModuleOp) -> None:
    launches_of(module)[0].properties["places"] = Places(())


@pytest.mark.parametrize("fault", [drop_barrier, write_what_is_read, overwrite_a_live_value, forget_a_slot])
def test_the_checker_finds_every_seeded_fault(fault: Callable[[ModuleOp], None]) -> None:
    module = lowered(chain(16, 16, 16, 16).module, KERNELS + ",plan-memory")
    check_memory_plan(module)
    fault(module)
    with pytest.raises(MemoryPlanError):
        check_memory_plan(module)


def scratchpad(size: int) -> Machine:
    base = MACHINES["avx2"]()
    near = Level("near", size, 1e11, "explicit")
    units = tuple(replace(unit, reaches=("near",)) for unit in base.units)
    return Machine("scratch", "test", 1, units, (base.memory, near), base.rules, launch=1e-6)


def test_scratchpads_are_named_by_stages_and_caches_are_not(rng: np.random.Generator) -> None:
    module = feed_forward().module
    staged = lowered(module, KERNELS, scratchpad(1 << 20))
    agree(module, staged, rng)
    assert any(isinstance(op, StageOp) and op.level.data == "near" for op in staged.walk())
    assert not any(isinstance(op, StageOp) for op in lowered(module, KERNELS).walk())


def test_tiles_that_do_not_fit_a_scratchpad_are_an_error_with_the_table() -> None:
    with pytest.raises(CapacityError, match=r"loads \d+ bytes a program; near holds 64\n.*bytes"):
        lowered(feed_forward().module, KERNELS, scratchpad(64))
