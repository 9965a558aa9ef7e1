"""Image models end to end: float64 within rounding at any size declared, and bits that depend on one image alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tilewright as tw
from tests.compiler.counting import check_formulas
from tests.models.vision import InvertedResidual, Patches, ResNet, Segmenter, convnext, settled
from tilewright.compiler.instrumented import CountingTwin

MODELS: dict[str, Any] = {
    "resnet": lambda: ResNet((1, 1), 12, 10),
    "convnext": convnext,
    "inverted": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), InvertedResidual(8)),
    "patches": Patches,
    "segmenter": Segmenter,
}
BATCH, HEIGHT, WIDTH = tw.Dim("batch", 1, 9), tw.Dim("height", 17, 90), tw.Dim("width", 17, 90)
# dynamic image sizes where the layers take any; halved and doubled images join only where the height is even
ANY_SIZE = ("resnet", "convnext", "inverted")


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return settled(MODELS[name]())


def images(rng: np.random.Generator, batch: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((batch, 3, height, width)).astype(np.float32))


def compiled(model: nn.Module, *, dynamic: bool, **options: Any) -> Any:
    side = (HEIGHT, WIDTH) if dynamic else (24, 32)
    name = "input" if isinstance(model, nn.Sequential) else "x"
    return tw.compile(model, (torch.zeros(2, 3, 24, 32),), dims={name: (BATCH, 3, *side)}, **options)


def exact(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = copy.deepcopy(model).double()(x.double())
    return found


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest error beside the largest result."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module", params=MODELS)
def named(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Any]:
    model = model_of(request.param)
    return request.param, model, compiled(model, dynamic=request.param in ANY_SIZE)


def test_a_model_equals_eager_at_every_size(named: tuple[str, nn.Module, Any], rng: np.random.Generator) -> None:
    name, model, ours = named
    sizes = [(1, 24, 32), (9, 24, 32), (4, 24, 32)]
    if name in ANY_SIZE:
        sizes += [(1, 17, 90), (2, int(rng.integers(17, 91)), int(rng.integers(17, 91)))]
    for size in sizes:
        x = images(rng, *size)
        wanted = exact(model, x)
        with torch.inference_mode():
            eagers = error(model(x), wanted)
        # as good as eager, which also adds a few hundred products in f32
        assert error(ours(x), wanted) <= 8 * eagers + 1e-6, (name, size)


def test_an_image_has_the_same_bits_in_any_batch(named: tuple[str, nn.Module, Any], rng: np.random.Generator) -> None:
    _, _, ours = named
    x = images(rng, 7, 24, 32)
    together = ours(x).clone()
    for row in (0, 3, 6):
        assert torch.equal(ours(x[row : row + 1]), together[row : row + 1])


def test_threads_change_no_bit(rng: np.random.Generator) -> None:
    model = model_of("inverted")
    one, two = (compiled(model, dynamic=True, threads=n) for n in (1, 2))
    x = images(rng, 3, 35, 41)
    assert torch.equal(one(x), two(x))


def test_running_kernels_count_what_the_formulas_say(
    named: tuple[str, nn.Module, Any], rng: np.random.Generator
) -> None:
    _, _, ours = named
    assert check_formulas(ours, CountingTwin(ours).run(images(rng, 3, 24, 32)))


@pytest.mark.parametrize("name", ["convnext", "inverted"])
def test_bf16_products_stay_within_their_rounding(name: str, rng: np.random.Generator) -> None:
    model = model_of(name)
    ours = compiled(model, dynamic=False, precision="bf16")
    x = images(rng, 2, 24, 32)
    # each product is rounded by 2^-8 on both sides, and a handful of layers follow one another
    assert 0 < error(ours(x), exact(model, x)) < 12 * 2.0**-8


@pytest.mark.slow
def test_resnet_50_at_full_size(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    model = settled(ResNet())
    x = images(rng, 1, 224, 224)
    ours = tw.compile(model, (x,))
    with torch.inference_mode():
        wanted = exact(model, x)
        assert error(ours(x), wanted) <= 8 * error(model(x), wanted) + 1e-6
