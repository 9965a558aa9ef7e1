"""Products of bf16 operands, on a matrix unit where there is one: near float64, the same bits in any company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tilewright as tw


def normal(rng: np.random.Generator, *dims: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(dims).astype(np.float32))


@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (50, 33), (100, 70), (1, 16), (4100, 20)])
def test_rows_have_the_same_bits_alone_and_together(
    depth: int, columns: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    layer = torch.nn.Linear(depth, columns)
    rows = tw.Dim("rows", 0, 100)
    x = normal(rng, 37, depth)
    wanted = x.bfloat16().double() @ layer.weight.detach().bfloat16().double().T + layer.bias.detach().double()
    for threads in (1, 2):
        compiled = tw.compile(
            layer, args=(x,), dims={"input": (rows, None)}, precision="bf16", threads=threads, cache=tmp_path
        )
        whole = compiled(x)
        # every rounding of a sum of K products of up to about 4 / sqrt(K) adds at most one unit of f32
        assert (whole.double() - wanted).abs().max() < depth**0.5 * 2**-20 + 2**-20
        for count in (0, 1, 16, 17, 33):
            assert torch.equal(compiled(x[:count]), whole[:count])


class Attention(torch.nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


@pytest.mark.parametrize(("queries", "keys", "features"), [(82, 82, 32), (1, 37, 32), (7, 7, 64), (17, 131, 32)])
def test_attention_in_bf16(queries: int, keys: int, features: int, rng: np.random.Generator, tmp_path: Path) -> None:
    q, k, v = (normal(rng, 2, 3, n, features).bfloat16() for n in (queries, keys, keys))
    for causal in (False, True) if queries == keys else (False,):
        model = Attention(causal=causal)
        wanted = model(q.double(), k.double(), v.double())
        got = tw.compile(model, args=(q, k, v), threads=2, cache=tmp_path)(q, k, v)
        # weights are rounded to 8 bits before they meet values of up to about 4, and so is the result
        assert (got.double() - wanted).abs().max() < 4 * 2**-8
