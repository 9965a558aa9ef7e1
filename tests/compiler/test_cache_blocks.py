"""Products whose weights come from memory: blocks of rows meet a panel in stretches, and no bit depends on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tilewright as tw


class Windows(torch.nn.Module):
    """Convolutions with more weights than stay in a cache, on short image rows, and residuals."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(width, width, 3, stride, 1)
        self.second = torch.nn.Conv2d(width, width, (3, 1), 1, (1, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return x + torch.relu(self.second(x))


class Rows(torch.nn.Module):
    """Linear layers with more weights than stay in a cache; K has no divisor near a stretch's length."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(134, 1100), torch.nn.Linear(1100, 134)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def _assert_close(got: torch.Tensor, want: torch.Tensor, depth: int) -> None:
    """depth: products in a sum; each rounds by half a unit of at most the sum of magnitudes, which is O(1) here."""
    torch.testing.assert_close(got.double(), want, rtol=0, atol=depth * 2.0**-23)


@pytest.mark.parametrize(("height", "width", "stride"), [(7, 7, 1), (13, 5, 1), (14, 14, 2), (15, 9, 1), (50, 60, 1)])
@pytest.mark.parametrize("threads", [1, 2])
def test_windows_in_blocks(height: int, width: int, stride: int, threads: int, rng: np.random.Generator) -> None:
    """Equal to float64, whatever rows a block has; an image's bits do not depend on its neighbours."""
    module = Windows(96, stride).eval()
    x = torch.from_numpy(rng.standard_normal((5, 96, height, width)).astype(np.float32))
    compiled = tw.compile(module, (x[:2],), dims={"x": {0: tw.Dim("batch", 1, 8)}}, threads=threads)
    with torch.no_grad():
        got = compiled(x)
        _assert_close(got, module.double()(x.double()), 4 * 9 * 96)
        for image in (0, 4):
            assert torch.equal(compiled(x[image : image + 1])[0], got[image])


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_in_blocks(threads: int, rng: np.random.Generator) -> None:
    """Equal to float64 at numbers of rows around a block's; a row's bits are those it has alone."""
    module = Rows().eval()
    x = torch.from_numpy(rng.standard_normal((197, 134)).astype(np.float32))
    compiled = tw.compile(module, (x[:3],), dims={"x": {0: tw.Dim("rows", 1, 256)}}, threads=threads)
    with torch.no_grad():
        want = module.double()(x.double())
        alone = torch.cat([compiled(x[n : n + 1]) for n in range(197)])
        for rows in (1, 16, 17, 95, 96, 97, 193, 197):
            got = compiled(x[:rows])
            _assert_close(got, want[:rows], 4 * 1100)
            assert torch.equal(got, alone[:rows])
    kernels = [source for name, source in compiled.sources.items() if "matmul" in name]
    assert any("llvm.intr.prefetch" in text for text in kernels), "no product of many rows asks for its weights ahead"
