"""The dtype table agrees with torch and NumPy, and promotes as torch promotes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tilewright.ir.dtypes import BF16, DTYPES, F32, DType, from_numpy, from_torch_name, promote, torch_name

ALL = list(DTYPES.values())


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_sizes_and_kinds_are_those_of_torch_and_numpy(dtype: DType) -> None:
    theirs = getattr(torch, torch_name(dtype))
    assert dtype.bytes == theirs.itemsize == dtype.numpy().itemsize
    assert dtype.is_float == theirs.is_floating_point
    assert dtype.is_integer == (not theirs.is_floating_point and theirs != torch.bool)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_names_lead_back(dtype: DType) -> None:
    assert from_torch_name(str(getattr(torch, torch_name(dtype)))) is dtype
    assert from_torch_name(torch_name(dtype)) is dtype
    assert from_numpy(dtype.numpy()) is dtype
    assert DTYPES[str(dtype)] is dtype


def test_types_we_do_not_have_are_none() -> None:
    assert from_torch_name("torch.complex64") is None
    assert from_numpy(np.dtype(np.complex64)) is None
    assert from_numpy(np.dtype("U3")) is None


@pytest.mark.parametrize(("a", "b"), list(itertools.product(ALL, ALL)), ids=str)
def test_promotion_is_torchs(a: DType, b: DType) -> None:
    theirs = torch.promote_types(getattr(torch, torch_name(a)), getattr(torch, torch_name(b)))
    assert promote(a, b) is from_torch_name(str(theirs))


def test_bfloat16_keeps_its_bits_in_numpy(rng: np.random.Generator) -> None:
    wide = rng.standard_normal(1000).astype(np.float32)
    ours = wide.astype(BF16.numpy()).astype(F32.numpy())
    np.testing.assert_array_equal(ours, torch.from_numpy(wide).bfloat16().float().numpy())
