"""Small modules that once compiled to something else: each is compared with torch, integers bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright as tw

BIG = 2**53 + 1


class Unary(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Reshaped(torch.nn.Module):
    """A weight that is used under another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w.reshape(2, 3)[None]


class Merged(torch.nn.Module):
    """One matrix made of two weights, in an order that is part of the program and not of the weights."""

    def __init__(self, *, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.a = torch.nn.Parameter(torch.full((4, 4), 1.0))
        self.b = torch.nn.Parameter(torch.full((4, 4), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, torch.cat([self.b, self.a] if self.swapped else [self.a, self.b], 0))


def compiled(model: torch.nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    return tw.compile(model.eval(), inputs, cache=False, **options)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (torch.nn.Linear(100, 1), (3, 100)),
        (torch.nn.Linear(1, 13), (5, 1)),
        (torch.nn.GroupNorm(2, 6), (4, 6, 5)),
        (torch.nn.LayerNorm((4, 5)), (3, 4, 5)),
        (Reshaped(), (4, 2, 3)),
        (Unary(lambda x: x @ x[0]), (7, 7)),
    ],
    ids=["one column", "one term", "group norm", "norm of two axes", "reshaped weight", "matrix times vector"],
)
@pytest.mark.parametrize("materialise", [False, True])
def test_floats_agree(model: torch.nn.Module, shape: tuple[int, ...], materialise: bool) -> None:
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(model, x, materialise=materialise)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x == BIG, x + BIG),
        lambda x: x * (x.shape[0] * 10**9),
        lambda x: torch.arange(2**33, 2**33 + x.shape[0]) + x,
        lambda x: x.max(),
        lambda x: x.clamp(max=BIG - 2),
    ],
    ids=["constants", "sizes", "counts", "largest", "clamp"],
)
def test_integers_of_64_bits_lose_none(function: Callable[[torch.Tensor], Any]) -> None:
    x = torch.tensor([BIG, BIG + 1, BIG - 1, -5, -(2**62)])
    program = compiled(Unary(function), x, dims={"x": (tw.Dim("n", 1, 100),)})
    found, wanted = program(x), function(x)
    pairs = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
    assert all(torch.equal(got, want) for got, want in pairs)


def test_equal_weights_in_another_order_are_another_packing(tmp_path: Path) -> None:
    for swapped in (False, True):
        model, x = Merged(swapped=swapped).eval(), torch.ones(1, 4)
        with torch.inference_mode():
            assert torch.equal(tw.compile(model, (x,), cache=tmp_path)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("materialise", [False, True])
def test_integer_products_wrap(dtype: torch.dtype, materialise: bool) -> None:
    x = torch.randint(0, 256, (3, 3)).to(dtype)
    model = Unary(lambda x: (x @ x, x[0] @ x, x @ x.T[None]))
    found = compiled(model, x, materialise=materialise)(x)
    assert all(torch.equal(got, want) for got, want in zip(found, model(x), strict=True))


def test_numbers_wrap_into_small_integers() -> None:
    x = torch.tensor([0, 3, 200, 253, 255], dtype=torch.uint8)
    model = Unary(lambda x: (x % -3, torch.div(x, -3, rounding_mode="floor"), x + 300, torch.where(x > 5, x, -3)))
    assert all(torch.equal(got, want) for got, want in zip(compiled(model, x)(x), model(x), strict=True))
