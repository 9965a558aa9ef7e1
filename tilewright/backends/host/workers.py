"""Worker processes that compile kernels: `shared_pool().submit(text, target)` gives a future of the object's bytes.

Processes, because two compilations in one process share locks and gain little, and because a fault in LLVM's code
generator ends the process it is in. They are started as commands, never forked, so they hold neither the parent's
memory nor its threads: only MLIR and LLVM.

One thread talks to all workers. It exists only while work is in flight, and idle workers end by themselves, so a
process that is done compiling has neither.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

from tilewright.backends.host.mlir import REPORT_STEP, CpuTarget, kernel_name
from tilewright.backends.host.worker_process import WorkerProcess
from tilewright.errors import Problem, ToolchainError

_MOST_WORKERS = 8
_IDLE_SECONDS = 10.0
_MOST_TRIES = 2


class CompilePool:
    """Worker processes, started at once and without waiting for them; started again when they crashed or idled away.

    As a context manager: leaving it waits for what was submitted and ends the workers.

    workers: how many, None for one a core but at most 8. idle_seconds: how long one waits for work before it ends.
    """

    def __init__(self, workers: int | None = None, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        count = min(_MOST_WORKERS, len(os.sched_getaffinity(0))) if workers is None else workers
        self._lock = threading.Lock()
        self._queue: deque[_Task] = deque()
        self._closed = False
        self._cancelled = False
        self._pump: threading.Thread | None = None
        self._woken, self._waker = socket.socketpair()
        self._workers = [_Worker(WorkerProcess(idle_seconds)) for _ in range(count)]
        _pools.add(self)

    def submit(self, text: str, target: CpuTarget, took: Callable[[float], None] | None = None) -> Future[bytes]:
        """Compile MLIR text as `mlir.compile_object` does, in a worker. took: told the seconds, before the result is.

        The future's exception is what that raises; or a ToolchainError naming the kernel, if workers crashed on it
        twice; or CancelledError, if the pool was closed meanwhile. Raises ValueError when the pool is closed already.
        """
        task = _Task(text, target, took)
        with self._lock:
            if self._closed:
                raise ValueError("the compile pool is closed")
            self._queue.append(task)
            if self._pump is None:
                self._pump = threading.Thread(target=self._serve, name="tilewright-compile", daemon=True)
                self._pump.start()
        self._waker.send(b"+")
        return task.future

    def close(self, *, wait: bool = True) -> None:
        """End the workers, after finishing what was submitted, or (not wait) cancelling it."""
        with self._lock:
            self._closed = True
            self._cancelled |= not wait
            pump = self._pump
        if self._cancelled:
            for worker in self._workers:
                worker.process.kill()
        if pump is not None:
            pump.join()
        for worker in self._workers:
            worker.process.end()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's workers without disturbing them."""
        self._lock = threading.Lock()
        self._closed = True
        self._pump = None
        for worker in self._workers:
            worker.process.abandon()

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_raised: object) -> None:
        self.close(wait=kind is None)

    def _serve(self) -> None:
        """The pump: hands tasks to free workers and takes their answers, until nothing is left to do."""
        try:
            self._pump_all()
        except BaseException as error:
            # Nobody may wait for ever on what this thread will no longer do.
            with self._lock:
                self._pump = None
                tasks = [*self._queue, *(worker.task for worker in self._workers if worker.task is not None)]
                self._queue.clear()
            for task in tasks:
                if task.start():
                    task.future.set_exception(error)
            raise

    def _pump_all(self) -> None:
        while self._hand_out():
            busy = {worker.process.answers: worker for worker in self._workers if worker.task is not None}
            if not busy:
                continue
            ready = select.poll()
            ready.register(self._woken, select.POLLIN)
            for descriptor in busy:
                ready.register(descriptor, select.POLLIN)
            for descriptor, _ in ready.poll():
                if descriptor in busy:
                    self._settle(busy[descriptor])
                else:
                    self._woken.recv(4096)

    def _hand_out(self) -> bool:
        """Give every free worker a task while there are any; whether any worker has one."""
        given: list[tuple[_Worker, _Task]] = []
        with self._lock:
            while self._queue and self._cancelled:
                self._queue.popleft().cancel()
            for worker in self._workers:
                while self._queue and worker.task is None:
                    # the longest first, so that no worker is left with a long one at the end
                    task = max(self._queue, key=_Task.size)
                    self._queue.remove(task)
                    if task.start():
                        worker.task = task
                        given.append((worker, task))
            working = any(worker.task is not None for worker in self._workers)
            if not working:
                self._pump = None
        for worker, task in given:
            task.began = time.monotonic()
            try:
                worker.process.ask(task.text, task.target)
            except ToolchainError as error:
                worker.task = None
                task.future.set_exception(error)
        return working

    def _settle(self, worker: _Worker) -> None:
        """Take a worker's answer, or what its end leaves to say."""
        task, worker.task = worker.task, None
        if task is None:
            return
        answer = worker.process.answer()
        if isinstance(answer, bytes):
            if task.took is not None:
                task.took(time.monotonic() - task.began)
            task.future.set_result(answer)
        elif answer is not None:
            task.future.set_exception(answer)
        else:
            status, printed = worker.process.end()
            # Status 0: it had just ended for idleness when the task came, which is no fault of the task.
            task.crashes += status != 0
            if task.crashes < _MOST_TRIES:
                with self._lock:
                    self._queue.appendleft(task)
            else:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                lines = "".join(f"\n    {line}" for line in printed)
                task.future.set_exception(
                    ToolchainError(
                        Problem(
                            f"the compiler {how}, {_MOST_TRIES} times in a row{lines}",
                            op=f"kernel @{kernel_name(task.text)}",
                        ),
                        step=REPORT_STEP,
                    )
                )


class _Worker:
    """A worker process and the task it has."""

    def __init__(self, process: WorkerProcess) -> None:
        self.process = process
        self.task: _Task | None = None


class _Task:
    def __init__(self, text: str, target: CpuTarget, took: Callable[[float], None] | None) -> None:
        self.text = text
        self.target = target
        self.took = took
        self.began = 0.0
        self.future: Future[bytes] = Future()
        self.crashes = 0

    def size(self) -> int:
        """How long its text is, which is about how long compiling takes."""
        return len(self.text)

    def start(self) -> bool:
        """Whether to go on: not when the caller has cancelled the future."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def cancel(self) -> None:
        if self.start():
            self.future.set_exception(CancelledError())


_pools: weakref.WeakSet[CompilePool] = weakref.WeakSet()
_shared: list[CompilePool] = []
_shared_lock = threading.Lock()


def shared_pool() -> CompilePool:
    """The process's pool; the first call starts its workers, so call it early and submit later."""
    with _shared_lock:
        if not _shared:
            _shared.append(CompilePool())
        return _shared[0]


def _close_at_exit() -> None:
    for pool in list(_pools):
        pool.close(wait=False)


def _abandon_in_child() -> None:
    _shared_lock.release()
    _shared.clear()
    for pool in list(_pools):
        pool.abandon()


atexit.register(_close_at_exit)
os.register_at_fork(before=_shared_lock.acquire, after_in_parent=_shared_lock.release, after_in_child=_abandon_in_child)
