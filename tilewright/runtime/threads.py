"""Threads: one pool of native workers per process, and the lease by which concurrent calls share the cores.

A call takes a `Team` for as long as it computes: the calling thread itself, plus workers when it was granted more than
one core. Workers are Python daemon threads parked inside the native driver, where they hold no interpreter lock.
At any moment the teams together have at most as many threads as there are cores, so a barrier's spinning is seldom in
vain, and a process never has more threads than cores + callers. Plans of a few microseconds run on the calling thread
without asking (`run_alone`): asking takes longer.

*Fork.* A child starts with a fresh pool and a fresh lease, whatever the parent's threads were doing. A team that was
open across the fork goes on alone in the child.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import OptionError
from tilewright.ir import native_abi as abi
from tilewright.runtime import native
from tilewright.runtime.lease import Lease, Ticket

ENVIRONMENT = "TILEWRIGHT_THREADS"
"""The environment variable that overrides the number of cores to use."""

# How long a waiter spins before it sleeps: about twice what a sleep and a wake-up cost, and more than Python takes from
# one call to the next. Waking a worker took the caller 30 us, and the worker came 16 us later: with 30 us of spinning
# workers slept between all calls, and attention over 512 tokens took 0.62 ms a call instead of 0.53.
_SPIN_NANOSECONDS = 100_000


def available_cores() -> int:
    """How many threads to use at most: TILEWRIGHT_THREADS if set, else the cores this process may run on."""
    text = os.environ.get(ENVIRONMENT, "").strip()
    if not text:
        return len(os.sched_getaffinity(0))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise OptionError(f"{ENVIRONMENT}={text!r} is not a count of threads", step=f"export {ENVIRONMENT}=2")
    return int(text)


class Driver:
    """The native driver's entry points, linked from its object code (`tilewright.backends.host.driver` generates it).

    Raises ToolchainError when the object has another layout version than `tilewright.ir.native_abi`.
    """

    def __init__(self, code: bytes) -> None:
        library = native.load([code], [abi.LAUNCH, abi.WORKER, abi.STOP, abi.PAUSE])
        # Workers live in this code until the process ends.
        library.pin()
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        # ctypes lets go of the interpreter lock around these.
        launch = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, pointer)
        self.launch: Callable[[int, int, int, int | None], None] = launch(library[abi.LAUNCH])
        # For calls of a few microseconds: keeps the interpreter lock, which other threads may take long to hand back.
        short = ctypes.PYFUNCTYPE(None, pointer, pointer, pointer, pointer)
        self.launch_short: Callable[[int, int, int, int | None], None] = short(library[abi.LAUNCH])
        self.worker: Callable[[int], None] = ctypes.CFUNCTYPE(None, pointer)(library[abi.WORKER])
        self.stop: Callable[[int], None] = ctypes.CFUNCTYPE(None, pointer)(library[abi.STOP])
        self.pause: Callable[[int], None] = ctypes.CFUNCTYPE(None, word)(library[abi.PAUSE])


class Team:
    """The threads one call computes on, as a context manager; leaving it gives the cores back.

    threads: how many, the calling thread included. Between launches the workers wait and the caller may do other work.
    """

    def __init__(self, pool: ThreadPool, wanted: int) -> None:
        self._pool = pool
        self._state = state = pool.state
        # Held by the team before there is anything in them, so that an interrupt at any point loses neither.
        self._ticket = Ticket(max(1, min(wanted, state.lease.cores)))
        self._workers: list[_Worker] = []
        try:
            state.lease.acquire(self._ticket)
            state.take(self._workers, self._ticket.granted - 1)
            # Cores for which the system refused a thread go to others.
            state.lease.release(self._ticket, keep=1 + len(self._workers))
        except BaseException:
            self.close()
            raise
        self.threads = 1 + len(self._workers)
        self._words: NDArray[np.int64] = np.array(
            [self.threads, state.spin, *(worker.slot for worker in self._workers)], np.int64
        )
        self._address = int(self._words.ctypes.data)

    def run(self, plan: int, bases: int, times: int | None = None) -> None:
        """Run a step plan to its end.

        plan: `StepPlan.address`. bases: address of the pointers that the plan's refs index. times: address of int64
        [threads, steps, 2] for the begin and end of each kernel call in nanoseconds, or None.
        Nothing is checked here: a wrong address ends the process.
        """
        if self._state is not self._pool.state:
            # Forked with the team open: the workers stayed with the parent.
            self._words[abi.TEAM_THREADS] = self.threads = 1
        self._pool.driver.launch(self._address, plan, bases, times)

    def close(self) -> None:
        """Give the workers and cores back; a second time does nothing."""
        if self._state is self._pool.state:
            self._state.give_back(self._workers)
            self._state.lease.release(self._ticket)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._ticket.granted:
            self.close()


class _Worker:
    """One parked thread and its mailbox; `slot` is the mailbox's address."""

    def __init__(self, spin: int) -> None:
        # Lines of its own: numpy aligns to 16 bytes, so one line more than needed is taken.
        self._room = np.zeros((abi.SLOT_BYTES + abi.LINE_BYTES) // abi.WORD, np.int64)
        self.slot = -(-int(self._room.ctypes.data) // abi.LINE_BYTES) * abi.LINE_BYTES
        self._room[(self.slot - int(self._room.ctypes.data)) // abi.WORD + abi.SLOT_SPIN] = spin
        self.thread: threading.Thread | None = None


class _PoolState:
    """What a fork leaves behind: the threads, the lease, and the lock over them."""

    def __init__(self, driver: Driver, cores: int, spin: int) -> None:
        self.lease = Lease(cores)
        self.spin = spin
        self._driver = driver
        self._lock = threading.RLock()
        self._idle: list[_Worker] = []
        self._closed = False

    def take(self, into: list[_Worker], count: int) -> None:
        """Move `count` workers to `into`, starting those that are missing; fewer if no more threads are to be had."""
        with self._lock:
            while len(into) < count and not self._closed:
                if not self._idle:
                    self._start()
                if not self._idle:
                    break
                into.append(self._idle.pop())

    def give_back(self, workers: list[_Worker]) -> None:
        with self._lock:
            # The first one given is the last returned and the next taken: its core and caches are warm.
            while workers:
                self._idle.append(workers.pop())

    def _start(self) -> None:
        worker = _Worker(self.spin)
        worker.thread = threading.Thread(
            target=self._driver.worker, args=(worker.slot,), name="tilewright-worker", daemon=True
        )
        # A process limit, or an interpreter that is ending, refuses more threads: run with what there is.
        with contextlib.suppress(RuntimeError):
            worker.thread.start()
            self._idle.append(worker)

    def close(self) -> None:
        """Let the idle workers return. Those still in a team, whose caller is a daemon thread, die with the process."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            self._driver.stop(worker.slot)
        for worker in idle:
            if worker.thread is not None:
                worker.thread.join(timeout=1.0)


class ThreadPool:
    """Workers that are started when first needed, at most cores - 1 of them. One per process: see `thread_pool`.

    cores: how many cores calls may use together; None for `available_cores()`, read anew in a forked child.
    """

    def __init__(self, driver: Driver, cores: int | None = None) -> None:
        self.driver = driver
        self._cores = cores
        self._lone_words = np.array([1, 0], np.int64)
        self._lone = int(self._lone_words.ctypes.data)
        self.state = self._fresh()
        _pools.add(self)

    @property
    def cores(self) -> int:
        """How many cores calls may use together."""
        return self.state.lease.cores

    def team(self, threads: int | None = None) -> Team:
        """Take a team of at most `threads` threads (None: all cores), waiting for a core if none is free."""
        return Team(self, self.cores if threads is None else threads)

    def run_alone(self, plan: int, bases: int) -> None:
        """`Team.run` on the calling thread alone, for plans of a few microseconds; it takes no lease."""
        self.driver.launch_short(self._lone, plan, bases, None)

    def close(self) -> None:
        """Stop the idle workers; calls after this run on their own thread alone."""
        self.state.close()

    def renew(self) -> None:
        """In a forked child: forget the parent's threads and leases."""
        self.state = self._fresh()

    def _fresh(self) -> _PoolState:
        cores = available_cores() if self._cores is None else self._cores
        # With more threads than cores to run them, the one waited for may need this very core: sleep at once.
        crowded = cores > len(os.sched_getaffinity(0))
        return _PoolState(self.driver, cores, 0 if crowded else self._pauses())

    def _pauses(self) -> int:
        """How many pauses fill the spinning time: 40 to 150 cycles each, depending on the processor."""
        best, trial = 1 << 62, 500
        for _ in range(3):
            begin = time.perf_counter_ns()
            self.driver.pause(trial)
            best = min(best, time.perf_counter_ns() - begin)
        return max(1, _SPIN_NANOSECONDS * trial // max(1, best))


_pools: weakref.WeakSet[ThreadPool] = weakref.WeakSet()
_shared: list[ThreadPool] = []
_shared_lock = threading.RLock()


def thread_pool(driver: Callable[[], bytes]) -> ThreadPool:
    """The process's pool. The first call's `driver()` gives the driver's object code; any of this version will do."""
    with _shared_lock:
        if not _shared:
            _shared.append(ThreadPool(Driver(driver())))
        return _shared[0]


def _close_at_exit() -> None:
    for pool in list(_pools):
        pool.close()


def _renew_in_child() -> None:
    _shared_lock.release()
    for pool in list(_pools):
        pool.renew()


atexit.register(_close_at_exit)
os.register_at_fork(before=_shared_lock.acquire, after_in_parent=_shared_lock.release, after_in_child=_renew_in_child)
