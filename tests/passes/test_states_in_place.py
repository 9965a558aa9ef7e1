"""Updates of states: what stays where it is, what is copied for whom, and what the plan and its checker make of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tests.passes.test_lowering_passes import launches_of, lowered, main_of
from tilewright.backends.cpu.machines import MACHINES
from tilewright.errors import IRError, MemoryPlanError
from tilewright.ir.attributes import Bool, Ints
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import StateUpdateOp
from tilewright.ir.graph.structure import IN_PLACE, GroupOp, StateReadOp, StateWriteOp
from tilewright.ir.module import dim_space, parse_module, print_module, states
from tilewright.ir.passing import Context, Pipeline, run_pipeline
from tilewright.ir.tile.residence import Place, Places
from tilewright.ir.tile.structure import LaunchOp
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.tile_interpreter import run_module
from tilewright.ir.types import TensorType
from tilewright.ir.verifier import verify
from tilewright.passes.memory_plan_check import check_memory_plan
from tilewright.passes.pipeline import PASSES
from tilewright.passes.plan_memory import plan_function

PLANNED = "canonicalize,fuse,inline-layers,plan-layout,lower-to-tile,place-levels,plan-memory"
ROWS = 7


class Cache(Graph):
    """A state of 7 rows, and updates of t rows of it."""

    def __init__(self) -> None:
        super().__init__("t: 1..9")
        self.at = self.input("at", ["t"], "i64")
        self.new = self.input("new", ["t", 5])

    def read(self, name: str = "rows") -> SSAValue:
        return self.op(StateReadOp, name=name, result_types=[TensorType.of([ROWS, 5], F32)])

    def update(self, state: SSAValue, **stated: object) -> SSAValue:
        return self.op(StateUpdateOp, state, self.at, self.new, **stated)

    def write(self, value: SSAValue, name: str = "rows") -> None:
        self.function.block.add_op(StateWriteOp.make(value, name=name))


def plain() -> Cache:
    """One update, read afterwards."""
    g = Cache()
    after = g.update(g.read())
    g.write(after)
    g.done(g.map("neg", after))
    return g


def twice() -> Cache:
    """Two updates in a row, the second one adding."""
    g = Cache()
    after = g.update(g.update(g.read()), mode="add")
    g.write(after)
    g.done(g.map("neg", after))
    return g


def old_value_first() -> Cache:
    """The old value is read by what does not depend on the new one: order is enough."""
    g = Cache()
    before = g.read()
    after = g.update(before)
    g.write(after)
    g.done(g.map("neg", after), g.map("exp", before))
    return g


def old_value_after() -> Cache:
    """The old value is read by what depends on the new one."""
    g = Cache()
    before = g.read()
    after = g.update(before)
    g.write(after)
    g.done(g.map("mul", g.matmul(after, after, transpose_b=True), g.reduce("sum", before, 1, keepdims=True)))
    return g


def returned() -> Cache:
    """The caller is given the old and the new value."""
    g = Cache()
    before = g.read()
    after = g.update(before)
    g.write(after)
    g.done(before, after, g.map("neg", after))
    return g


def forgotten() -> Cache:
    """An update that is not written back: the state stays as it is."""
    g = Cache()
    g.done(g.map("neg", g.update(g.read())))
    return g


def forked() -> Cache:
    """Two updates of one value, of which one is written back."""
    g = Cache()
    before = g.read()
    first, second = g.update(before), g.update(before, mode="add")
    g.write(second)
    g.done(g.map("sub", first, second))
    return g


def handed_over() -> Cache:
    """Another state takes the old value of one that is updated, and an update of its own is dropped."""
    g = Cache()
    before = g.read()
    g.write(before, "last")
    g.write(g.update(before))
    g.done(g.map("neg", g.new))
    return g


def swapped() -> Cache:
    """Two states take each other's values."""
    g = Cache()
    a, b = g.read("a"), g.read("b")
    g.write(b, "a")
    g.write(a, "b")
    g.done(g.map("neg", a))
    return g


def replaced() -> Cache:
    """A state takes a whole new value, and its old one is read afterwards."""
    g = Cache()
    before = g.read()
    g.write(g.map("mul", before, 0.5))
    g.done(g.map("mul", before, g.map("exp", g.read())))
    return g


def of_itself() -> Cache:
    """Rows of the state are put into the state."""
    g = Cache()
    before = g.read()
    after = g.op(StateUpdateOp, before, g.at, g.gather(before, g.at))
    g.write(after)
    g.done(g.map("neg", after))
    return g


def of_something_computed() -> Cache:
    """A value that is no state is updated, and becomes one."""
    g = Cache()
    half = g.map("mul", g.read(), 0.5)
    after = g.update(half)
    g.write(after)
    g.done(g.map("add", after, half))
    return g


def rows_of_a_reshape() -> Cache:
    """The state is seen under other dims on its way."""
    g = Cache()
    flat = g.reshape(g.read(), ROWS * 5)
    one = g.reshape(g.slice(g.reshape(g.new, "5*t"), 0, 0, "t"), "t")
    after = g.reshape(g.op(StateUpdateOp, flat, g.at, one), ROWS, 5)
    g.write(after)
    g.done(g.map("neg", after))
    return g


# how many copies each needs of values that would be overwritten
CASES: list[tuple[Callable[[], Cache], int]] = [
    (plain, 0),
    (twice, 0),
    (old_value_first, 0),
    (old_value_after, 0),
    (returned, 2),
    (forgotten, 1),
    (forked, 1),
    (handed_over, 1),
    (swapped, 1),
    (replaced, 0),
    (of_itself, 0),
    (of_something_computed, 1),
    (rows_of_a_reshape, 0),
]


def copies_in(module: ModuleOp) -> list[LaunchOp]:
    return [op for op in launches_of(module) if op.callees.data[0].startswith("copy")]


@pytest.mark.parametrize(("build", "copies"), CASES, ids=lambda c: getattr(c, "__name__", str(c)))
def test_updates_in_place_compute_what_the_values_say(
    build: Callable[[], Cache], copies: int, rng: np.random.Generator
) -> None:
    module = build().module
    after = lowered(module, PLANNED)
    check_memory_plan(after)
    assert len(copies_in(after)) == copies
    for tokens in (1, 3, 9):
        held = {n: torch.from_numpy(rng.standard_normal((ROWS, 5))).float() for n in states(module)}
        inputs = {
            "at": torch.from_numpy(rng.integers(0, ROWS, tokens)),
            "new": torch.from_numpy(rng.standard_normal((tokens, 5))).float(),
        }
        wanted_states = {n: v.clone() for n, v in held.items()}
        wanted = run_module(module, inputs, states=wanted_states)
        found_states = {n: v.clone() for n, v in held.items()}
        found = run_module(after, inputs, states=found_states)
        for name, want in wanted.items():
            torch.testing.assert_close(found[name], want, rtol=1e-4, atol=1e-4)
        for name, want in wanted_states.items():
            torch.testing.assert_close(found_states[name], want, rtol=0, atol=0)


def test_an_update_lives_in_its_state_and_moves_what_it_writes() -> None:
    module = lowered(twice().module, PLANNED)
    updates = [op for op in launches_of(module) if op.updates.data]
    assert [op.places.data for op in updates] == [(Place.state("rows"),)] * 2
    # threads meet between what changes a state and what reads it
    assert all(op.barrier.data for op in updates)
    for op in updates:
        (kernel,) = op.kernels(module)
        traffic = kernel_traffic(kernel).at({"t": 3})
        assert traffic["write"] == 3 * 5 * 4
    assert parse_module(print_module(module)).is_structurally_equivalent(module)


def test_a_report_is_told_of_every_copy() -> None:
    module = returned().module
    ctx = Context(machine=MACHINES["avx2"](), dims=dim_space(module))
    run_pipeline(Pipeline.parse(PLANNED, PASSES), module, ctx)
    assert [n.text for n in ctx.noted if n.what == "state"] == ["copied, because it is returned"]


def first_update(module: ModuleOp) -> LaunchOp:
    return next(op for op in launches_of(module) if op.updates.data)


def elsewhere(module: ModuleOp) -> None:
    first_update(module).properties["places"] = Places((Place.slot(0),))


def another_state(module: ModuleOp) -> None:
    first_update(module).properties["places"] = Places((Place.state("other"),))


def no_barrier(module: ModuleOp) -> None:
    first_update(module).properties["barrier"] = Bool(False)


def no_barrier_before(module: ModuleOp) -> None:
    position = launches_of(module).index(first_update(module))
    launches_of(module)[position - 1].properties["barrier"] = Bool(False)


def no_write(module: ModuleOp) -> None:
    write = next(op for op in main_of(module).block.ops if isinstance(op, StateWriteOp))
    main_of(module).block.erase_op(write)


def read_late(module: ModuleOp) -> None:
    """What read the new value reads the old one."""
    update = first_update(module)
    update.outputs[0].replace_all_uses_with(next(iter(update.updated.values())))


def whole(module: ModuleOp) -> None:
    """A launch that replaces all elements writes straight into a state."""
    last = launches_of(module)[-1]
    last.properties["places"] = Places((Place.state("rows"),))


FAULTS = [
    (elsewhere, "changes a value in place that is not in slot 0"),
    (another_state, "changes a value in place that is not in state 'other'"),
    (no_barrier, "reads state 'rows' before all threads wrote it"),
    (no_barrier_before, "overwrites state 'rows' while"),
    (no_write, "state 'rows' is changed, and nothing writes it"),
    (read_late, "reads state 'rows', which no longer holds its operand"),
    (whole, "writes all of state 'rows', which takes values after the launches"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS, ids=lambda f: getattr(f, "__name__", None))
def test_the_checker_finds_every_fault_of_a_state(fault: Callable[[ModuleOp], None], said: str) -> None:
    module = lowered(old_value_first().module, PLANNED)
    check_memory_plan(module)
    fault(module)
    with pytest.raises(MemoryPlanError, match="TW") as raised:
        check_memory_plan(module)
    assert any(said in str(p) for p in raised.value.problems), raised.value


def test_a_launch_says_what_its_kernel_changes() -> None:
    module = lowered(plain().module, PLANNED)
    first_update(module).properties["updates"] = Ints(())
    with pytest.raises(IRError, match=r"changes the results \[\] in place, @.* changes \[0\]"):
        verify(module)


def test_what_no_launch_made_is_not_changed_in_place() -> None:
    g = Cache()
    x = g.input("x", [ROWS, 5])
    g.done(g.update(x))
    module = lowered(g.module, PLANNED)
    # a copy of the input is changed instead
    assert [place.kind for op in launches_of(module) for place in op.places.data] == ["slot", "slot"]
    update = first_update(module)
    copy = next(iter(update.updated.values()))
    copy.replace_all_uses_with(main_of(module).block.args[2])
    with pytest.raises(MemoryPlanError, match="changes a value in place that is no state and that no launch made"):
        plan_function(main_of(module), dim_space(module), reuse=True)


def test_the_price_of_an_update_is_what_it_writes() -> None:
    g = Cache()
    op = StateUpdateOp.make(g.read(), g.at, g.new)
    cost = op.cost()
    assert (cost.read.evaluate({"t": 3}), cost.write.evaluate({"t": 3})) == (3 * 5 * 4 + 3 * 8, 3 * 5 * 4)
    assert tensor(op.out) == tensor(op.state)
    # and so does the group that becomes its kernel
    module = lowered(plain().module, "fuse")
    (group,) = [op for op in module.walk() if isinstance(op, GroupOp) and op.kind.data == IN_PLACE]
    assert group.cost() == cost
