"""Windows stated in torch's ways: a number for all axes or one an axis, left out or empty, or dependent on sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)

from tests.frontend.against_eager import assert_same, run
from tests.frontend.test_dims import Apply, floats
from tilewright.frontend import capture
from tilewright.frontend.aten.windows import per_axis
from tilewright.frontend.registry import Unsupported
from tilewright.ir.dims import Dim, Expr

POOLS = {
    "one number": lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2),
    "one an axis": lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1)) * 1,
    "empty stride": lambda x: torch.ops.aten.max_pool2d(x, [2, 3], []) + torch.ops.aten.avg_pool2d(x, [2, 3], []),
    "one in a list": lambda x: torch.ops.aten.avg_pool2d(x, [3], [2], [1], True, False, 5) * 1,
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_take_a_number_for_all_axes_or_one_an_axis(rng: np.random.Generator, name: str) -> None:
    model = Apply(POOLS[name])
    captured = capture(model, (floats(rng, 2, 3, 11, 8),), None, {"x": {0: Dim("n", 0, 5)}})
    for n in (0, 1, 5):
        x = floats(rng, n, 3, 11, 8)
        assert_same(run(captured, x), model(x))


@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 1)])
@pytest.mark.parametrize("batched", [True, False])
def test_convolutions_pad_by_name_and_by_number_alike(
    rng: np.random.Generator, padding: str | int | tuple[int, int], batched: bool
) -> None:
    weight, bias = floats(rng, 6, 2, 4, 3), floats(rng, 6)
    model = Apply(lambda x: F.conv2d(x, weight, bias, padding=padding, dilation=(2, 1), groups=2) * 1)
    x = floats(rng, *([3] if batched else []), 4, 13, 7)
    assert_same(run(capture(model, (x,)), x), model(x))


def test_a_number_of_a_window_that_depends_on_a_size_is_refused() -> None:
    assert per_axis([Expr.of(3), 2], 2) == [3, 2]
    assert per_axis([], 3, 1) == [1, 1, 1]
    with pytest.raises(Unsupported, match="a window whose size depends on the input"):
        per_axis([Expr.of("t") * 2], 2)
