"""A step plan is laid out as native_abi says, read back here word by word."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tilewright.ir import native_abi as abi
from tilewright.runtime.step_plan import Step, StepPlan


def words(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address)) if count else []


def test_what_goes_in_is_read_back_at_the_layouts_offsets() -> None:
    rng = np.random.default_rng()
    steps = [
        Step(
            kernel=int(rng.integers(1, 1 << 47)),
            refs=[(int(base), int(offset)) for base, offset in rng.integers(0, 1 << 40, (int(rng.integers(0, 5)), 2))],
            dims=[int(dim) for dim in rng.integers(-(1 << 60), 1 << 60, int(rng.integers(0, 4)))],
            barrier=bool(rng.integers(2)),
        )
        for _ in range(7)
    ]
    plan = StepPlan(steps)
    header = words(plan.address, abi.PLAN_WORDS)
    assert header[abi.PLAN_NSTEPS] == plan.nsteps == 7
    assert header[abi.PLAN_MAX_REFS] == max(len(step.refs) for step in steps)
    for index, step in enumerate(steps):
        row = words(header[abi.PLAN_STEPS] + abi.WORD * abi.STEP_WORDS * index, abi.STEP_WORDS)
        assert row[abi.STEP_KERNEL] == step.kernel
        assert row[abi.STEP_NREFS] == len(step.refs)
        flat = words(row[abi.STEP_REFS], abi.REF_WORDS * len(step.refs))
        pairs = zip(flat[abi.REF_BASE :: abi.REF_WORDS], flat[abi.REF_OFFSET :: abi.REF_WORDS], strict=True)
        assert list(pairs) == list(step.refs)
        assert words(row[abi.STEP_DIMS], len(step.dims)) == list(step.dims)
        assert bool(row[abi.STEP_FLAGS] & abi.BARRIER_AFTER) == step.barrier


def test_times_hold_begin_and_end_of_every_step_on_every_thread() -> None:
    times = StepPlan([Step(1, [], [])] * 5).times(3)
    assert times.shape == (3, 5, 2)
    assert times.dtype == np.int64
    assert not times.any()


def test_a_plan_cannot_be_edited_under_a_call_that_runs_it() -> None:
    plan = StepPlan([Step(1, [], [])])
    with pytest.raises(ValueError, match="read-only"):
        plan._words[0] = 2
