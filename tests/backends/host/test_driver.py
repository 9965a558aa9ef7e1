"""The native driver: it walks plans as laid out, its barriers hold, and its times are times."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.native_kernels import GENERIC, Relay, driver, library, relay_plan
from tilewright.backends.host.driver import driver_text
from tilewright.backends.host.mlir import TARGETS, compile_assembly, compile_object
from tilewright.ir import native_abi as abi
from tilewright.runtime.step_plan import Step, StepPlan
from tilewright.runtime.threads import ThreadPool


@pytest.fixture(params=[1, 2, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[ThreadPool]:
    """A pool of exactly that many threads, more than there are cores or not."""
    made = ThreadPool(driver(), cores=request.param)
    yield made
    made.close()


def test_a_kernel_sees_its_buffers_dims_and_thread_number(pool: ThreadPool) -> None:
    out = np.zeros((6, 4), np.int64)
    other = np.zeros((3, 4), np.int64)
    bases = np.array([other.ctypes.data, out.ctypes.data], np.int64)
    kernel = library()["record"]
    plan = StepPlan([Step(kernel, [(1, out.strides[0] * 3)], [-7, 1 << 50]), Step(kernel, [(0, 0)], [1, 2])])
    with pool.team() as team:
        team.run(plan.address, bases.ctypes.data)
        threads = team.threads
    assert not out[:3].any()
    for rows, dims in ((out[3:], (-7, 1 << 50)), (other, (1, 2))):
        for tid in range(3):
            assert tuple(rows[tid]) == ((tid + 1, threads, *dims) if tid < threads else (0, 0, 0, 0))


def test_a_plan_without_steps_or_refs_runs(pool: ThreadPool) -> None:
    nothing = compile_object(
        "llvm.func @k(%b: !llvm.ptr, %d: !llvm.ptr, %t: i64, %n: i64) {\n  llvm.return\n}", GENERIC
    )
    from tilewright.runtime import native

    code = native.load([nothing], ["k"])
    with pool.team() as team:
        team.run(StepPlan([]).address, 0)
        team.run(StepPlan([Step(code["k"], [], [])] * 3).address, 0)


@pytest.mark.parametrize("n", [1, 2, 97])
def test_every_step_sees_what_all_threads_wrote_in_the_step_before(pool: ThreadPool, n: int) -> None:
    steps = 4001 if pool.state.spin or pool.state.lease.cores == 1 else 501
    plan, relay = relay_plan(n, steps), Relay(n)
    for _ in range(3):
        np.testing.assert_array_equal(relay.run(pool, plan), relay.expected(steps))


@pytest.mark.parametrize("slow", [None, 0, 1])
def test_barriers_hold_when_threads_dawdle(pool: ThreadPool, slow: int | None) -> None:
    # Far more pauses than a waiter spins for: both ways of waiting take part.
    plan, relay = relay_plan(64, 61, pauses=12_000, slow=slow), Relay(64)
    np.testing.assert_array_equal(relay.run(pool, plan), relay.expected(61))


@pytest.mark.parametrize("slow", [0, 1])
def test_without_barriers_the_same_relay_goes_wrong(slow: int) -> None:
    pool = ThreadPool(driver(), cores=2)
    # The other thread is through with all steps before the slow one is with its first.
    plan, relay = relay_plan(64, 61, pauses=12_000, slow=slow, barriers=False), Relay(64)
    assert (relay.run(pool, plan) != relay.expected(61)).any()
    pool.close()


def test_waits_that_never_spin_are_right_too() -> None:
    pool = ThreadPool(driver(), cores=2)
    pool.state.spin = 0
    plan, relay = relay_plan(33, 400), Relay(33)
    for _ in range(3):
        np.testing.assert_array_equal(relay.run(pool, plan), relay.expected(400))
    pool.close()


def test_a_timed_run_gives_each_kernels_begin_and_end_on_pythons_clock(pool: ThreadPool) -> None:
    pauses = 20_000

    def paused() -> int:
        begin = time.perf_counter_ns()
        pool.driver.pause(pauses)
        return time.perf_counter_ns() - begin

    # the least of some: a busy machine stretches any of them
    one = min(paused() for _ in range(9))
    plan, relay = relay_plan(17, 5, pauses=pauses), Relay(17)
    with pool.team() as team:
        times = plan.times(team.threads)
        before = time.monotonic_ns()
        team.run(plan.address, relay.bases.ctypes.data, times.ctypes.data)
        after = time.monotonic_ns()
        threads = team.threads
    assert times.shape == (threads, 5, 2)
    assert before <= times.min()
    assert times.max() <= after
    spans = times[:, :, 1] - times[:, :, 0]
    assert (spans >= 0).all()
    for step in range(5):
        assert spans[step % threads, step] > one // 10, "the dawdling thread's time is in its own kernel call"
    # The barrier: nobody begins a step before everybody has ended the one before.
    assert (times[:, 1:, 0].min(axis=0) >= times[:, :-1, 1].max(axis=0)).all()


def test_the_driver_is_generic_code_that_needs_libc_alone() -> None:
    text = driver_text(GENERIC)
    assembly = compile_assembly(text, GENERIC)
    assert "ymm" not in assembly
    called = {line.split()[1].removesuffix("@PLT") for line in assembly.splitlines() if line.strip().startswith("call")}
    assert {name for name in called if not name.startswith(("*", "tw_"))} <= {
        *("syscall", "clock_gettime"),
        *("run", "barrier", "wait", "advance", "post", "stamp", "futex_wait", "futex_wake_all"),
    }
    for symbol in (abi.LAUNCH, abi.WORKER, abi.STOP, abi.PAUSE):
        assert f"\n{symbol}:" in assembly


def test_the_driver_compiles_for_aarch64_with_its_own_instructions() -> None:
    assembly = compile_assembly(driver_text(TARGETS["aarch64"]), TARGETS["aarch64"])
    assert "\tyield\n" in assembly
    assert "#98" in assembly, "futex has another number there"
