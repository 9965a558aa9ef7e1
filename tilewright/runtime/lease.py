"""The lease by which concurrent calls share a process's cores: who computes on how many, and in which order."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import deque


class Ticket:
    """One call's place in the queue, then its cores: `granted` is 0 while it waits and after it was given back."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.granted = 0
        self._gate = threading.Lock()
        self._gate.acquire()
        self._thread = 0
        self._affinity: set[int] = set()
        self._placed = False

    def wait(self) -> None:
        """Return when the ticket has been granted cores."""
        if self._gate.acquire(blocking=False):
            return
        self._affinity = os.sched_getaffinity(0)
        self._thread = threading.get_native_id()
        self._gate.acquire()

    def unplace(self) -> None:
        """Undo `grant`'s placement; on the waiting thread, when no grant can come any more."""
        if self._placed:
            self._placed = False
            os.sched_setaffinity(0, self._affinity)

    def grant(self, cores: int) -> None:
        """Let the waiting thread go on, on the core that the calling thread is about to stop using.

        When a thread is woken while all cores are busy, Linux often queues it behind a kernel that computes for long,
        and the waker's core, idle a moment later, takes several milliseconds to pull it over: a fifth of the throughput
        of three callers on two cores. So the woken thread's affinity is this core until it runs.
        """
        self.granted = cores
        if self._thread:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self._thread, {_libc.sched_getcpu()})
                self._placed = True
        self._gate.release()


class Lease:
    """Cores handed out first come, first served; nobody overtakes.

    Who finds no queue takes all free cores, up to what it wanted. Who had to queue gets a share: the free cores divided
    by those waiting and the one that just left, who is likely to be back, but at least one. So a lone caller has the
    whole machine, and callers that compete soon run side by side, each on its part. On 2 cores, 8 callers that handed
    the whole machine from one to the next reached in the median 0.6 to 0.9 of a lone caller's throughput, and so they
    reach about 1.0 or more: little time is lost in handing over, and little in barriers.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        # Reentrant: a team dropped by the garbage collector gives back its cores wherever its thread happens to be.
        self._lock = threading.RLock()
        self._free = cores
        self._waiting: deque[Ticket] = deque()

    def acquire(self, ticket: Ticket) -> None:
        """Wait until the ticket has been granted 1 to `wanted` cores."""
        with self._lock:
            if self._free and not self._waiting:
                self._grant(ticket, self._free)
            else:
                self._waiting.append(ticket)
        try:
            ticket.wait()
        except BaseException:
            self.release(ticket)
            raise
        finally:
            ticket.unplace()

    def release(self, ticket: Ticket, keep: int = 0) -> None:
        """Give back all but `keep` of the ticket's cores, or its place in the queue."""
        with self._lock:
            if ticket.granted:
                self._free += ticket.granted - keep
                ticket.granted = keep
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            while self._free and self._waiting:
                share = self._free // (len(self._waiting) + 1)
                self._grant(self._waiting.popleft(), max(1, share))

    def _grant(self, ticket: Ticket, cores: int) -> None:
        cores = min(ticket.wanted, cores)
        self._free -= cores
        ticket.grant(cores)


_libc = ctypes.CDLL(None)
