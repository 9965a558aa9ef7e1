"""Ops that read and write at places, run along axes or order them: each equals torch, and counts what it moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import tilewright as tw
from tests.compiler.counting import check_counts
from tilewright.compiler.instrumented import CountingTwin

Results = tuple[torch.Tensor, ...]
Forward = Callable[..., Results]
functional = torch.nn.functional


class Calls(torch.nn.Module):
    """A function of x [n, 5, 3], rows of it, integers and updates."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, picked: torch.Tensor, updates: torch.Tensor) -> Results:
        return self.function(x, picked, updates)


def gathers(x: torch.Tensor, picked: torch.Tensor, updates: torch.Tensor) -> Results:
    rows, flat = picked[:, 0, 0], x.reshape(-1)
    return (
        x.gather(0, picked),
        x.gather(1, picked % 5),
        torch.relu(x.gather(2, picked % 3)) + updates,
        x.index_select(1, rows % 5),
        x[:, :, rows % 3 - 3].exp(),
        flat[picked],
        x[rows, rows % 5],
        x.flip(2, 0),
        flat.flip(0) * 2,
        x.roll((2, -1), (0, 1)),
        functional.embedding(picked, x[:, 0]).sum(-1),
    )


def pads(x: torch.Tensor, picked: torch.Tensor, updates: torch.Tensor) -> Results:
    return (
        functional.pad(x, (1, 2, 0, 0, 3, 1)),
        functional.pad(x, (0, 2), value=1.5) * 2,
        functional.pad(picked, (2, 0, 1, 1), value=-7),
        functional.pad(x > 0, (0, 0, 0, 1)),
        functional.pad(x.bfloat16(), (-1, 4)).sum(-1),
    )


def scatters(x: torch.Tensor, picked: torch.Tensor, updates: torch.Tensor) -> Results:
    rows = picked[:, 0, 0]
    return (
        x.scatter_add(0, picked, updates),
        x.scatter_add(1, picked % 5, updates),
        x.scatter_add(2, picked % 3, updates),
        x.index_put((rows,), updates, accumulate=True)[..., 0],
        x.index_fill(1, rows % 5, 2.5),
        torch.zeros_like(rows).scatter_add(0, rows % rows.shape[0], torch.ones_like(rows)),
        x.scatter(1, torch.arange(4, -1, -1)[None, :, None].expand(x.shape), x),
    )


def runs(x: torch.Tensor, picked: torch.Tensor, updates: torch.Tensor) -> Results:
    mask = picked > 2
    return (
        x.cumsum(0),
        x.cumsum(1) - 1,
        (x * 2).cumsum(2),
        x.reshape(-1).cumsum(0),
        x.cumprod(1),
        x.bfloat16().cumsum(1),
        picked.cumsum(0),
        (mask.cumsum(0) - 1).masked_fill(~mask, 1),
        x.reshape(x.shape[0], 15).cumsum(-1),
    )


def orders(x: torch.Tensor, picked: torch.Tensor, updates: torch.Tensor) -> Results:
    flat, coarse = x.reshape(-1), (x * 2).round()
    return (
        *torch.sort(coarse, dim=0, stable=True),
        *torch.sort(coarse, dim=1, stable=True, descending=True),
        *torch.sort(picked.reshape(-1), stable=True),
        torch.argsort(coarse.reshape(-1), stable=True, descending=True),
        torch.sort(torch.relu(x), dim=2, stable=True)[0],
        *torch.topk(flat, 4),
        torch.topk(torch.relu(x), 2, dim=1)[0],  # torch leaves open which zero is taken
        *torch.topk(x, 2, dim=1),
        torch.topk(-flat, 1)[1],
        x.argmax(0),
        x.argmin(1),
        x.double().argmax(),
        *x.max(1),
        (picked.to(torch.uint8) * 2).amax(0),
    )


def products(x: torch.Tensor, picked: torch.Tensor, updates: torch.Tensor) -> Results:
    small = picked.to(torch.int8)
    return (
        picked @ picked.mT,
        torch.bmm(picked.int(), picked.int().mT),
        picked[:, :, 0] @ torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]),
        small @ small[0].mT,
        torch.tensor([0.5, 1.5, 2.5])[None] + x[:1, 0],
        torch.tensor([[True, False]]),
    )


FUNCTIONS: Mapping[str, Forward] = {f.__name__: f for f in (gathers, pads, scatters, runs, orders, products)}
N, M = tw.Dim("n", 2, 4000), tw.Dim("m", 1, 4000)


def drawn(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [n, 5, 3] with some NaN, integers below n [m, 5, 3], updates [m, 5, 3]."""
    return torch.randn(n, 5, 3), torch.randint(0, n, (m, 5, 3)), torch.randn(m, 5, 3)


@pytest.fixture(scope="module", params=FUNCTIONS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The function, and its program on one thread and on two."""
    function, cache = FUNCTIONS[request.param], tmp_path_factory.mktemp("cache")
    dims = {"x": {0: N}, "picked": {0: M}, "updates": {0: M}}
    model, given = Calls(function).eval(), drawn(6, 4)
    return function, [tw.compile(model, given, dims=dims, cache=cache, threads=n) for n in (1, 2)]


@pytest.mark.parametrize(("n", "m"), [(2, 1), (7, 5), (131, 67)])
def test_results_are_torchs(models: Any, n: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)
    function, programs = models
    given = drawn(n, m)
    with torch.inference_mode():
        wanted = function(*given)
    for number, results in enumerate(zip(wanted, *(program(*given) for program in programs), strict=True)):
        want, one, two = results
        assert torch.equal(one.isnan(), two.isnan())
        assert torch.equal(one.nan_to_num(), two.nan_to_num())
        if want.is_floating_point():
            loose = 1e-2 if want.dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(one, want, rtol=loose, atol=loose, equal_nan=True, msg=f"result {number}")
        else:
            assert one.dtype == want.dtype
            assert torch.equal(one, want), number


def test_formulas_interpreter_and_running_kernels_count_the_same(models: Any, seed: int) -> None:
    torch.manual_seed(seed)
    program = models[1][1]
    given = drawn(7, 5)
    check_counts(program, CountingTwin(program).run(*given), given, {})
