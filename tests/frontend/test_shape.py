from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import captured_equals_eager
from tests.frontend.many import Many, Table
from tests.frontend.test_dims import Apply
from tilewright.errors import UnsupportedOpError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim

B, T = Dim("batch", 1, 64), Dim("tokens", 1, 256)
DIMS = {"inputs.0": (B, T, None)}

VIEWS: Table = {
    "view": lambda x: x.view(x.shape[0], -1),
    "merge": lambda x: x.reshape(-1, x.shape[-1]),
    "heads": lambda x: x.view(x.shape[0], x.shape[1], 2, 3).transpose(1, 2),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(2, (3, 2)),
    "unsqueeze": lambda x: x[:, None, ..., None],
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "permute": lambda x: x.permute(2, 0, 1),
    "mT": lambda x: x.mT,
    "movedim": lambda x: x.movedim(0, 2),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1),
    "repeat": lambda x: x.repeat(2, 1, 3),
    "repeat_lead": lambda x: x.repeat(2, 1, 1, 1),
    "interleave": lambda x: x.repeat_interleave(3, dim=1),
    "first": lambda x: x[:, 0],
    "last": lambda x: x[:, -1],
    "cut": lambda x: x[:, 1:],
    "drop_last": lambda x: x[:, :-1],
    "last_one": lambda x: x[:, -1:],
    "stepped": lambda x: x[..., 1::2],
    "stepped_tokens": lambda x: x[:, ::2],
    "middle": lambda x: x[..., 2:4],
    "beyond": lambda x: x[..., 2:99],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "chunk": lambda x: x.chunk(2, -1),
    "chunk_uneven": lambda x: x.chunk(4, -1),
    "split": lambda x: x.split([1, 2, 3], -1),
    "split_size": lambda x: x.split(4, -1),
    "unbind": lambda x: x.unbind(-1),
    "flip": lambda x: x.flip(1, 2),
    "roll": lambda x: x.roll(2, -1),
    "roll_tokens": lambda x: x.roll(-1, 1),
    "unfold": lambda x: x.unfold(2, 3, 2),
}
COMBINED: Table = {
    "cat": lambda x: torch.cat([x, x * 2, x[:, :1]], 1),
    "cat_dtypes": lambda x: torch.cat([x, x.long()], -1),
    "cat_empty": lambda x: torch.cat([torch.zeros(0), x.flatten()], 0),
    "stack": lambda x: torch.stack([x, x + 1], 1),
    "stack_last": lambda x: torch.stack([x, x + 1], -1),
    "hstack": lambda x: torch.hstack([x, x]),
    "pad": lambda x: torch.nn.functional.pad(x, (1, 2, 0, 3), value=-1.5),
    "pad_reflect": lambda x: torch.nn.functional.pad(x, (2, 1), mode="reflect"),
    "pad_replicate": lambda x: torch.nn.functional.pad(x, (0, 3), mode="replicate"),
    "pad_circular": lambda x: torch.nn.functional.pad(x, (2, 3), mode="circular"),
    "diagonal": lambda x: x.diagonal(1, 1, 2),
    "diagonal_below": lambda x: x.diagonal(-1, 2, 0),
    "isin": lambda x: torch.isin(x.round(), torch.tensor([0.0, 1.0])),
    "index_add": lambda x: x.index_add(2, torch.tensor([0, 2, 0]), x[..., :3], alpha=2),
    "index_copy": lambda x: x.index_copy(-1, torch.tensor([2, 0]), x[..., 1:3]),
    "scatter_part": lambda x: x.scatter_add(2, torch.zeros(1, 1, 4).long(), x[:1, :1, :4]),
    "pad_cut": lambda x: torch.nn.functional.pad(x, (-1, 2)),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "causal": lambda x: torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(),
    "shifted": lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1),
}
CREATED: Table = {
    "zeros": lambda x: torch.zeros(x.shape[1], 3),
    "ones_like": torch.ones_like,
    "full": lambda x: torch.full((x.shape[0], 2), 7),
    "new": lambda x: x.new_full((2, 2), 0.5),
    "arange": lambda x: torch.arange(x.shape[1]),
    "arange_step": lambda x: torch.arange(3, 20, 4),
    "arange_float": lambda x: torch.arange(0, 1, 0.3),
    "arange_typed": lambda x: torch.arange(x.shape[1], dtype=torch.float32),
    "arange_down": lambda x: torch.arange(5, -1, -2),
    "linspace": lambda x: torch.linspace(0, 1, 7),
    "eye": lambda x: torch.eye(x.shape[1]),
    "scalar": lambda x: torch.tensor(3.5) + x,
    "table": lambda x: torch.tensor([1, 2, 3]) + torch.arange(3),
}


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("table", [VIEWS, COMBINED, CREATED], ids=["views", "combined", "created"])
def test_against_eager_at_several_sizes(table: Table, rng: np.random.Generator) -> None:
    calls = [(floats(rng, b, t, 6),) for b, t in [(3, 5), (1, 1), (2, 7), (4, 13)]]
    captured_equals_eager(Many(table), calls, DIMS, rtol=0, atol=0 if table is not CREATED else 1e-7)


def test_writes_into_part_of_a_copy(rng: np.random.Generator) -> None:
    def rows(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, 0] = 1.0
        y[:, :, 2:4] = 0
        y[..., -1] += 5
        return y

    def masked(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[x > 0] = -1.0
        return y

    def scattered(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, :, torch.tensor([0, 2])] = 9.0
        return y.scatter(2, torch.zeros_like(x[..., :1], dtype=torch.long), 3.0)

    def added(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x).index_put((torch.arange(x.shape[0]),), x[:, :1], accumulate=True)

    calls = [(floats(rng, b, t, 6),) for b, t in [(3, 5), (1, 1), (2, 7)]]
    table = {"rows": rows, "masked": masked, "scattered": scattered, "added": added}
    captured_equals_eager(Many(table), calls, DIMS)


def test_picking_elements(rng: np.random.Generator) -> None:
    table: Table = {
        "embedding": torch.nn.functional.embedding,
        "select": lambda i, w: w.index_select(1, torch.tensor([3, 0, 3])),
        "index": lambda i, w: w[i],
        "negative": lambda i, w: w[i - 11],
        "two": lambda i, w: w[i, i % 4],
        "apart": lambda i, w: w[:, None][i, :, i % 4],
        "second": lambda i, w: w[:, i % 4],
        "last_of_each": lambda i, w: w[i][torch.arange(i.shape[0]), (i > 5).sum(-1) % i.shape[1]],
        "gather": lambda i, w: w.gather(0, i[:1, :1] % 4),
        "gather_rows": lambda i, w: (i * 2).gather(1, i % i.shape[1]),
        "take": lambda i, w: torch.zeros(3, 4, dtype=torch.long).gather(1, i[:1, :1] % 3),
        "one_hot": lambda i, w: torch.nn.functional.one_hot(i, 11),
        "first_row": lambda i, w: torch.nn.functional.embedding(torch.zeros_like(i), w),
        "diff": lambda i, w: torch.diff(i, prepend=i[:, :1]),
    }
    weight = floats(rng, 11, 4)
    calls = [(torch.from_numpy(rng.integers(0, 11, s)), weight) for s in [(3, 5), (1, 1), (2, 7)]]
    captured_equals_eager(Many(table), calls, {"inputs.0": (B, T)})


def test_a_result_whose_size_depends_on_values_is_refused() -> None:
    model = Many({"picked": lambda x: x[x > 0].sum()})
    with pytest.raises(UnsupportedOpError, match="depends on values"):
        capture(model, (torch.ones(3, 2),))


STRIDED: dict[str, Callable[[torch.Tensor], Any]] = {
    "added to": lambda y: y[:, ::2].add_(1),
    "set": lambda y: y[:, 1::3].fill_(0),
    "from the end": lambda y: y[:, -5:-1:2].fill_(7),
    "between": lambda y: y[:, 2:5:2].mul_(3),
    "two axes": lambda y: y[::2, 1::3].mul_(2),
    "another slice": lambda y: y[:, ::2].copy_(y[:, ::2].flip(1)),
}


@pytest.mark.parametrize("name", STRIDED)
def test_every_other_element_is_written_in_place(rng: np.random.Generator, name: str) -> None:
    def written(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        STRIDED[name](y)
        return y

    calls = [(floats(rng, *s),) for s in ((4, 6), (5, 7), (1, 1), (2, 3), (3, 0), (2, 5), (1, 4), (7, 40))]
    captured = captured_equals_eager(Apply(written), calls, {"x": (Dim("b", 1, 8), Dim("n", 0, 40))})
    assert captured.guards == ()
