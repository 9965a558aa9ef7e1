"""Full collections wait for a compilation's end, and go on as they were told before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import torch

import tilewright as tw
from tilewright.compiler.full_collections import put_off


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(50, 2, 1)
    yield
    gc.set_threshold(*before)


class Node:
    """In a circle with itself."""

    def __init__(self) -> None:
        self.itself = self


def collections(generation: int) -> int:
    return int(gc.get_stats()[generation]["collections"])


def test_no_full_collection_begins_within_and_young_ones_do() -> None:
    with put_off():
        full, young = collections(2), collections(0)
        kept = [Node() for _ in range(20_000)]
        assert collections(2) == full, len(kept)
        assert collections(0) > young
    # when the next full one begins is Python's affair: it also waits until a quarter of the heap is new
    assert gc.get_threshold() == (50, 2, 1)


def test_the_last_of_several_threads_restores_what_was() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with put_off():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    with put_off():
        thread.start()
        inside.wait()
    assert gc.get_threshold()[2] > 1 << 20
    leave.set()
    thread.join()
    assert gc.get_threshold() == (50, 2, 1)


def test_what_somebody_chose_meanwhile_stays() -> None:
    with put_off():
        gc.set_threshold(70, 3, 5)
    assert gc.get_threshold() == (70, 3, 5)


def test_a_compilation_that_fails_restores_it_too() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert gc.get_threshold()[2] > 1 << 20
            raise ValueError("no")

    with pytest.raises(tw.TilewrightError):
        tw.compile(Broken().eval(), (torch.ones(2),), cache=False)
    assert gc.get_threshold() == (50, 2, 1)
