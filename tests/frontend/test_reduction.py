from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import captured_equals_eager
from tests.frontend.many import Many, Table
from tilewright.ir.dims import Dim

F = torch.nn.functional
B, T = Dim("batch", 0, 64), Dim("tokens", 1, 256)
DIMS = {"inputs.0": (B, T, None)}
SIZES = [(3, 5), (1, 1), (2, 7), (0, 3)]

REDUCTIONS: Table = {
    "sum": lambda x: x.sum(),
    "sum_last": lambda x: x.sum(-1),
    "sum_two": lambda x: x.sum((0, 2), keepdim=True),
    "sum_int": lambda x: (x > 0).sum(1),
    "sum_typed": lambda x: x.sum(-1, dtype=torch.float64),
    "mean": lambda x: x.mean(1),
    "prod": lambda x: x.prod(-1),
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin((1, 2)),
    "max_dim": lambda x: x.max(-1),
    "min_dim": lambda x: x.min(1, keepdim=True),
    "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: x.argmin(1, keepdim=True),
    "any": lambda x: (x > 1).any(-1),
    "all": lambda x: (x < 1).all(1),
    "count": lambda x: torch.count_nonzero(x > 0, -1),
    "norm": lambda x: x.norm(dim=-1, keepdim=True),
    "norm1": lambda x: torch.linalg.vector_norm(x, 1, dim=-1),
    "norm_max": lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1),
    "norm3": lambda x: torch.linalg.vector_norm(x, 3, dim=-1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "cumsum": lambda x: x.cumsum(1),
    "cumsum_bool": lambda x: (x > 0).cumsum(-1),
    "cumprod": lambda x: x.cumprod(-1),
    "softmax": lambda x: x.softmax(-1),
    "softmax_axis": lambda x: x.softmax(1),
    "softmax_typed": lambda x: F.softmax(x.bfloat16(), -1, dtype=torch.float32),
    "log_softmax": lambda x: x.log_softmax(-1),
    "var": lambda x: x.var(-1),
    "var_biased": lambda x: x.var((1, 2), unbiased=False),
    "std": lambda x: x.std(-1, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, -1, correction=0),
    "topk": lambda x: x.topk(3, -1),
    "smallest": lambda x: x.topk(2, -1, largest=False).values,
    "sort": lambda x: x.sort(-1, descending=True).values,
    "argsort": lambda x: x.argsort(-1),
    "smallest_integers": lambda x: (x * 1000).int().topk(2, -1, largest=False).values,
    "kth": lambda x: x.kthvalue(2, -1),
    "kth_kept": lambda x: x.kthvalue(1, 1, keepdim=True).values,
    "cummax": lambda x: x.cummax(1),
    "cummin": lambda x: x.cummin(-1),
    "cummax_integers": lambda x: (x * 3).to(torch.int8).cummax(-1),
    "searchsorted": lambda x: torch.searchsorted(x.sort(-1).values, x[..., :2].contiguous(), right=True),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-0.5, 0.0, 1.0])),
}
NORMS: Table = {
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "layer_norm_weighted": lambda x: F.layer_norm(x, (6,), torch.arange(6.0), torch.ones(6), 1e-3),
    "rms_norm": lambda x: F.rms_norm(x, (6,), torch.arange(6.0)),
    "rms_norm_eps": lambda x: F.rms_norm(x, (6,), eps=1e-3),
    "group_norm": lambda x: F.group_norm(x.mT, 2, torch.arange(6.0), torch.ones(6)),
    "batch_norm": lambda x: F.batch_norm(x.mT, torch.arange(6.0), torch.arange(1.0, 7.0), torch.ones(6) * 2),
    "by_hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "half": lambda x: F.layer_norm(x.bfloat16(), (6,)),
}


def calls(rng: np.random.Generator, sizes: list[tuple[int, int]]) -> list[tuple[torch.Tensor]]:
    return [(torch.from_numpy(rng.standard_normal((b, t, 6)).astype(np.float32)),) for b, t in sizes]


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_reductions(rng: np.random.Generator) -> None:
    captured_equals_eager(Many(REDUCTIONS), calls(rng, SIZES), DIMS)


def test_norms(rng: np.random.Generator) -> None:
    captured_equals_eager(Many(NORMS), calls(rng, SIZES[:3]), {"inputs.0": (Dim("batch", 1), T, None)})


def test_composite_norms_stay_whole(rng: np.random.Generator) -> None:
    captured = captured_equals_eager(Many(NORMS), calls(rng, SIZES[:1]), DIMS)
    names = [op.name for op in captured.module.walk()]
    assert names.count("graph.norm") == 6


def test_a_row_of_infinities(rng: np.random.Generator) -> None:
    x = torch.tensor([[-torch.inf, -torch.inf], [torch.inf, 1.0], [1.0, -torch.inf]])
    captured_equals_eager(Many({"logsumexp": lambda x: x.logsumexp(-1)}), [(x,)])


def test_nan_is_above_all_numbers() -> None:
    x = torch.tensor([[torch.nan, 3, 1, torch.inf], [2, torch.nan, torch.nan, -torch.inf], [torch.inf, 0, -0.0, 5]])
    table: Table = {
        "smallest": lambda x: x.topk(3, -1, largest=False).values,
        "largest": lambda x: x.topk(3, -1).values,
        "searchsorted": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 2.0]), x),
        "searchsorted right": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 2.0]), x, right=True),
        "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 2.0])),
    }
    captured_equals_eager(Many(table), [(x,)])
