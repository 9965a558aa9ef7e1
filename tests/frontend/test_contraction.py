from __future__ import annotations

import numpy as np
import torch

from tests.frontend.against_eager import captured_equals_eager
from tests.frontend.many import Many, Table
from tilewright.ir.dims import Dim

F = torch.nn.functional
B, T = Dim("batch", 0, 64), Dim("tokens", 0, 256)
W = torch.linspace(-1, 1, 24).reshape(4, 6)
BIAS = torch.linspace(-2, 2, 4)

PRODUCTS: Table = {
    "linear": lambda x, y: F.linear(x, W, BIAS),
    "linear_vector": lambda x, y: F.linear(W[0], W, BIAS),
    "linear_to_scalar": lambda x, y: F.linear(x, W[0]),
    "matmul": lambda x, y: x @ y.mT,
    "matmul_broadcast": lambda x, y: x[:, None] @ W.T,
    "matrix_vector": lambda x, y: x @ W[1],
    "vector_matrix": lambda x, y: W[:, 0] @ W,
    "dot": lambda x, y: torch.dot(W[0], W[1]),
    "mm": lambda x, y: torch.mm(W, W.T),
    "bmm": lambda x, y: torch.bmm(x, y.mT),
    "addmm": lambda x, y: torch.addmm(BIAS, W, W.T, beta=0.5, alpha=2),
    "baddbmm": lambda x, y: torch.baddbmm(x[:, :, :1], x, y.mT),
    "outer": lambda x, y: torch.outer(BIAS, W[0]),
    "einsum": lambda x, y: torch.einsum("btd,bsd->bts", x, y),
    "einsum_weight": lambda x, y: torch.einsum("btd,nd->nbt", x, W),
    "einsum_sum": lambda x, y: torch.einsum("btd->d", x),
    "einsum_three": lambda x, y: torch.einsum("btd,nd,n->bt", x, W, BIAS),
    "einsum_outer": lambda x, y: torch.einsum("bt,d->btd", x[..., 0], W[0]),
    "half": lambda x, y: F.linear(x.bfloat16(), W.bfloat16()).float().round(decimals=0),
}


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def test_products(rng: np.random.Generator) -> None:
    calls = [(floats(rng, b, t, 6), floats(rng, b, t, 6)) for b, t in [(3, 5), (1, 1), (2, 7), (0, 3), (2, 0)]]
    table = {name: f for name, f in PRODUCTS.items() if name != "half"}
    captured_equals_eager(Many(table), calls, {"inputs.0": (B, T, None), "inputs.1": (B, T, None)})


def test_a_linear_layer_stays_one_matmul_that_reads_the_weight_as_stored(rng: np.random.Generator) -> None:
    captured = captured_equals_eager(torch.nn.Linear(6, 4), [(floats(rng, 3, 6),)])
    matmul = next(op for op in captured.module.walk() if op.name == "graph.matmul")
    assert matmul.transpose_b.data  # type: ignore[attr-defined]
    assert matmul.b.owner.name == "graph.weight"  # type: ignore[attr-defined]


def test_convolutions(rng: np.random.Generator) -> None:
    class Convolutions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = torch.nn.Conv1d(6, 4, 3, padding=1)
            self.same = torch.nn.Conv1d(6, 4, 4, padding="same", bias=False)
            self.depthwise = torch.nn.Conv1d(6, 6, 3, groups=6, stride=2, padding=2, dilation=2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = x.mT
            return self.plain(x), self.same(x), self.depthwise(x)

    calls = [(floats(rng, b, t, 6),) for b, t in [(3, 7), (1, 5), (2, 11)]]
    captured_equals_eager(Convolutions(), calls, {"x": (Dim("b", 1, 8), Dim("t", 5, 64), None)})
