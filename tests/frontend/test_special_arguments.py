"""What a careful stranger tries: ends of ranges, narrow floats, rare operators; every number against float64."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.frontend.against_eager import assert_same, captured_equals_eager, run
from tests.frontend.many import Many, Table
from tilewright.errors import CaptureError, DimDeclarationError, SpecialisationError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim

F = nn.functional
B, N = Dim("b", 1, 16), Dim("n", 0, 16)


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8"])
def test_remainders_of_the_least_and_the_largest_integers(name: str, rng: np.random.Generator) -> None:
    limits = np.iinfo(name)
    edges = [limits.min, limits.min + 1, limits.max, limits.max - 1]
    values = np.array([*edges, *rng.integers(limits.min, limits.max, 9)], name)
    divisors = [d for d in (1, 2, 3, 7, -1, -2, -7, limits.max, limits.min) if limits.min <= d and d != 0]
    x, y = (torch.from_numpy(a.ravel()) for a in np.meshgrid(values, np.array(divisors, name)))
    found = run(capture(Many({"fmod": torch.fmod}), (x, y)), x, y)["fmod"].tolist()
    # Python's integers have no least one
    wanted = [abs(a) % abs(b) * (-1 if a < 0 else 1) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert found == wanted


NARROW: Table = {
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "softplus": lambda x: F.softplus(x, beta=3.0),
    "hardswish": F.hardswish,
    "round": lambda x: (x * 4).round(decimals=1),
    "quotient": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
    "cube": lambda x: x**3,
    "asinh": torch.asinh,
    "log10": lambda x: torch.log10(x.abs()),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compositions_in_narrow_floats_are_rounded_once(dtype: torch.dtype, rng: np.random.Generator) -> None:
    x = torch.from_numpy(np.concatenate([rng.uniform(-15, 15, 999), rng.uniform(-1e-2, 1e-2, 99)])).to(dtype)
    model = Many(NARROW)
    found, exact = run(capture(model, (x,)), x), model(x.double())
    for name, ours in found.items():
        # a step of the operator's own argument (x * 4 above) is rounded in eager as well
        wanted = model.table[name](x).double() if name in ("round", "quotient") else exact[name]
        off = (ours.double() - wanted).abs()
        assert (off <= torch.finfo(dtype).eps * wanted.abs() + torch.finfo(dtype).smallest_normal).all(), name


# Eager rounds a number to the dtype in some operators and keeps it in others; a step across an edge shows which.
NUMBERS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "add": torch.add,
    "sub": torch.sub, "rsub": torch.rsub, "mul": torch.mul, "div": torch.div, "remainder": torch.remainder,
    "number_remainder": lambda x, s: s % x, "fmod": torch.fmod, "floor_divide": torch.floor_divide,
    "number_floor_divide": lambda x, s: s // x, "threshold": lambda x, s: F.threshold(x, s, 0.0),
    "clamp": lambda x, s: x.clamp(min=s), "masked_fill": lambda x, s: x.masked_fill(x == s, 2.0),
    "hardshrink": F.hardshrink, "zero": lambda x, s: (x - s) == 0,
}  # fmt: skip


def _with(f: Callable[[torch.Tensor, float], torch.Tensor], s: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: f(x, s)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_meet_narrow_floats_as_eager_has_them(dtype: torch.dtype, rng: np.random.Generator) -> None:
    numbers = [0.7, 0.1, 0.3, -0.3, float(rng.uniform(-1, 1))]
    drawn = [*rng.uniform(-8, 8, 199), *numbers, *(-n for n in numbers), 100.0, 1000.0]
    x = torch.tensor(drawn, dtype=dtype)
    table: Table = {f"{name} {s}": _with(f, s) for name, f in NUMBERS.items() for s in numbers}
    model = Many(table)
    found, wanted = run(capture(model, (x,)), x), model(x)
    for name, ours in found.items():
        assert torch.equal(torch.nan_to_num(ours.double(), 3.0), torch.nan_to_num(wanted[name].double(), 3.0)), name


def test_a_side_without_end_decides_a_hypotenuse() -> None:
    ends = torch.tensor([math.inf, -math.inf, math.nan, 3e38, 0.0, 1e-45])
    x, y = (side.reshape(-1).contiguous() for side in torch.meshgrid(ends, ends, indexing="ij"))
    found = run(capture(Many({"hypot": torch.hypot}), (x, y)), x, y)["hypot"]
    torch.testing.assert_close(found, torch.hypot(x, y), equal_nan=True, rtol=1e-6, atol=2e-45)


ANGLES: Table = {name: getattr(torch, name) for name in ("asin", "acos", "atan", "asinh", "acosh", "atanh", "signbit")}


def test_angles_and_their_inverses(rng: np.random.Generator) -> None:
    edges = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e30, -1e30, 1e-40, 3.0]
    x = torch.from_numpy(np.concatenate([edges, rng.uniform(-1, 1, 500), 10 ** rng.uniform(-9, 30, 200)])).float()
    y = x[torch.from_numpy(rng.permutation(len(x)))]
    table = ANGLES | {"copysign": lambda x: torch.copysign(x, y), "atan2": lambda x: torch.atan2(x, y.to(x.dtype))}
    model = Many(table)
    found, exact = run(capture(model, (x,)), x), model(x.double())
    for name, ours in found.items():
        wanted = exact[name]
        if ours.dtype == torch.bool:
            assert torch.equal(ours, wanted)
            continue
        # two units in the last place of the composition, and one each for its roots and logarithms
        torch.testing.assert_close(ours, wanted.float(), rtol=4 * 2.0**-23, atol=0, equal_nan=True, msg=name)
        kept = ~wanted.isnan()
        assert torch.equal(torch.signbit(ours)[kept], torch.signbit(wanted)[kept]), name


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_integers_to_integer_powers(dtype: torch.dtype) -> None:
    signed = dtype != torch.uint8
    bases = torch.tensor([0, 1, 2, 3, 7, 100, *([-1, -2, -3] if signed else [])], dtype=dtype)
    powers = torch.tensor([0, 1, 2, 5, 8, 31, 100, *([-1, -2] if signed else [])], dtype=dtype)
    x, y = (t.flatten() for t in torch.meshgrid(bases, powers, indexing="ij"))
    table = {"tensors": torch.pow, "of_two": lambda x, y: 2**y, "fixed": lambda x, y: x**90}
    captured_equals_eager(Many(table), [(x, y)])


CONTRACTED: Table = {
    "ellipsis": lambda x: torch.einsum("...ij,...kj->...ik", x, x),
    "inside": lambda x: torch.einsum("b...i,...i->b...", x, x[0]),
    "implied": lambda x: torch.einsum("...i,ij", x, x[0, :, :].mT @ x[0]),
    "turned": lambda x: torch.einsum("...ij->...ji", x),
    "diagonal": lambda x: torch.einsum("bii->bi", x @ x.mT),
    "trace": lambda x: torch.einsum("bii", x @ x.mT),
    "twice": lambda x: torch.einsum("iji->ji", x[:1, :, :1]),
    "bilinear": lambda x: F.bilinear(x[..., :3], x, x[0, :1, :].new_ones(4, 3, 6) * x[0, 0], x[0, 0, :4]),
    "diagonal_scatter": lambda x: x.diagonal_scatter(x[:, 0, :5] * 9, 1, 1, 2),
    "below": lambda x: x[0].diagonal_scatter(x[0, 0, :3] * 9, -2),
    "fill_diagonal": lambda x: (x @ x.mT)[0].fill_diagonal_(7.0),
    "wrapped": lambda x: x.reshape(-1, 3)[:10].clone().fill_diagonal_(7.0, wrap=True),
    "median": lambda x: x.median(1),
    "median_of_all": lambda x: (x.median(), x.log().nanmedian(), x.log().median(-1)[0]),
    "triangle": lambda x: x[0, torch.tril_indices(5, 6, -1)[0], torch.tril_indices(5, 6, -1)[1]],
    "upper": lambda x: torch.triu_indices(5, 7, 2) + x.long().sum(),
}


def test_rare_operators_equal_eager(rng: np.random.Generator) -> None:
    calls = [(floats(rng, n, 5, 6),) for n in (3, 1, 7)]
    captured_equals_eager(Many(CONTRACTED), calls, {"inputs.0": (B, None, None)}, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 2])
def test_bags_of_embeddings(mode: str, padding: int | None, rng: np.random.Generator) -> None:
    def bags(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, 4, shape))

    matrix = nn.EmbeddingBag(4, 3, mode=mode, padding_idx=padding)
    # a bag of padding alone is 0
    calls = [(bags(3, 5),), (bags(6, 5),), (torch.full((1, 5), 2),)]
    captured_equals_eager(matrix, calls, {"input": (B, None)})
    ragged = nn.EmbeddingBag(4, 3, mode=mode, padding_idx=padding, include_last_offset=True)
    captured_equals_eager(ragged, [(bags(9), torch.tensor([0, 2, 2, 7, 9])), (bags(9), torch.tensor([0, 0, 9, 9, 9]))])


@pytest.mark.parametrize("padded", [False, True])
def test_places_of_pooled_maxima(padded: bool, rng: np.random.Generator) -> None:
    more: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True} if padded else {}
    dims = {"x": (B, None, Dim("h", 6, 40), None)}

    class Pools(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            flat = F.max_pool1d(x[..., 0], 3, **more), F.max_pool1d(x[..., 0], 3, return_indices=True, **more)
            return F.max_pool2d(x, 3, return_indices=True, **more), flat

    tied = torch.from_numpy(rng.integers(0, 3, (2, 2, 9, 7)).astype(np.float32))
    captured_equals_eager(Pools(), [(floats(rng, 2, 2, 8, 7),), (tied,), (torch.full((1, 2, 7, 7), -math.inf),)], dims)


def test_an_axis_shorter_than_nothing_narrows_the_dim(rng: np.random.Generator) -> None:
    model = Many({"difference": lambda x: x.diff(dim=0)})
    with pytest.raises(SpecialisationError, match=r"the model admits 1\.\.16"):
        capture(model, (floats(rng, 3, 2),), None, {"inputs.0": (N, None)})
    captured_equals_eager(model, [(floats(rng, n, 2),) for n in (3, 1, 16)], {"inputs.0": (B, None)})


def test_numbers_spread_evenly_over_a_varying_length(rng: np.random.Generator) -> None:
    table: Table = {
        "floats": lambda x: torch.linspace(-3.0, 2.5, x.shape[0]),
        "downwards": lambda x: torch.linspace(1, 0, 2 * x.shape[0], dtype=torch.float64),
        "integers": lambda x: torch.linspace(0, 10, x.shape[0], dtype=torch.int64),
        "by_sizes": lambda x: torch.linspace(x.shape[0] / 2, x.shape[0] - 1, x.shape[0]),
        "how_far": lambda x: torch.linspace(0, x.shape[0], 5),
        "one": lambda x: torch.linspace(3, 4, 1),
    }
    calls = [(floats(rng, n, 2),) for n in (7, 0, 1, 2, 16)]
    captured = captured_equals_eager(Many(table), calls, {"inputs.0": (N, None)})
    assert captured.notes == ()  # proved, not tried


def test_places_along_an_axis_and_products_of_two_inputs_keep_sizes_open(rng: np.random.Generator) -> None:
    weight, bias = torch.arange(18.0).reshape(2, 3, 3) - 8, torch.ones(2)
    table: Table = {
        "along": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
        "stretched": lambda x: torch.take_along_dim(x, torch.tensor([[1, 0]]), -1),
        "flat": lambda x: torch.take_along_dim(x, torch.tensor([2, 0])),
        "bilinear": lambda x: (
            F.bilinear(x[:, :3], x[:, :3].exp(), weight),
            F.bilinear(x[0, :3], x[0, :3], weight, bias),
        ),
    }
    dims = {"inputs.0": (B, Dim("m", 3, 40))}
    calls = [(floats(rng, *shape),) for shape in ((4, 7), (1, 3), (9, 40))]
    captured = captured_equals_eager(Many(table), calls, dims, rtol=1e-4, atol=1e-4)
    assert not captured.guards


def test_the_most_common_element_is_the_least_of_several(rng: np.random.Generator) -> None:
    class Modes(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            value, place = x.mode(1)
            # torch's place of several is any of them
            return (
                value,
                x.gather(1, place[:, None]),
                x.mode(0, keepdim=True)[0],
                x.flatten().mode()[0],
                x.long().mode()[0],
            )

    calls = [(torch.from_numpy(rng.integers(-3, 4, shape).astype(np.float32)),) for shape in ((5, 7), (1, 1), (16, 30))]
    captured_equals_eager(Modes(), calls, {"x": (B, Dim("m", 1, 40))})


def test_sizes_that_once_had_no_form(rng: np.random.Generator) -> None:
    table: Table = {
        "backwards": lambda x: torch.arange(x.shape[0], 0, -2) + x.sum().long() * 0,
        "larger": lambda x: F.interpolate(x[None, None], scale_factor=1.5, mode="bicubic"),
        "distances": lambda x: torch.cdist(x, x[:2] + 9),
        "responses": lambda x: F.local_response_norm(x[None], 3),
    }
    dims = {"inputs.0": (Dim("n", 2, 40), None)}
    captured_equals_eager(Many(table), [(floats(rng, n, 6),) for n in (5, 2, 31)], dims, rtol=1e-4, atol=1e-4)
    normed = captured_equals_eager(
        nn.LocalResponseNorm(3), [(floats(rng, n, 4, 9),) for n in (2, 0, 5)], {"input": (N, None, Dim("l", 8, 64))}
    )
    assert not normed.guards


def test_statistics_of_the_batch_in_evaluation_mode(rng: np.random.Generator) -> None:
    for affine in (True, False):
        norm = nn.BatchNorm1d(3, track_running_stats=False, affine=affine)
        captured_equals_eager(norm, [(floats(rng, n, 3) + 5,) for n in (4, 2, 9)], {"input": (Dim("m", 2, 9), None)})


def test_parameters_made_under_inference_mode(rng: np.random.Generator) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    x = floats(rng, 2, 4)
    found = run(capture(model, (x,)), x)
    with torch.inference_mode():
        assert_same(found, model(x))
    assert all(p.requires_grad for p in model.parameters())


def test_padding_that_eagers_fast_path_drops_is_noted(rng: np.random.Generator) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1).eval(), floats(rng, 2, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[3], [5]])
    captured = capture(model, (x,), {"src_key_padding_mask": padding})
    assert any("fast path" in note for note in captured.notes)
    # with gradients eager goes through the layers
    assert_same(run(captured, x, src_key_padding_mask=padding), model(x, src_key_padding_mask=padding).detach())
    assert not capture(model, (x,)).notes


def test_ordered_results_stay_ordered(rng: np.random.Generator) -> None:
    model, x = Many({"pair": lambda x: OrderedDict(second=x * 2, first=x)}), floats(rng, 3)
    pair = run(capture(model, (x,)), x)["pair"]
    assert type(pair) is OrderedDict
    assert list(pair) == ["second", "first"]


@dataclass
class Unknown:
    value: torch.Tensor


def test_results_that_torch_cannot_take_apart_are_told_with_a_way_out() -> None:
    class Gives(nn.Module):
        def forward(self, x: torch.Tensor) -> Unknown:
            return Unknown(x + 1)

    with pytest.raises(CaptureError, match=r"torch\.export\.register_dataclass\(Unknown\)"):
        capture(Gives(), (torch.ones(2),))
    with pytest.raises(CaptureError, match="depends on the values of tensors"):
        capture(Many({"pairs": torch.combinations}), (torch.ones(4),))


def test_an_example_outside_its_own_dims_is_refused() -> None:
    with pytest.raises(DimDeclarationError, match=r"n is 17 in the example, and declared n: 0\.\.16"):
        capture(nn.Linear(3, 2), (torch.ones(17, 3),), None, {"input": (N, None)})
