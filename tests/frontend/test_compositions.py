"""Operators without a lowering of their own: torch takes them apart, and what comes out equals eager in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tests.frontend.many import Many, Table
from tilewright.errors import UnsupportedOpError
from tilewright.frontend import capture
from tilewright.frontend.decomposing import table_for
from tilewright.ir.dims import Dim

functional = torch.nn.functional
N = Dim("n", 1, 16)

INTERPOLATED: Table = {
    "nearest": lambda x: functional.interpolate(x, size=(5, 11)),
    "nearest_scaled": lambda x: functional.interpolate(x, scale_factor=2),
    "nearest_exact": lambda x: functional.interpolate(x, size=(4, 9), mode="nearest-exact"),
    "linear": lambda x: functional.interpolate(x[:, 0], size=5, mode="linear"),
    "bilinear": lambda x: functional.interpolate(x, size=(13, 4), mode="bilinear"),
    "bilinear_corners": lambda x: functional.interpolate(x, size=(5, 9), mode="bilinear", align_corners=True),
    "bilinear_scaled": lambda x: functional.interpolate(x, scale_factor=(1.5, 2.0), mode="bilinear"),
    "bicubic": lambda x: functional.interpolate(x, size=(6, 10), mode="bicubic"),
    "bicubic_corners": lambda x: functional.interpolate(x, scale_factor=1.7, mode="bicubic", align_corners=True),
    "trilinear": lambda x: functional.interpolate(x[:, None], size=(3, 4, 9), mode="trilinear"),
    "area": lambda x: functional.interpolate(x, size=(3, 3), mode="area"),
}
WINDOWS: Table = {
    "shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "unshuffle": lambda x: functional.pixel_unshuffle(x[..., :8, :6], 2),
    "channel_shuffle": lambda x: functional.channel_shuffle(x, 2),
    "unfold": lambda x: functional.unfold(x, (3, 2), padding=1, stride=2),
    "unfold_dilated": lambda x: functional.unfold(x, 2, dilation=(2, 3)),
    "fold": lambda x: functional.fold(functional.unfold(x, 3, padding=1), (9, 7), 3, padding=1),
    "grid": lambda x: functional.grid_sample(x, x[:, :2].movedim(1, -1) * 0.7, align_corners=False),
    "grid_border": lambda x: functional.grid_sample(
        x, x[:, :2].movedim(1, -1), mode="bilinear", padding_mode="border", align_corners=True
    ),
    "grid_nearest": lambda x: functional.grid_sample(
        x, x[:, :2].movedim(1, -1) * 0.6 + 0.01, mode="nearest", align_corners=False
    ),
    "grid_bicubic": lambda x: functional.grid_sample(
        x, x[:, :2].movedim(1, -1), mode="bicubic", padding_mode="reflection", align_corners=False
    ),
}
ALGEBRA: Table = {
    "tensordot": lambda x: torch.tensordot(x, x[0], dims=([1, 3], [0, 2])),
    "kron": lambda x: torch.kron(x[0, 0, :2, :2], x[0, 1, :3, :2]),
    "cdist": lambda x: torch.cdist(x[:, 0], x[:, 1]),
    "cdist_1": lambda x: torch.cdist(x[:, 0], x[:, 1, :3], p=1),
    "cdist_far": lambda x: torch.cdist(x[:, 0], x[:, 1], p=float("inf")),
    "cross": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:6]),
    "cross_old": lambda x: torch.cross(x[..., :3, :], x[..., 3:6, :], dim=2),
    "frobenius": torch.linalg.matrix_norm,
    "columns": lambda x: torch.linalg.matrix_norm(x[0], ord=1),
    "rows": lambda x: torch.linalg.matrix_norm(x[0], ord=float("inf"), keepdim=True),
    "vector": lambda x: torch.linalg.vector_norm(x, ord=3, dim=(1, 2)),
    "norm": lambda x: torch.linalg.norm(x, dim=-1),
    "trace": lambda x: torch.trace(x[0, 0]),
    "meshgrid": lambda x: torch.meshgrid(x[:, 0, 0, 0], x[0, :, 1, 1], indexing="ij"),
    "meshgrid_xy": lambda x: torch.meshgrid(x[:, 0, 0, 0], x[0, :, 1, 1], indexing="xy"),
    "inner": lambda x: torch.inner(x[:, 0, 0], x[0, 1]),
    "cosine": lambda x: functional.cosine_similarity(x[:, 0], x[:, 1], dim=-1),
    "distance": lambda x: functional.pairwise_distance(x[:, 0], x[:, 1]),
    "normalize": lambda x: functional.normalize(x, dim=1),
}
MOVED: Table = {
    "diag": lambda x: torch.diag(x[:, 0, 0, 0]),
    "diag_of": lambda x: torch.diag(x[0, 0], -2),
    "diag_embed": lambda x: torch.diag_embed(x[:, 0, 0], offset=1, dim1=0, dim2=2),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "rot270": lambda x: torch.rot90(x, 3, (1, 2)),
    "fliplr": torch.fliplr,
    "roll": lambda x: torch.roll(x, (3, -2), (0, 3)),
    "swapaxes": lambda x: x.swapaxes(0, 3),
    "movedim": lambda x: x.movedim((0, 1), (2, 0)),
    "unbind": lambda x: x.unbind(1),
    "dsplit": lambda x: torch.dsplit(x[:, 0], [2, 5]),
    "vsplit": lambda x: torch.vsplit(x[0], 2),
    "take_along": lambda x: torch.take_along_dim(x[0], x[0, :1].argsort(-1), dim=-1),
    "take_flat": lambda x: torch.take_along_dim(x, torch.tensor([3, 1, 0])),
    "take": lambda x: torch.take(x, torch.tensor([[0, -1], [5, 2]])),
    "dstack": lambda x: torch.dstack([x[:, 0], x[:, 1]]),
    "block_diag": lambda x: torch.block_diag(x[0, 0], x[0, 1, :2]),
    "cartesian": lambda x: torch.cartesian_prod(x[0, :, 0, 0], x[0, 0, 0, :3]),
    "logical": lambda x: torch.logical_xor(x > 0, x < 1),
}
POINTWISE: Table = {
    "erfc": torch.erfc,
    "nan_to_num": lambda x: torch.nan_to_num(x / (x - x[:1]).clamp(max=0), 1.0, 2.0),
    "logcumsumexp": lambda x: torch.logcumsumexp(x * 30, 2),
    "glu": lambda x: functional.glu(x, 1),
    "var_mean": lambda x: torch.var_mean(x, (1, 3), correction=2),
    "std_mean": lambda x: torch.std_mean(x, 2, correction=0, keepdim=True),
    "xlogy": lambda x: torch.xlogy(x.abs(), x.abs() + 1),
    "xlogy_of_numbers": lambda x: (torch.xlogy(x, 0.7), torch.xlogy(2, x.exp()), torch.special.xlog1py(x, 0.7)),
    "logit": lambda x: torch.logit(x.sigmoid()),
    "hypot": lambda x: torch.hypot(x, x + 1),
    "heaviside": lambda x: torch.heaviside(x, x * 2),
    "hardshrink": lambda x: functional.hardshrink(x, 0.3),
    "softshrink": functional.softshrink,
    "tanhshrink": functional.tanhshrink,
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5, 2.0])),
    "frac": lambda x: torch.frac(x * 3),
    "deg2rad": torch.deg2rad,
    "sinc": lambda x: torch.sinc(x + 3),
    "addr": lambda x: torch.addr(x[0, 0], x[0, 0, :, 0], x[0, 0, 0]),
    "median_free": lambda x: x.quantile(0.25, dim=-1),
}
FOLDED: Table = {
    f"{reduce}_{'in' if kept else 'ex'}clusive": (
        lambda x, reduce=reduce, kept=kept: x.scatter_reduce(
            2, (x[:, :, :6] * 50).long() % 9, x[:, :, :6] + 1, reduce, include_self=kept
        )
    )
    for reduce in ("sum", "prod", "mean", "amax", "amin")
    for kept in (True, False)
} | {
    "index_reduce": lambda x: x.index_reduce(1, torch.tensor([0, 2, 0]), x[:, :3] - 1, "amax"),
    "index_mean": lambda x: x.index_reduce(3, torch.tensor([5, 2]), x[..., :2], "mean", include_self=False),
    "integers": lambda x: (x * 9).long().scatter_reduce(3, (x * 50).long() % 7, (x * 5).long(), "amin"),
    "masked_scatter": lambda x: x.masked_scatter(x > 0.4, x.flatten() * 2),
    "masked_wide": lambda x: x.masked_scatter(x[:, :1] > 0.4, x.flatten() * 2),
}  # fmt: skip
COMPLEX: Table = {
    "rotated": lambda x: torch.view_as_real(
        torch.view_as_complex(x[..., :6].contiguous().view(*x.shape[:-1], 3, 2))
        * torch.polar(torch.ones_like(x), x)[..., :3]
    ).flatten(-2),
    "arithmetic": lambda x: torch.view_as_real((torch.complex(x, x + 1) * 2 - 1.5).conj() + torch.complex(x, x)),
    "absolute": lambda x: torch.complex(x * 1e25, x).abs(),
    "parts": lambda x: (torch.complex(x, 2 * x)[:, 1:].real, torch.complex(x, 2 * x).transpose(1, 2).imag),
    "summed": lambda x: torch.view_as_real(torch.complex(x, x * 3).sum(1) / 4),
    "exp": lambda x: torch.view_as_real(torch.exp(torch.complex(x, x * 2))),
}
TABLES = {
    "interpolated": INTERPOLATED, "windows": WINDOWS, "algebra": ALGEBRA, "moved": MOVED, "pointwise": POINTWISE,
    "folded": FOLDED, "complex": COMPLEX,
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_what_torch_takes_apart_equals_eager_in_double(table: str, rng: np.random.Generator) -> None:
    model = Many(TABLES[table])
    captured = capture(model, (_draw(rng, 3),), None, {"inputs.0": {0: N}})
    for n in (1, 2, 5):
        x = _draw(rng, n)
        found = run(captured, x)
        assert_same(found, _exact(model, x, found))


def _draw(rng: np.random.Generator, n: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((n, 4, 9, 7)).astype(np.float32))


def _exact(model: torch.nn.Module, x: torch.Tensor, like: object) -> object:
    """Eager's results in float64, in the dtypes of what was found; where places are found by rounding, in float32."""
    import torch.utils._pytree as pytree

    with torch.no_grad():
        narrow, wide = pytree.tree_flatten(model(x)), pytree.tree_flatten(model(x.double()))

    def near(a: torch.Tensor, w: torch.Tensor) -> bool:
        return a.is_floating_point() and a.shape == w.shape and torch.allclose(a.double(), w, 1e-3, 1e-3)

    chosen = [w.to(a.dtype) if near(a, w) else a for a, w in zip(narrow[0], wide[0], strict=True)]
    return pytree.tree_unflatten(chosen, narrow[1])


class Determinant(torch.nn.Module):
    """linalg.det has no lowering, and is made of parts of which one has none either."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.add_(2)
        return torch.softmax(y, -1)[..., 0] + torch.linalg.det(y)[:, None]


def test_what_cannot_be_taken_apart_is_refused_by_the_name_that_was_called() -> None:
    with pytest.raises(UnsupportedOpError) as refused:
        capture(Determinant().eval(), (torch.randn(3, 4, 4),), None, {"x": {0: N}})
    (problem,) = refused.value.problems
    assert problem.op == "aten.linalg_det.default"
    assert "aten._linalg_det.default, which it is made of" in problem.text
    assert str(problem.where).startswith("tests/frontend/test_compositions.py:")


def test_operators_with_a_lowering_are_never_taken_apart() -> None:
    whole = {torch.ops.aten.softmax.int, torch.ops.aten.linear.default, torch.ops.aten.add_.Tensor}
    assert table_for(whole) == {}
    assert table_for({*whole, torch.ops.aten.linalg_det.default}).keys() == {torch.ops.aten.linalg_det.default}
