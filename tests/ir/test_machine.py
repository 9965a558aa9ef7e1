"""A machine's description is checked when it is made, and times follow from what work asks of its units and levels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tilewright.errors import BackendManifestError
from tilewright.ir.backend import backends
from tilewright.ir.cost import Work
from tilewright.ir.machine import Level, Machine, MatrixUnit, Unit
from tilewright.testing import MACHINE


def machines() -> list[Machine]:
    """Every machine of a backend of this package."""
    return [describe() for name in ("cpu", "toy", "cuda", "rocm") for describe in backends()[name].machines.values()]


def test_the_busiest_unit_or_level_decides_the_time() -> None:
    work = Work({("matrix", "f32"): 4e11, ("vector", "f32"): 3e10}, {"memory": 1e9, "cache": 2e11})
    # two cores: 2 s of products, 0.5 s of lanes, 0.1 s of memory, which is shared, and 1 s of the cores' caches
    assert MACHINE.seconds(work) == pytest.approx(2.0)
    assert MACHINE.seconds(Work({("vector", "f32"): 3e10}, work.moved)) == pytest.approx(1.0)
    assert MACHINE.seconds(Work({}, {"memory": 1e9})) == pytest.approx(0.1)
    assert MACHINE.seconds(work, imbalance=1.5) == pytest.approx(3.0)
    assert MACHINE.seconds(Work()) == 0.0


def test_products_of_several_dtypes_share_their_unit_and_an_unlisted_dtype_runs_as_f32() -> None:
    units = (Unit("matrix", {"f32": 1e11, "bf16": 4e11}, ("cache",)), MACHINE.units[1])
    machine = replace(MACHINE, units=units)
    assert machine.seconds(Work({("matrix", "f32"): 2e11, ("matrix", "bf16"): 8e11})) == pytest.approx(2.0)
    assert machine.seconds(Work({("matrix", "f16"): 2e11})) == pytest.approx(1.0)


def test_works_add_up_by_unit_and_level() -> None:
    one = Work({("matrix", "f32"): 1.0}, {"memory": 2.0})
    assert one + Work({("vector", "f32"): 3.0}, {"memory": 4.0}) == Work(
        {("matrix", "f32"): 1.0, ("vector", "f32"): 3.0}, {"memory": 6.0}
    )


@pytest.mark.parametrize(("programs", "share"), [(0, 1.0), (1, 2.0), (2, 1.0), (3, 4 / 3), (200, 1.0)])
def test_the_core_with_the_most_programs_is_waited_for(programs: int, share: float) -> None:
    assert MACHINE.imbalance(programs) == pytest.approx(share)


def test_orders_are_blocked_for_the_roomiest_level_that_fills_itself() -> None:
    found = {machine.name: machine.blocking_level() for machine in machines()}
    assert all(level is not None and level.kind == "cached" and level.size for level in found.values())
    assert found["avx2"] == found["avx512"] == Level("l2", 1 << 20, 80e9, alignment=64)
    scratchpad = replace(MACHINE, levels=(MACHINE.memory, Level("cache", 1 << 20, 1e11, "explicit"), MACHINE.levels[2]))
    assert scratchpad.blocking_level() is None


def test_bytes_pass_the_levels_that_lead_to_one() -> None:
    left, right = Level("left", 64, 1.0, "explicit", source="cache"), Level("right", 64, 1.0, "explicit", source="left")
    units = tuple(replace(unit, reaches=("right",)) for unit in MACHINE.units)
    levels = (*MACHINE.levels[:2], left, right, Level("other", 64, 1.0, source="cache"))
    forked = replace(MACHINE, units=units, levels=levels)
    assert [level.name for level in forked.way(right)] == ["memory", "cache", "left", "right"]
    assert [level.name for level in forked.caches] == ["cache", "other"]
    assert forked.way(forked.memory) == (forked.memory,)


def test_rows_are_padded_to_the_alignment() -> None:
    level = Level("near", 1024, 1.0, "explicit", alignment=16)
    assert [level.takes(3, row) for row in (16, 17, 1)] == [48, 96, 48]


def test_the_key_has_the_rates_that_passes_choose_by() -> None:
    key = MACHINE.key()
    for other in (
        replace(MACHINE, launch=2e-6),
        replace(MACHINE, levels=(replace(MACHINE.memory, bandwidth=2e10), *MACHINE.levels[1:])),
        replace(MACHINE, units=(Unit("matrix", {"f32": 2e11}, ("cache",)), MACHINE.units[1])),
    ):
        assert other.key() != key


def test_every_fault_of_a_description_is_named() -> None:
    levels = (*MACHINE.levels, Level("cache", None, 0.0, alignment=0, source="nowhere"))
    units = (Unit("matrix", {"bf16": 1.0}, ("l9",)),)
    odd = MatrixUnit("bf16", 16, 16, 32, 8, keys=48)
    with pytest.raises(BackendManifestError) as raised:
        replace(MACHINE, levels=levels, units=units, rules=replace(MACHINE.rules, matrix=odd))
    for fault in (
        "levels[cache].bandwidth: 0.0 is not positive",
        "levels[cache].size: only main memory may be as large as the host's",
        "levels[cache].alignment: 0 is not positive",
        "levels[cache]: two levels have this name",
        "levels[cache].source: nowhere is no level before it",
        "units[matrix].rates: one for f32 is needed, and all are positive",
        "units[matrix].reaches: l9 is no level",
        "rules.matrix.keys: 48 is not a multiple of its depth (32)",
        "units: one called matrix and one called vector are needed",
    ):
        assert fault in str(raised.value)
