"""The thread pool: right under many callers, small in threads, safe across forks and at the interpreter's end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.native_kernels import Relay, driver, relay_plan
from tilewright.errors import OptionError, ToolchainError
from tilewright.runtime.threads import ENVIRONMENT, Driver, ThreadPool, available_cores

ROOT = Path(__file__).parents[2]

# What every script below starts with: a pool of two threads, and a relay that takes a while.
PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
from tests.native_kernels import Relay, driver, relay_plan
from tilewright.runtime.threads import ThreadPool

pool = ThreadPool(driver(), cores=2)
quick, relay = relay_plan(97, 200), Relay(97)

def right(pool=pool):
    return (relay.run(pool, quick) == relay.expected(200)).all()

def os_threads():
    return len(os.listdir("/proc/self/task"))

def child(body):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise SystemExit("the child hangs")
        time.sleep(0.01)
"""


def run_script(body: str, *, timeout: float = 300) -> str:
    """Run a script in a fresh interpreter, so that forks, exits and thread counts are its own."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
        cwd=ROOT,
        timeout=timeout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    made = ThreadPool(driver(), cores=2)
    yield made
    made.close()


def test_one_thread_needs_no_thread() -> None:
    run_script("""
        before = os_threads()
        with pool.team(1) as team:
            assert team.threads == 1
        alone = ThreadPool(driver(), cores=1)
        assert right(alone)
        assert os_threads() == before
        assert right()
        assert os_threads() == before + 1
    """)


def test_a_team_is_as_large_as_asked_for_and_as_there_are_cores(pool: ThreadPool) -> None:
    for wanted, got in ((None, 2), (1, 1), (2, 2), (5, 2), (0, 1)):
        with pool.team(wanted) as team:
            assert team.threads == got
    with pool.team(1), pool.team() as second:
        assert second.threads == 1


def test_an_exception_in_a_team_gives_its_cores_back(pool: ThreadPool) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pool.team() as team:
            _ = team.threads // 0
        assert team.threads == 2


def test_a_dropped_team_gives_its_cores_back(pool: ThreadPool) -> None:
    for _ in range(3):
        team = pool.team()
        assert team.threads == 2
        del team


def test_eight_callers_get_right_results_from_no_more_threads_than_cores_and_callers() -> None:
    run_script("""
        before, most, wrong = os_threads(), 0, []
        plan = relay_plan(97, 300)
        start = threading.Barrier(8)

        def caller():
            global most
            mine = Relay(97)
            start.wait()
            for _ in range(40):
                if (mine.run(pool, plan) != mine.expected(300)).any():
                    wrong.append(1)
                most = max(most, os_threads())

        callers = [threading.Thread(target=caller) for _ in range(8)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        assert not wrong
        assert most - before <= 8 + pool.state.lease.cores - 1, (before, most)
    """)


def test_eight_callers_together_are_about_as_fast_as_one() -> None:
    # Several tries: other processes on the machine may take a core for one of them.
    pool, plan = ThreadPool(driver()), relay_plan(4096, 300)
    alone, together = Relay(4096), [Relay(4096) for _ in range(8)]

    def seconds(callers: list[Relay], calls: int) -> float:
        def main(relay: Relay) -> None:
            for _ in range(calls):
                relay.run(pool, plan)

        threads = [threading.Thread(target=main, args=(relay,)) for relay in callers]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    seconds([alone], 4)
    ratios = []
    for _ in range(6):
        ratios.append(seconds([alone], 64) / seconds(together, 8))
        if ratios[-1] >= 0.9:
            break
    pool.close()
    assert max(ratios) >= 0.9, ratios


def test_an_interrupt_while_waiting_for_cores_loses_none() -> None:
    run_script("""
        # where the tests were started in the background, interrupts are ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        held = pool.team()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            pool.team()
            raise SystemExit("not interrupted")
        except KeyboardInterrupt:
            pass
        held.close()
        for _ in range(3):
            with pool.team() as team:
                assert team.threads == 2
    """)


def test_a_child_forked_after_a_call_computes_with_threads_of_its_own() -> None:
    run_script("""
        assert right()

        def body():
            assert os_threads() == 1
            for _ in range(50):
                assert right()
            assert os_threads() == 2

        for _ in range(3):
            child(body)
        assert right()
    """)


def test_a_child_forked_while_other_threads_are_inside_calls_computes() -> None:
    run_script("""
        slow = relay_plan(97, 40, pauses=200_000)
        stop = threading.Event()

        def busy():
            mine = Relay(97)
            while not stop.is_set():
                assert (mine.run(pool, slow) == mine.expected(40)).all()

        others = [threading.Thread(target=busy) for _ in range(3)]
        for thread in others:
            thread.start()

        def body():
            for _ in range(20):
                assert right()
            with pool.team() as team:
                assert team.threads == 2

        for _ in range(5):
            time.sleep(0.02)
            child(body)
        stop.set()
        for thread in others:
            thread.join()
        assert right()
    """)


def test_a_child_forked_with_a_team_open_goes_on_alone() -> None:
    run_script("""
        def body():
            relay.buffers[0][:] = relay.start
            team.run(quick.address, relay.bases.ctypes.data)
            assert (relay.buffers[0] == relay.expected(200)).all()
            assert team.threads == 1
            team.close()
            assert right()

        with pool.team() as team:
            assert team.threads == 2
            child(body)
        assert right()
    """)


def test_a_child_forked_while_another_thread_loads_code_can_load_code() -> None:
    run_script("""
        from tests.native_kernels import GENERIC, RECORD
        from tilewright.backends.host.mlir import compile_object
        from tilewright.runtime import native
        code, stop = compile_object(RECORD, GENERIC), threading.Event()

        def loading():
            while not stop.is_set():
                native.load([code], ["record"])

        other = threading.Thread(target=loading)
        other.start()
        for _ in range(10):
            child(lambda: native.load([code], ["record"]))
        stop.set()
        other.join()
    """)


@pytest.mark.parametrize("state", ["never used", "idle", "daemon caller inside a call", "team never closed"])
def test_the_interpreter_ends_promptly_and_cleanly(state: str) -> None:
    body = {
        "never used": "pass",
        "idle": "assert right()",
        "daemon caller inside a call": """
            endless = relay_plan(97, 4000, pauses=1_000_000)
            threading.Thread(target=lambda: Relay(97).run(pool, endless), daemon=True).start()
            time.sleep(0.2)
        """,
        "team never closed": "team = pool.team(); team.run(quick.address, relay.bases.ctypes.data)",
    }[state]
    begin = time.monotonic()
    assert run_script(textwrap.dedent(body) + "\nprint('end of script')\n") == "end of script\n"
    assert time.monotonic() - begin < 60


def test_a_closed_pool_still_runs_calls_on_their_own_thread(pool: ThreadPool) -> None:
    plan, relay = relay_plan(31, 9), Relay(31)
    pool.close()
    pool.close()
    with pool.team() as team:
        assert team.threads == 1
    np.testing.assert_array_equal(relay.run(pool, plan), relay.expected(9))


def test_when_no_thread_is_to_be_had_the_call_runs_alone_and_keeps_one_core(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    plan, relay = relay_plan(31, 9), Relay(31)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pool.team() as team, pool.team() as other:
        assert (team.threads, other.threads) == (1, 1)
    np.testing.assert_array_equal(relay.run(pool, plan), relay.expected(9))


def test_the_number_of_cores_follows_affinity_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    run_script("""
        from tilewright.runtime.threads import available_cores
        os.environ.pop("TILEWRIGHT_THREADS", None)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        assert available_cores() == 1
    """)
    monkeypatch.setenv(ENVIRONMENT, "3")
    assert available_cores() == 3
    for text in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv(ENVIRONMENT, text)
        with pytest.raises(OptionError, match=f"{ENVIRONMENT}='{text}' is not a count of threads"):
            available_cores()


def test_a_driver_of_another_layout_is_refused() -> None:
    from tests.native_kernels import GENERIC, RECORD
    from tilewright.backends.host.mlir import compile_object

    with pytest.raises(ToolchainError, match=r"Symbols not found: \[ tw_\w+_v\d+ \]"):
        Driver(compile_object(RECORD, GENERIC))
