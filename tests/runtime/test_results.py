"""Memory of results: nobody's but the caller's while anything of it lives, and not asked of the system each time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tilewright.errors import CapacityError
from tilewright.ir.dtypes import F32
from tilewright.runtime import results
from tilewright.runtime.results import LARGE_BYTES, Blocks, cleared_torch, fresh_numpy, fresh_torch
from tilewright.runtime.tensors import row_major

SIZE = LARGE_BYTES // 4 + 3


def numpy_result(count: int) -> tuple[Any, int]:
    """A fresh array of f32."""
    return fresh_numpy([((count,), (1,), F32)])[0]


def torch_result(count: int) -> tuple[Any, int]:
    """A fresh tensor of f32."""
    return fresh_torch([((count,), (1,), torch.float32)])[0]


@pytest.fixture(params=[numpy_result, torch_result], ids=["numpy", "torch"])
def result(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Any, int]]:
    """Makes results from memory that no other test used."""
    monkeypatch.setattr(results, "_blocks", Blocks())
    made: Callable[[int], tuple[Any, int]] = request.param
    return made


def test_memory_that_was_let_go_serves_the_next_result(result: Callable[[int], tuple[Any, int]]) -> None:
    first, at = result(SIZE)
    del first
    second, again = result(SIZE)
    assert at == again
    third, elsewhere = result(SIZE)
    assert elsewhere != again
    second[:], third[:] = 1, 2
    assert second.sum() == SIZE


def test_a_view_keeps_the_memory(result: Callable[[int], tuple[Any, int]]) -> None:
    whole, at = result(SIZE)
    whole[:] = 7
    part = whole[5:9]
    del whole
    gc.collect()
    other, elsewhere = result(SIZE)
    other[:] = 1
    assert elsewhere != at
    assert part.tolist() == [7] * 4
    del part
    _, again = result(SIZE)
    assert again == at


def test_memory_of_another_size_is_taken_only_where_little_is_wasted(result: Callable[[int], tuple[Any, int]]) -> None:
    large, at = result(64 * SIZE)
    del large
    small, elsewhere = result(SIZE)
    nearly, again = result(60 * SIZE)
    assert elsewhere != at
    assert again == at
    assert small.nbytes == 4 * SIZE
    assert nearly.nbytes == 240 * SIZE


def test_memory_that_nobody_asked_for_in_a_while_goes_back_to_the_system(
    result: Callable[[int], tuple[Any, int]],
) -> None:
    large, _ = result(64 * SIZE)
    del large
    held = results._blocks.held
    assert held >= 256 * SIZE
    for _ in range(100):
        result(SIZE)
    assert 0 < results._blocks.held < held // 8


def test_results_that_threads_make_and_drop_never_overlap(result: Callable[[int], tuple[Any, int]]) -> None:
    wrong = []

    def work(number: int) -> None:
        for turn in range(40):
            mine, _ = result(SIZE + turn % 3)
            mine[:] = number
            if not (mine == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert results._blocks.held <= 7 * (4 * SIZE + (4 << 20))


def test_torch_may_do_with_a_large_result_what_it_does_with_its_own() -> None:
    [(tensor, _)] = fresh_torch([((3, SIZE), row_major((3, SIZE)), torch.bfloat16)])
    tensor.zero_().add_(1)
    shared = tensor.clone().share_memory_()
    tensor.share_memory_()
    assert tensor.is_shared()
    assert torch.equal(tensor, shared)
    assert tensor.stride() == (SIZE, 1)
    assert tensor[1].storage_offset() == SIZE
    assert tensor.float().sum() == 3 * SIZE


def test_zeros_are_asked_of_used_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_blocks", Blocks())
    used, at = torch_result(SIZE)
    used.fill_(3)
    del used
    [(clean, again)] = cleared_torch([((SIZE,), (1,), torch.float32)])
    assert again == at
    assert not clean.any()


def test_more_memory_than_there_is_is_refused(result: Callable[[int], tuple[Any, int]]) -> None:
    with pytest.raises(CapacityError):
        result(1 << 60)
    assert result(SIZE)[0].nbytes == 4 * SIZE
