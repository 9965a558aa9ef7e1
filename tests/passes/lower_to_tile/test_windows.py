"""Kernels of convolutions, pools and padding: the group's meaning and the counts, at windows and sizes drawn anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.passes.lower_to_tile.groups import draw, group, lower, reference, run_lowered
from tilewright.errors import LoweringError
from tilewright.ir.dims import ExprLike
from tilewright.ir.dtypes import BF16, F32, F64, I64, DType
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.types import TensorType

# images' sizes come from these dims: a batch, and the last spatial axis
SIZES = [{"b": 1, "t": 0}, {"b": 3, "t": 7}, {"b": 0, "t": 2}]


def typed(dtype: DType, *dims: ExprLike) -> TensorType:
    return TensorType.of(dims, dtype)


def check(made: GroupOp, rng: np.random.Generator, tolerance: float, machine: str = "avx512") -> None:
    """The kernel equals the float64 reference, and counts what the formulas say."""
    lowered = lower(made, machine)
    for sizes in SIZES:
        inputs = draw(made, sizes, rng)
        counters = Counters()
        results = run_lowered(made, lowered, 0, inputs, sizes, counters)
        for want, got in zip(reference(made, inputs, sizes), results, strict=True):
            found = torch.from_numpy(np.asarray(got, np.float64))
            torch.testing.assert_close(found, want.double(), rtol=tolerance, atol=tolerance)
        dims = {name: sizes[name] for name in lowered.dims}
        assert +kernel_traffic(lowered.variants[0].kernel).counts(dims, []) == +counters.bytes


def convolution(spatial: int, *, groups: int, deep: int, wide: int, dtype: DType, rng: np.random.Generator) -> GroupOp:
    """A convolution with a bias, an activation and a residual, its image large enough for any window drawn."""

    def each(low: int, high: int) -> list[int]:
        return [int(n) for n in rng.integers(low, high + 1, spatial)]

    window, strides, dilation = each(1, 3), each(1, 3), each(1, 2)
    sides: list[Any] = [d * (w - 1) + 1 + n for d, w, n in zip(dilation, window, each(0, 4), strict=True)]
    if rng.random() < 0.5:
        from tilewright.ir.dims import Expr

        sides[-1] = Expr.of("t") + sides[-1]
    none = [0] * spatial

    def build(g: Any, x: Any, w: Any, bias: Any, *rest: Any) -> list[Any]:
        out = g.add(
            ConvolutionOp.make(
                x, w, None, strides=strides, padding_low=none, padding_high=none, dilation=dilation, groups=groups,
                channels_last=True,
            )
        )  # fmt: skip
        out = g.add(MapOp.make(g.add(MapOp.make(out, bias, fn="add")), fn="relu"))
        return [out, g.add(MapOp.make(out, out, fn="mul"))]

    filters = groups * wide
    types = [
        typed(dtype, "b", *sides, groups * deep),
        typed(dtype, *window, deep, filters),
        typed(dtype, filters),
    ]
    return group("convolution", types, build)


@pytest.mark.parametrize("machine", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize(
    ("groups", "deep", "wide"), [(1, 3, 5), (1, 1, 1), (1, 17, 70), (2, 3, 1), (3, 2, 19), (5, 1, 1), (37, 1, 1)]
)
def test_convolution(spatial: int, groups: int, deep: int, wide: int, machine: str, rng: np.random.Generator) -> None:
    made = convolution(spatial, groups=groups, deep=deep, wide=wide, dtype=F32, rng=rng)
    check(made, rng, 1e-4, machine)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (BF16, 3e-1)], ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_in_other_dtypes(dtype: DType, tolerance: float, groups: int, rng: np.random.Generator) -> None:
    deep, wide = (5, 3) if groups == 1 else (1, 1)
    check(convolution(2, groups=groups, deep=deep, wide=wide, dtype=dtype, rng=rng), rng, tolerance)


def test_convolution_wants_padded_images_with_channels_last() -> None:
    stated = {"strides": [1], "dilation": [1]}
    with pytest.raises(LoweringError, match="padded images with their channels last"):
        lower(
            group(
                "convolution",
                [typed(F32, "b", 3, 8), typed(F32, 4, 3, 2)],
                lambda g, x, w: [g.add(ConvolutionOp.make(x, w, None, padding_low=[1], padding_high=[0], **stated))],
            )
        )


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.parametrize("fn", ["max", "mean"])
@pytest.mark.parametrize("ceil", [False, True])
def test_pool(spatial: int, channels: int, fn: str, ceil: bool, rng: np.random.Generator) -> None:
    from tilewright.ir.dims import Expr

    window = [int(n) for n in rng.integers(1, 4, spatial)]
    padding = [int(rng.integers(0, w // 2 + 1)) for w in window]
    dilation = [int(n) for n in rng.integers(1, 3, spatial)]
    sides: list[Any] = [d * (w - 1) + 1 + int(rng.integers(0, 5)) for d, w in zip(dilation, window, strict=True)]
    sides[-1] = Expr.of("t") + sides[-1]
    stated = {
        "fn": fn, "window": window, "strides": [int(n) for n in rng.integers(1, 4, spatial)], "padding_low": padding,
        "padding_high": padding, "dilation": dilation, "ceil": ceil, "count_padding": bool(rng.random() < 0.5),
        "divisor": int(rng.choice([0, 3])), "channels_last": True,
    }  # fmt: skip
    made = group("pool", [typed(F32, "b", *sides, channels)], lambda g, x: [g.add(PoolOp.make(x, **stated))])
    check(made, rng, 1e-5)


def test_pool_of_integers(rng: np.random.Generator) -> None:
    stated = {"window": [2], "strides": [1], "padding_low": [1], "padding_high": [1], "dilation": [1]}
    made = group(
        "pool",
        [typed(I64, "b", 6, 5)],
        lambda g, x: [g.add(PoolOp.make(x, fn="max", channels_last=True, **stated))],
    )
    check(made, rng, 0)
