"""Convolutions, transposed ones and pools as torch exports them, captured and run as graph IR."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.frontend.against_eager import captured_equals_eager
from tests.frontend.many import Many
from tilewright.ir.dims import Dim

B, H = Dim("b", 1, 8), Dim("h", 6, 64)


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_transposed_convolutions(spatial: int, rng: np.random.Generator) -> None:
    kind = getattr(nn, f"ConvTranspose{spatial}d")
    layers = nn.ModuleList()
    for groups in (1, 2):
        window, stride, dilation = (int(n) for n in rng.integers(1, 4, 3))
        padding = int(rng.integers(0, dilation * (window - 1) + 1)) if rng.random() < 0.7 else 0
        more = int(rng.integers(0, max(stride, dilation)))
        bias = bool(rng.random() < 0.5)
        layers.append(kind(4, 6, window, stride, padding, more, groups, bias, dilation))

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [layer(x) for layer in self.layers]

    side = [7] * spatial
    calls = [(floats(rng, 2, 4, *side),), (floats(rng, 1, 4, 9, *side[1:]),)]
    dims = {"x": (B, None, H, *[None] * (spatial - 1))}
    captured_equals_eager(Layers(), calls, dims, rtol=1e-4, atol=1e-4)


POOLS = {
    "max": nn.MaxPool2d(3, 2, 1),
    "dilated": nn.MaxPool2d(2, 1, 1, dilation=2),
    "ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "mean": nn.AvgPool2d(3, 2, 1),
    "mean of x": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "mean to the end": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "divided": nn.AvgPool2d((3, 1), divisor_override=5),
    "power": nn.LPPool2d(2, 2),
    "global": nn.AdaptiveAvgPool2d(1),
    "highest": nn.AdaptiveMaxPool2d((1, 1)),
    "uneven": nn.AdaptiveAvgPool2d((4, 3)),
    "uneven max": nn.AdaptiveMaxPool2d((3, 5)),
    "lines": lambda x: nn.functional.max_pool1d(x.flatten(0, 1), 2),
    "means of lines": lambda x: nn.functional.avg_pool1d(x.flatten(0, 1), 3, 2, 1),
    "adaptive lines": lambda x: nn.functional.adaptive_avg_pool1d(x.flatten(0, 1), 2),
    "solid": lambda x: nn.functional.max_pool3d(x, 2),
    "unbatched": lambda x: nn.functional.avg_pool2d(x[0], 2),
}


@pytest.mark.parametrize("dynamic", [False, True])
def test_pools(dynamic: bool, rng: np.random.Generator) -> None:
    calls = [(floats(rng, 2, 4, 9, 10),)]
    if dynamic:
        calls += [(floats(rng, 1, 4, h, 10),) for h in (6, 7, 13)]
    captured_equals_eager(Many(POOLS), calls, {"inputs.0": (B, None, H if dynamic else None, None)})


def test_convolutions_of_two_and_three_axes(rng: np.random.Generator) -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0))
            self.grouped = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False)
            self.same = nn.Conv2d(4, 2, (2, 4), padding="same")
            self.solid = nn.Conv3d(4, 2, (1, 2, 3), padding=(0, 1, 1))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.plain(x), self.grouped(x), self.same(x), self.solid(x[:, :, None]), self.plain(x[0])

    calls = [(floats(rng, b, 4, h, 7),) for b, h in [(2, 8), (1, 6), (3, 11)]]
    captured_equals_eager(Convolutions(), calls, {"x": (B, None, H, None)})


class Skip(torch.nn.Module):
    """Halves an image and doubles it again, beside the image itself."""

    def __init__(self, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.up, self.join = torch.nn.ConvTranspose2d(3, 3, 2, 2), join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self.up(torch.nn.functional.max_pool2d(x, 2)), x)


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.cat([a, b], 1),
        lambda a, b: torch.cat([b, a], -3),
        lambda a, b: a * b,
        lambda a, b: torch.where(b > 0, b, a),
    ],
    ids=["joined", "joined the other way", "multiplied", "chosen"],
)
def test_sizes_that_only_even_calls_make_equal_are_a_guard(
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], rng: np.random.Generator
) -> None:
    def image(height: int, width: int) -> tuple[torch.Tensor]:
        return (torch.from_numpy(rng.standard_normal((2, 3, height, width), np.float32)),)

    calls = [image(8, 12), image(10, 4)]
    found = captured_equals_eager(Skip(join), calls, {"x": {2: Dim("h", 4, 32), 3: Dim("w", 4, 32)}})
    assert len(found.guards) == 2
    for h, w in ((9, 8), (8, 9)):
        assert not all(guard.holds({"h": h, "w": w}) for guard in found.guards)
