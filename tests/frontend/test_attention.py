from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import captured_equals_eager
from tests.frontend.many import Many, Table
from tilewright.errors import TrainingModeError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim

sdpa = torch.nn.functional.scaled_dot_product_attention
B, T, S = Dim("batch", 1, 64), Dim("queries", 1, 64), Dim("keys", 1, 64)


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


TABLE: Table = {
    "plain": lambda q, k, v, m, f: sdpa(q, k, v),
    "scaled": lambda q, k, v, m, f: sdpa(q, k, v, scale=0.3),
    "causal": lambda q, k, v, m, f: sdpa(q, k, v, is_causal=True),
    "square": lambda q, k, v, m, f: sdpa(k, k, v, is_causal=True),
    "keys": lambda q, k, v, m, f: sdpa(q, k, v, m[:, None, None, :]),
    "pairs": lambda q, k, v, m, f: sdpa(q, k, v, m[:, None, None, :] & (f > -2)),
    "bias": lambda q, k, v, m, f: sdpa(q, k, v, f),
    "one_bias": lambda q, k, v, m, f: sdpa(q, k, v, f[0, 0]),
    "grouped": lambda q, k, v, m, f: sdpa(q, k[:, :2], v[:, :2], enable_gqa=True),
    "repeated": lambda q, k, v, m, f: sdpa(q, k[:, :2].repeat_interleave(2, 1), v[:, :2].repeat_interleave(2, 1)),
    "no_heads": lambda q, k, v, m, f: sdpa(q[:, 0], k[:, 0], v[:, 0], f[:, 0]),
    "shared_batch": lambda q, k, v, m, f: sdpa(q, k[:1], v[:1]),
    "wide_values": lambda q, k, v, m, f: sdpa(q, k, torch.cat([v, v], -1)),
    "by_hand": lambda q, k, v, m, f: ((q @ k.mT) * 0.5 + f).softmax(-1) @ v,
}


def test_scaled_dot_product_attention_in_all_its_forms(rng: np.random.Generator) -> None:
    calls = []
    for b, t, s in [(3, 5, 7), (1, 1, 1), (2, 7, 5), (2, 4, 4)]:
        valid = torch.from_numpy(rng.random((b, s)) > 0.4)
        valid[:, 0] = True
        q, k, v = floats(rng, b, 4, t, 8), floats(rng, b, 4, s, 8), floats(rng, b, 4, s, 8)
        calls.append((q, k, v, valid, floats(rng, b, 4, t, s)))
    dims = {
        "inputs.0": (B, None, T, None), "inputs.1": (B, None, S, None), "inputs.2": (B, None, S, None),
        "inputs.3": (B, S), "inputs.4": (B, None, T, S),
    }  # fmt: skip
    captured = captured_equals_eager(Many(TABLE), calls, dims)
    names = [op.name for op in captured.module.walk()]
    assert names.count("graph.attention") == len(TABLE) - 1


@pytest.mark.parametrize("queries", [None, Dim("queries", 1, 64)])
def test_heads_of_a_size_that_varies_are_products_and_a_softmax(queries: Dim | None, rng: np.random.Generator) -> None:
    calls = []
    for b, t, s, e in [(3, 5, 7, 6), (1, 5, 1, 1), (2, 5, 5, 9)]:
        valid = torch.from_numpy(rng.random((b, s)) > 0.4)
        valid[:1] = False
        q, k, v = floats(rng, b, 4, t, e), floats(rng, b, 4, s, e), floats(rng, b, 4, s, e)
        calls.append((q, k, v, valid, floats(rng, b, 4, t, s)))
    width = Dim("width", 1, 64)
    dims = {
        "inputs.0": (B, None, queries, width), "inputs.1": (B, None, S, width), "inputs.2": (B, None, S, width),
        "inputs.3": (B, S), "inputs.4": (B, None, queries, S),
    }  # fmt: skip
    grouped: Table = {
        "grouped_bias": lambda q, k, v, m, f: sdpa(q, k[:, :2], v[:, :2], f, enable_gqa=True),
        "grouped_keys": lambda q, k, v, m, f: sdpa(q, k[:, :2], v[:, :2], m[:, None, None, :], enable_gqa=True),
        "narrow": lambda q, k, v, m, f: sdpa(q, k, v[..., :1], scale=0.1),
    }
    captured = captured_equals_eager(Many({**TABLE, **grouped}), calls, dims)
    assert "graph.attention" not in [op.name for op in captured.module.walk()]


def test_a_row_that_may_see_no_key_is_zero(rng: np.random.Generator) -> None:
    q, mask = floats(rng, 1, 2, 3, 4), torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    for dims in (None, {"inputs.0": (None, None, None, Dim("width", 1, 64))}):
        captured_equals_eager(Many({"masked": lambda q, m: sdpa(q, q, q, m)}), [(q, mask)], dims)


def test_multi_head_attention_module(rng: np.random.Generator) -> None:
    class Self(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    calls = [(floats(rng, b, t, 16),) for b, t in [(2, 5), (1, 1), (3, 7)]]
    captured_equals_eager(Self(), calls, {"x": (B, T, None)})


def test_dropout_in_attention_is_training() -> None:
    model = Many({"dropped": lambda q: sdpa(q, q, q, dropout_p=0.1)})
    with pytest.raises(TrainingModeError, match=r"drops attention weights with p=0\.1"):
        capture(model, (torch.ones(1, 1, 2, 4),))
