"""The lease: who gets how many cores, and in which order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from tilewright.runtime.lease import Lease, Ticket


def granted(lease: Lease, wanted: int) -> Ticket:
    ticket = Ticket(wanted)
    lease.acquire(ticket)
    return ticket


class Waiting:
    """Threads that ask for cores one after the other, and the order in which they were served."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.served: list[tuple[int, Ticket]] = []
        self.threads: list[threading.Thread] = []

    def ask(self, wanted: int) -> None:
        index, ticket, before = len(self.threads), Ticket(wanted), len(self.lease._waiting)

        def main() -> None:
            self.lease.acquire(ticket)
            self.served.append((index, ticket))

        thread = threading.Thread(target=main)
        thread.start()
        self.threads.append(thread)
        until(lambda: len(self.lease._waiting) > before)

    def until_served(self, count: int) -> list[tuple[int, int]]:
        until(lambda: len(self.served) >= count)
        return [(index, ticket.granted) for index, ticket in self.served]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(("cores", "wanted", "got"), [(1, 1, 1), (1, 9, 1), (8, 3, 3), (8, 8, 8), (8, 99, 8)])
def test_a_lone_caller_gets_what_it_wants_as_far_as_there_is(cores: int, wanted: int, got: int) -> None:
    lease = Lease(cores)
    for _ in range(3):
        ticket = granted(lease, wanted)
        assert ticket.granted == got
        lease.release(ticket)


def test_who_comes_second_gets_what_is_left_at_once() -> None:
    lease = Lease(8)
    assert granted(lease, 5).granted == 5
    assert granted(lease, 8).granted == 3


def test_giving_back_twice_gives_back_once() -> None:
    lease = Lease(4)
    ticket = granted(lease, 3)
    lease.release(ticket)
    lease.release(ticket)
    assert granted(lease, 9).granted == 4


def test_some_cores_can_be_given_back_early() -> None:
    lease = Lease(4)
    ticket = granted(lease, 4)
    lease.release(ticket, keep=1)
    assert ticket.granted == 1
    other = granted(lease, 4)
    assert other.granted == 3
    lease.release(ticket)
    lease.release(other)
    assert granted(lease, 4).granted == 4


def test_callers_are_served_in_the_order_they_came() -> None:
    lease = Lease(2)
    first = granted(lease, 2)
    waiting = Waiting(lease)
    for _ in range(5):
        waiting.ask(2)
    lease.release(first)
    for count in range(2, 6):
        order = waiting.until_served(count)
        assert {index for index, _ in order} == set(range(count))
        if count < 5:
            lease.release(waiting.served[count - 2][1])


@pytest.mark.parametrize(("cores", "shares"), [(2, [1, 1]), (16, [5, 5]), (3, [1, 1]), (8, [2, 3])])
def test_those_who_queued_share_with_the_one_who_left_and_may_be_back(cores: int, shares: list[int]) -> None:
    lease = Lease(cores)
    first = granted(lease, cores)
    waiting = Waiting(lease)
    waiting.ask(cores)
    waiting.ask(cores)
    lease.release(first)
    assert [cores for _, cores in sorted(waiting.until_served(2))] == shares
    rest = cores - sum(shares)
    if rest:
        assert granted(lease, cores).granted == rest


def test_at_no_time_are_more_cores_out_than_there_are() -> None:
    lease, lock, out, most = Lease(3), threading.Lock(), 0, 0

    def caller(wanted: int) -> None:
        nonlocal out, most
        for _ in range(200):
            ticket = granted(lease, wanted)
            with lock:
                out += ticket.granted
                most = max(most, out)
            time.sleep(0)
            with lock:
                out -= ticket.granted
            lease.release(ticket)

    threads = [threading.Thread(target=caller, args=(1 + i % 4,)) for i in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 3
    assert granted(lease, 9).granted == 3


def test_a_thread_that_queued_keeps_its_own_affinity() -> None:
    lease = Lease(1)
    mine = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    first = granted(lease, 1)

    def main() -> None:
        only = {max(mine)}
        os.sched_setaffinity(0, only)
        lease.release(granted(lease, 1))
        seen.append(os.sched_getaffinity(0) ^ only)

    thread = threading.Thread(target=main)
    thread.start()
    until(lambda: len(lease._waiting) == 1)
    time.sleep(0.02)
    lease.release(first)
    thread.join(60)
    assert seen == [set()]
    assert os.sched_getaffinity(0) == mine


@pytest.mark.parametrize("granted_meanwhile", [False, True])
def test_an_interrupted_wait_leaves_neither_a_place_in_the_queue_nor_cores_behind(granted_meanwhile: bool) -> None:
    lease = Lease(2)
    first = granted(lease, 2)

    class Interrupted(Ticket):
        def wait(self) -> None:
            if granted_meanwhile:
                lease.release(first)
                assert self.granted == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lease.acquire(Interrupted(2))
    lease.release(first)
    assert granted(lease, 2).granted == 2
