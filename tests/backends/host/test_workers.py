"""Compile workers: the same bytes as in this process, coded errors across the border, crashes survived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from tests.native_kernels import GENERIC, RECORD, RELAY
from tilewright.backends.host.mlir import TARGETS, compile_object
from tilewright.backends.host.workers import CompilePool
from tilewright.errors import ToolchainError

ROOT = Path(__file__).parents[3]

# An intrinsic that the class lacks: LLVM's code generator aborts the process.
ABORTS = """
llvm.func @aborts(%a: vector<16xf32>, %b: vector<32xbf16>) -> vector<16xf32> {
  %r = llvm.call_intrinsic "llvm.x86.avx512bf16.dpbf16ps.512"(%a, %b, %b)
      : (vector<16xf32>, vector<32xbf16>, vector<32xbf16>) -> vector<16xf32>
  llvm.return %r : vector<16xf32>
}
"""


def named(index: int, lines: int = 1) -> str:
    body = "\n".join(f"  %x{i + 1} = arith.{('muli', 'xori')[i % 2]} %x{i}, %x0 : i64" for i in range(lines))
    return f"llvm.func @k{index}(%x0: i64) -> i64 {{\n{body}\n  llvm.return %x{lines} : i64\n}}"


def pids(pool: CompilePool) -> list[int]:
    found = [worker.process._process for worker in pool._workers]
    return [process.pid for process in found if process is not None]


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pool() -> Iterator[CompilePool]:
    # none ends for idleness on a busy machine
    with CompilePool(2, idle_seconds=600) as made:
        yield made


def test_a_worker_gives_the_bytes_that_this_process_would(pool: CompilePool) -> None:
    for target in TARGETS.values():
        text = RECORD if target is not TARGETS["generic"] else RELAY
        assert pool.submit(text, target).result(60) == compile_object(text, target)


def test_many_submissions_each_get_their_own_answer(pool: CompilePool) -> None:
    # One of them is larger than a pipe holds.
    texts = [named(i, 3000 if i == 5 else 1 + i) for i in range(24)]
    futures = [pool.submit(text, GENERIC) for text in texts]
    for index, future in enumerate(futures):
        assert f"k{index}\0".encode() in future.result(60)


def test_an_error_comes_back_as_what_it_was_and_the_worker_goes_on(pool: CompilePool) -> None:
    bad = "func.func @bad() {\n  %x = arith.addi %y, %y : i32\n  return\n}"
    before = pids(pool)
    with pytest.raises(ToolchainError) as here:
        compile_object(bad, GENERIC)
    with pytest.raises(ToolchainError) as there:
        pool.submit(bad, GENERIC).result(60)
    assert str(there.value) == str(here.value)
    assert there.value.problems == here.value.problems
    assert pids(pool) == before


def test_a_kernel_that_crashes_the_compiler_is_a_coded_error_and_hurts_no_other(pool: CompilePool) -> None:
    good = [pool.submit(named(i), GENERIC) for i in range(4)]
    bad = pool.submit(ABORTS, GENERIC)
    good += [pool.submit(named(i), GENERIC) for i in range(4, 8)]
    with pytest.raises(ToolchainError) as caught:
        bad.result(60)
    message = str(caught.value)
    assert "kernel @aborts: the compiler was killed by signal 6, 2 times in a row" in message
    assert "LLVM ERROR" in message
    for index, future in enumerate(good):
        assert f"k{index}\0".encode() in future.result(60)


def test_a_worker_killed_from_outside_is_replaced_and_its_kernel_compiled_after_all(pool: CompilePool) -> None:
    expected = compile_object(named(0, 4000), GENERIC)
    futures = [pool.submit(named(0, 4000), GENERIC) for _ in range(2)]
    time.sleep(0.02)
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
    assert [future.result(60) for future in futures] == [expected] * 2


def test_making_a_pool_does_not_wait_for_its_workers() -> None:
    begin = time.monotonic()
    with CompilePool(2) as pool:
        made = time.monotonic() - begin
        assert len(pids(pool)) == 2
        assert pool.submit(named(0), GENERIC).result(60)
        assert made < (time.monotonic() - begin) / 2


def test_leaving_the_pool_finishes_what_was_submitted_and_ends_the_workers() -> None:
    with CompilePool(1) as pool:
        futures = [pool.submit(named(i), GENERIC) for i in range(5)]
        processes = pids(pool)
    assert all(future.done() and future.result() for future in futures)
    until(lambda: not any(running(pid) for pid in processes))
    with pytest.raises(ValueError, match="closed"):
        pool.submit(RECORD, GENERIC)


def test_closing_without_waiting_cancels_what_is_left() -> None:
    pool = CompilePool(1)
    futures = [pool.submit(named(i, 2000), GENERIC) for i in range(6)]
    pool.close(wait=False)
    pool.close()
    assert all(future.done() for future in futures)
    with pytest.raises(CancelledError):
        futures[-1].result()


def test_a_future_cancelled_before_its_turn_is_not_compiled() -> None:
    with CompilePool(1) as pool:
        first = pool.submit(named(0, 2000), GENERIC)
        second, third = pool.submit(named(1), GENERIC), pool.submit(named(2), GENERIC)
        assert second.cancel()
        assert first.result(60)
        assert third.result(60)


def test_idle_workers_end_and_come_back_when_needed() -> None:
    with CompilePool(1, idle_seconds=0.2) as pool:
        assert pool.submit(named(0), GENERIC).result(60)
        (first,) = pids(pool)
        until(lambda: not running(first))
        for index in range(1, 4):
            assert pool.submit(named(index), GENERIC).result(60)
            time.sleep(0.15 * index)


def test_the_thread_that_talks_to_workers_is_there_only_while_they_work(pool: CompilePool) -> None:
    def pumps() -> int:
        return sum(thread.name == "tilewright-compile" for thread in threading.enumerate())

    assert pool.submit(named(0), GENERIC).result(60)
    until(lambda: pumps() == 0)


def test_a_worker_imports_no_torch_and_stays_small(pool: CompilePool) -> None:
    assert pool.submit(RELAY, GENERIC).result(60)
    # one that an earlier test killed is replaced when it is asked next
    alive = [pid for pid in pids(pool) if running(pid)]
    assert alive
    for pid in alive:
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch_cpu" not in maps
        rollup = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if ":" in line
        )
        assert int(rollup["Private_Dirty"].split()[0]) < 80_000, "kB that it alone holds"


def script(body: str) -> subprocess.Popen[str]:
    text = (
        "import os, time\n"
        "from tests.backends.host.test_workers import GENERIC, RECORD, CompilePool, compile_object, named, pids\n"
        f"from tilewright.backends.host.workers import shared_pool\n{body}"
    )
    return subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_workers_die_with_a_parent_that_is_killed() -> None:
    with script(
        "pool = CompilePool(2)\n"
        "futures = [pool.submit(named(i, 20_000), GENERIC) for i in range(2)]\n"
        "time.sleep(0.3)\n"
        "print(*pids(pool), flush=True)\n"
        "time.sleep(60)\n"
    ) as parent:
        assert parent.stdout is not None
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert [running(pid) for pid in processes] == [True, True]
        parent.kill()
    until(lambda: not any(running(pid) for pid in processes))


@pytest.mark.parametrize(
    "body", ["", "pool.submit(named(0), GENERIC).result()", "pool.submit(named(0, 5000), GENERIC)"]
)
def test_a_process_that_ends_takes_its_workers_along(body: str) -> None:
    with script(f"pool = shared_pool()\n{body}\nprint(*pids(pool), flush=True)\n") as parent:
        output, _ = parent.communicate(timeout=60)
        assert parent.returncode == 0
    processes = [int(pid) for pid in output.split()]
    assert processes
    until(lambda: not any(running(pid) for pid in processes))


def test_a_forked_child_gets_workers_of_its_own_and_leaves_the_parents_alone() -> None:
    with script(
        "expected = compile_object(RECORD, GENERIC)\n"
        "pool = shared_pool()\n"
        "assert shared_pool() is pool\n"
        "busy = pool.submit(named(0, 3000), GENERIC)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    good = shared_pool() is not pool and shared_pool().submit(RECORD, GENERIC).result(60) == expected\n"
        "    os._exit(0 if good else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert busy.result(60)\n"
        "assert pool.submit(RECORD, GENERIC).result(60) == expected\n"
    ) as parent:
        parent.communicate(timeout=60)
        assert parent.returncode == 0


def test_what_lies_in_the_current_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_mlir.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    with CompilePool(1) as pool:
        assert pool.submit(RECORD, GENERIC).result(60)
