"""Every scalar function means the same in NumPy as in torch, for every dtype it takes and for special values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tilewright.ir.dtypes import BF16, DTYPES, F32, F64, I1, I64, DType, torch_name
from tilewright.ir.scalars import SCALARS, ScalarFunction

Array = np.ndarray[Any, np.dtype[Any]]

# near 0 these subtract nearly equal numbers, so that torch's own error is relative to the operand and not to the result
ABSOLUTE = {"fma", "gelu", "gelu_tanh", "silu", "sin", "cos", "log", "pow", "remainder"}


def to_torch(array: Array, dtype: DType) -> torch.Tensor:
    if dtype == BF16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: torch.Tensor, dtype: DType) -> Array:
    if dtype == BF16:
        return tensor.view(torch.int16).numpy().view(BF16.numpy())
    return tensor.numpy()


def samples(rng: np.random.Generator, dtype: DType) -> Array:
    """Values of a dtype: its special ones, then random ones."""
    if dtype == I1:
        return np.array([False, True, True, False])
    if not dtype.is_float:
        info = np.iinfo(dtype.numpy())
        special = [0, 1, 2, 3, 5, dtype.bits - 1, dtype.bits, info.max, info.min, max(info.min, -1), max(info.min, -7)]
        return np.concatenate([special, rng.integers(info.min, info.max, 12)]).astype(dtype.numpy())
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, 30.0, -30.0]
    return np.concatenate([special, rng.standard_normal(16) * 3]).astype(dtype.numpy())


def operands(function: ScalarFunction, dtype: DType, rng: np.random.Generator) -> list[Array] | None:
    """All pairs of samples (for select: under both conditions); None where the function does not take the dtype."""
    if function.rule == "select":
        a, b = (np.tile(samples(rng, dtype), 2) for _ in range(2))
        return [np.arange(a.size) % 2 == 0, a, b]
    if function.result([dtype] * function.arity) is None:
        return None
    values = samples(rng, dtype)
    if function.name == "gelu":
        # torch's narrow kernels give NaN for +inf, its float64 kernel and ours inf
        values = values[~np.isposinf(values)]
    if function.arity == 1:
        return [values]
    a, b = (np.array(side, values.dtype) for side in zip(*itertools.product(values, values), strict=True))
    if function.arity == 3:
        return [a, b, rng.permutation(b)]
    if not dtype.is_float and function.name in ("div", "floordiv", "remainder"):
        # integers have no quotient by 0, nor the least one by -1
        keep = (b != 0) & ~((b.astype(np.int64) == -1) & (a == np.iinfo(a.dtype).min))
        a, b = a[keep], b[keep]
    return [a, b]


CASES = [(f, t) for f in SCALARS.values() for t in DTYPES.values() if f.rule == "select" or f.result([t] * f.arity)]


@pytest.mark.parametrize(("function", "dtype"), CASES, ids=lambda v: getattr(v, "name", str(v)))
def test_numpy_and_torch_agree(function: ScalarFunction, dtype: DType, rng: np.random.Generator) -> None:
    given = operands(function, dtype, rng)
    assert given is not None
    types = [I1, dtype, dtype] if function.rule == "select" else [dtype] * function.arity
    result = function.result(types)
    assert result is not None
    before = [x.copy() for x in given]
    ours = function.numpy(*given)
    theirs = to_numpy(function.torch(*(to_torch(x, t) for x, t in zip(given, types, strict=True))), result)
    for x, y in zip(given, before, strict=True):
        assert x.tobytes() == y.tobytes()
    assert ours.dtype == theirs.dtype == result.numpy()
    if not result.is_float:
        np.testing.assert_array_equal(ours, theirs)
        return
    eps = float(np.finfo(np.float32).eps) * {16: 2**13 if dtype.name == "f16" else 2**16}.get(dtype.bits, 1)
    eps = float(np.finfo(np.float64).eps) if dtype == F64 else eps
    scale = np.nan_to_num(np.abs(np.asarray(given[0], np.float64)), posinf=0, neginf=0)
    if function.name == "fma":
        scale = scale * np.nan_to_num(np.abs(np.asarray(given[1], np.float64)), posinf=0, neginf=0)
    x, y = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
    np.testing.assert_array_equal(np.isinf(x), np.isinf(y))
    finite = np.isfinite(x)
    allowed = 4 * eps * (np.abs(y) + (scale + 1 if function.name in ABSOLUTE else 0))
    assert (np.abs(x[finite] - y[finite]) <= allowed[finite]).all()
    np.testing.assert_array_equal(x[np.isinf(x)], y[np.isinf(y)])


@pytest.mark.parametrize("function", [f for f in SCALARS.values() if f.rule == "float"], ids=lambda f: f.name)
def test_narrow_numpy_results_are_the_rounded_wide_ones(function: ScalarFunction, rng: np.random.Generator) -> None:
    narrow = [np.abs(rng.standard_normal(50)).astype(np.float32) for _ in range(function.arity)]
    wide = function.numpy(*(x.astype(np.float64) for x in narrow))
    np.testing.assert_array_equal(function.numpy(*narrow), wide.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "types", "result"),
    [
        ("add", [F32, F32], F32),
        ("add", [F32, F64], None),
        ("add", [I1, I1], None),
        ("add", [F32], None),
        ("exp", [F32], F32),
        ("exp", [I64], None),
        ("lt", [I64, I64], I1),
        ("eq", [I1, I1], I1),
        ("isnan", [BF16], I1),
        ("isnan", [I64], None),
        ("and", [I1, I1], I1),
        ("and", [F32, F32], None),
        ("shl", [I64, I64], I64),
        ("shl", [I1, I1], None),
        ("select", [I1, F32, F32], F32),
        ("select", [F32, F32, F32], None),
        ("select", [I1, F32, F64], None),
    ],
)
def test_result_dtypes(name: str, types: list[DType], result: DType | None) -> None:
    assert SCALARS[name].result(types) == result


def test_integers_divide_without_passing_through_doubles() -> None:
    big = np.array([2**62 + 1, -(2**62) - 1], np.int64)
    np.testing.assert_array_equal(SCALARS["div"].numpy(big, np.array([1, 1])), big)
    np.testing.assert_array_equal(SCALARS["div"].numpy(np.array([-7, 7, -7]), np.array([2, -2, -2])), [-3, -3, 3])


@pytest.mark.parametrize("function", SCALARS.values(), ids=lambda f: f.name)
def test_empty_arrays_stay_empty(function: ScalarFunction) -> None:
    dtype = next(t for t in DTYPES.values() if function.rule == "select" or function.result([t] * function.arity))
    types = [I1, dtype, dtype] if function.rule == "select" else [dtype] * function.arity
    assert function.numpy(*(np.zeros((0, 3), t.numpy()) for t in types)).shape == (0, 3)
    shapes = function.torch(*(torch.zeros(0, 3, dtype=getattr(torch, torch_name(t))) for t in types)).shape
    assert tuple(shapes) == (0, 3)


def test_every_function_says_what_it_does_and_what_it_costs() -> None:
    for name, function in SCALARS.items():
        assert function.name == name
        assert function.doc
        assert function.flops >= 0
