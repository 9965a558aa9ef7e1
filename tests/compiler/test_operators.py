"""Compositions and folded scatters, compiled: each equals torch in float64, whatever the size and the threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.frontend.against_eager import assert_same
from tests.frontend.many import Many
from tests.frontend.test_compositions import TABLES, _draw, _exact

COMPILED = {
    "folded": tuple(TABLES["folded"]),
    "pointwise": ("erfc", "logcumsumexp", "hypot", "nan_to_num", "var_mean"),
    "complex": tuple(TABLES["complex"]),
    "windows": ("grid", "fold", "unfold", "unshuffle"),
    "interpolated": ("bilinear", "bicubic_corners", "nearest"),
    "algebra": ("cdist", "cdist_1", "cross"),
}


FAST = ("folded", "complex", "algebra")


@pytest.mark.parametrize("table", [t if t in FAST else pytest.param(t, marks=pytest.mark.slow) for t in COMPILED])
def test_compiled_operators_equal_eager_in_double(table: str, rng: np.random.Generator) -> None:
    model = Many({name: TABLES[table][name] for name in COMPILED[table]}).eval()
    dims = {"inputs.0": {0: tw.Dim("n", 1, 16)}}
    for threads in (1, 2):
        program = tw.compile(model, args=(_draw(rng, 3),), dims=dims, fallback="error", threads=threads, cache=False)
        for n in (1, 2, 5) if threads == 1 else (5,):
            x = _draw(rng, n)
            found = program(x)
            assert_same(found, _exact(model, x, found))


def test_erfc_keeps_its_digits_far_out(rng: np.random.Generator) -> None:
    x = torch.from_numpy(np.concatenate([rng.uniform(-6, 9, 301), [0.0, -0.0, 40.0, -40.0]]).astype(np.float32))
    model = Many({"erfc": torch.erfc}).eval()
    found = tw.compile(model, args=(x,), cache=False)(x)["erfc"].double()
    wanted = torch.erfc(x.double())
    # 23 products and sums of f32 in Horner's scheme, each off by half a unit, and two exponentials
    unit = 2.0**-24
    assert ((found - wanted).abs() <= 60 * unit * wanted + 2e-38).all()
