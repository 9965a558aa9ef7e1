"""A kernel in Python is what its function says now: globals, closures and defaults that change make another kernel."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.errors import KernelError, OptionError

FACTOR = 2.0
SETTINGS = types.SimpleNamespace(factors=[1.0, 2.0])


def twice() -> float:
    return 2 * FACTOR


@tw.kernel("x T[rows, 8] -> y T[rows, 8]")
def scaled(b: Any, x: Any, y: Any, *, T: str) -> None:  # noqa: N803
    (row,) = b.grid(["rows"], [4])
    tile = b.load(b.dense(x), [row, 0], [4, 8])
    b.store(b.map("mul", b.map("mul", tile, twice()), SETTINGS.factors[1]), b.dense(y), [row, 0])


def test_a_kernel_follows_what_its_function_reads(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(rng.standard_normal((5, 8)).astype(np.float32))
    torch.testing.assert_close(scaled.interpret(x), x * 8)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    torch.testing.assert_close(scaled.interpret(x), x * 12)
    SETTINGS.factors[1] = 5.0
    torch.testing.assert_close(scaled(x), x * 30)
    torch.testing.assert_close(scaled(x), x * 30)
    SETTINGS.factors[1] = 2.0
    torch.testing.assert_close(scaled(x), x * 12)


@pytest.mark.parametrize("number", [0.5, 300, float("nan")])
def test_a_number_that_an_integer_tile_cannot_hold_is_refused(number: float) -> None:
    @tw.kernel("x i8[n] -> y i8[n]")
    def shifted(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [8])
        b.store(b.map("add", b.load(b.dense(x), [i], [8]), number), b.dense(y), [i])

    @tw.kernel("x i8[n] -> y i8[n]")
    def filled(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [8])
        b.store(b.load(b.dense(x), [i], [8], fill=number), b.dense(y), [i])

    for kernel in (shifted, filled):
        with pytest.raises(KernelError, match="is no element of a tile of i8"):
            kernel.trace()


def test_torchs_own_operators_cannot_be_registered() -> None:
    with pytest.raises(OptionError, match="torch's own operator"):
        tw.register_op("aten::add.Tensor", reference=lambda x, y, alpha=1: x * 0)


def test_the_first_call_is_compared_with_the_layers_themselves(rng: np.random.Generator) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 1).eval()
    x = torch.from_numpy(rng.standard_normal((2, 5, 8)).astype(np.float32))
    padding = torch.arange(5) >= torch.tensor([[3], [5]])
    program = tw.compile(model, (x,), {"src_key_padding_mask": padding}, check="first", cache=False)
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=padding)[0, 3:], torch.zeros(2, 8))
    assert program(x, src_key_padding_mask=padding)[0, 3:].abs().max() > 0
    assert torch.backends.mha.get_fastpath_enabled()
