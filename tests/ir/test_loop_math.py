"""The expansions are as accurate as their docstring says, on every class this machine runs, over the whole range."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel
from tests.backends.cpu.op_cases import DISTINCT
from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.errors import IRError
from tilewright.ir.dtypes import F32, F64, DType
from tilewright.ir.loop_math import MATH, fmod
from tilewright.ir.loops import LoopBuilder
from tilewright.ir.loops_interpreter import run_kernel

INF, NAN = math.inf, math.nan
Reference = Callable[..., np.ndarray]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))
    return np.where(x < 0, z, 1) / (1 + z)


REFERENCES: dict[str, Reference] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "exp2_coarse": lambda x: np.where(x < -126, 0.0, np.exp2(x)),
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * _erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
BOUNDS = {
    "exp": 1.5, "exp2": 1.5, "exp2_coarse": 1750.0,
    "expm1": 1.75, "log": 1.0, "log1p": 1.75, "sin": 2.25, "cos": 2.25, "tanh": 2.75,
    "erf": 1.5, "sigmoid": 2.5, "silu": 3.5, "gelu": 3.25, "gelu_tanh": 4.0, "softplus": 2.0, "pow": 1.25, "rsqrt": 1.5,
    "atan2": 2.0,
}  # fmt: skip
# At these arguments the value or its sign is fixed by definition.
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (-0.0, 1.0), (89.0, INF), (-104.5, 0.0), (1e38, INF), (-1e38, 0.0)],
    "exp2": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (10.0, 1024.0), (128.0, INF), (-149.0, 2.0**-149), (-151.0, 0.0)],
    "exp2_coarse": [(-INF, 0.0), (0.0, 1.0), (-0.0, 1.0), (-3.0, 0.125), (-126.5, 0.0), (-1e38, 0.0), (NAN, NAN)],
    "expm1": [(-INF, -1.0), (INF, INF), (0.0, 0.0), (-0.0, -0.0), (-100.0, -1.0), (1e-40, 1e-40)],
    "log": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN), (-INF, NAN), (1.0, 0.0), (-1e-45, NAN)],
    "log1p": [(-1.0, -INF), (INF, INF), (-1.5, NAN), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0), (1e-40, 1e-40)],
    "sin": [(INF, NAN), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0)],
    "cos": [(INF, NAN), (-INF, NAN), (0.0, 1.0), (-0.0, 1.0)],
    "tanh": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (50.0, 1.0), (-50.0, -1.0), (1e-40, 1e-40)],
    "erf": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (5.0, 1.0), (-5.0, -1.0)],
    "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (-0.0, 0.5), (200.0, 1.0), (-200.0, 0.0)],
    "silu": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0), (-1e30, -0.0)],
    "gelu": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0), (-1e30, -0.0), (100.0, 100.0)],
    "gelu_tanh": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0), (-1e3, -0.0), (100.0, 100.0)],
    "softplus": [(INF, INF), (-INF, 0.0), (-200.0, 0.0), (100.0, 100.0)],
    "rsqrt": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-1.0, NAN), (-INF, NAN), (4.0, 0.5)],
}
TWO_ARGUMENTS = ("atan2", "pow")
ONE_ARGUMENT = sorted(set(MATH) - {*TWO_ARGUMENTS})


def applied(name: str, cpu: str, *arguments: np.ndarray) -> np.ndarray:
    """The function's expansion, run natively over arrays of any length with the class's full vectors."""
    lanes = CPU_CLASSES[cpu].lanes
    b = LoopBuilder("apply")
    inputs = [b.buffer(f"x{n}", F32) for n in range(len(arguments))]
    out, n = b.buffer("out", F32, writable=True), b.dim("n")
    with b.loop(0, n, lanes) as loop:
        tail = b.tail_mask(b.sub(n, loop.index), lanes)
        values = [b.load(x, loop.index, lanes, mask=tail) for x in inputs]
        b.store(MATH[name](b, *values), out, loop.index, mask=tail)
    result = np.zeros_like(arguments[0])
    NativeKernel(b.finish(), cpu)([*arguments, result], [len(result)])
    return result


def samples(rng: np.random.Generator, count: int) -> np.ndarray:
    """Any bit pattern, and dense values where functions bend."""
    patterns = rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ranges = [rng.uniform(-r, r, count) for r in (1e-3, 2.0, 11.0, 110.0, 1e5, 1e8)]
    return np.concatenate([patterns, *(r.astype(np.float32) for r in ranges)])


def errors(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of f32 at `wanted`; infinite where NaN or infinity stand on one side only."""
    with np.errstate(all="ignore"):
        rounded = wanted.astype(np.float32)
        same = (np.isnan(got) == np.isnan(rounded)) & (np.isinf(got) == np.isinf(rounded))
        unit = np.maximum(np.spacing(np.abs(rounded)).astype(np.float64), 2.0**-149)
        distance = np.abs(got.astype(np.float64) - wanted) / unit
    return np.where(same, np.where(np.isfinite(rounded), distance, 0), INF)


@pytest.mark.parametrize("cpu", DISTINCT)
@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_error_stays_within_the_documented_bound(name: str, cpu: str, rng: np.random.Generator) -> None:
    x = samples(rng, 30011)
    if name in ("sin", "cos"):
        x = x[~(np.abs(x) > 1e8)]
    if name == "silu":
        x = x[~(x < -87)]
    if name == "exp2_coarse":
        x = x[~(x > 127)]
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        wanted = np.asarray(REFERENCES[name](wide))
    got = applied(name, cpu, x)
    error = errors(got, wanted)
    if name.startswith("gelu"):
        small = (x < -1) & np.isfinite(x)
        assert (np.abs(got - wanted)[small] <= 5e-8 * np.abs(wide[small])).all()
        error = np.where(small, 0, error)
        error = np.where(x == -INF, 0, error)  # here torch's NaN is wanted, not the limit; SPECIAL has it
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS[name], (
        f"{error[worst]:.2f} ulp at {x[worst]!r}: {got[worst]!r}, not {wanted[worst]!r}"
    )


@pytest.mark.parametrize("cpu", DISTINCT)
@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_special_values_are_exact_to_the_sign_of_zero(name: str, cpu: str) -> None:
    arguments, values = zip(*SPECIAL[name], (NAN, NAN), strict=True)
    got, wanted = applied(name, cpu, np.float32(arguments)), np.float32(values)
    np.testing.assert_array_equal(got, wanted)
    zero = wanted == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(wanted[zero]))


@pytest.mark.parametrize("cpu", DISTINCT)
def test_payloads_of_nan_never_become_numbers(cpu: str, rng: np.random.Generator) -> None:
    payload = rng.integers(1, 2**23, 1000).astype(np.uint32) | np.uint32(0x7F800000)
    x = (payload | (rng.integers(0, 2, 1000).astype(np.uint32) << np.uint32(31))).view(np.float32)
    for name in ONE_ARGUMENT:
        assert np.isnan(applied(name, cpu, x)).all(), name


@pytest.mark.parametrize("cpu", DISTINCT)
def test_sine_and_cosine_stay_bounded_for_any_finite_angle(cpu: str, rng: np.random.Generator) -> None:
    x = rng.uniform(1e8, 3.4e38, 5000).astype(np.float32)
    for name in ("sin", "cos"):
        assert (np.abs(applied(name, cpu, x)) <= 1).all()


@pytest.mark.parametrize("cpu", DISTINCT)
def test_pow_is_within_its_bound(cpu: str, rng: np.random.Generator) -> None:
    count = 50021
    base = np.exp(rng.uniform(-87, 87, count)).astype(np.float32)
    near_one = (1 + rng.uniform(-1e-3, 1e-3, count)).astype(np.float32)
    x = np.concatenate([base, near_one, -base])
    y = np.concatenate([rng.uniform(-3, 3, count), rng.uniform(-1e5, 1e5, count), rng.integers(-5, 6, count)]).astype(
        np.float32
    )
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.float64), y.astype(np.float64))
    error = errors(applied("pow", cpu, x, y), wanted)
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS["pow"], f"{error[worst]} ulp at {x[worst]!r}, {y[worst]!r}"


@pytest.mark.parametrize("cpu", DISTINCT)
def test_pow_agrees_with_c_on_every_pair_of_special_values(cpu: str) -> None:
    values = np.float32([0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 2.5, 1e30, -1e30, 16777216, INF, -INF, NAN, 1e-40])
    x, y = (a.ravel() for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    got = applied("pow", cpu, x, y)
    np.testing.assert_allclose(got, wanted, rtol=3e-7)
    number = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(wanted[number]))


@pytest.mark.parametrize("cpu", DISTINCT)
def test_angles_are_within_their_bound(cpu: str, rng: np.random.Generator) -> None:
    y, x = (rng.permutation(samples(rng, 20011)) for _ in range(2))
    near = (x * (1 + rng.uniform(-1e-6, 1e-6, len(x)))).astype(np.float32)
    y, x = np.concatenate([y, near, y]), np.concatenate([x, x, np.ones_like(x)])
    with np.errstate(all="ignore"):
        wanted = np.arctan2(y.astype(np.float64), x.astype(np.float64))
    got = applied("atan2", cpu, y, x)
    error = errors(got, wanted)
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS["atan2"], f"{error[worst]} ulp at {y[worst]!r}, {x[worst]!r}"


@pytest.mark.parametrize("cpu", DISTINCT)
def test_angles_agree_with_c_on_every_pair_of_special_values(cpu: str) -> None:
    values = np.float32([0, -0.0, 1, -1, 0.5, 1e30, -1e30, 3.4e38, INF, -INF, NAN, 1e-40, -1e-40])
    y, x = (a.ravel() for a in np.meshgrid(values, values))
    got, wanted = applied("atan2", cpu, y, x), np.arctan2(y, x)
    np.testing.assert_allclose(got, wanted, rtol=3e-7, atol=2e-45)
    number = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(wanted[number]))


@pytest.mark.parametrize("name", sorted(MATH))
def test_native_code_and_interpreter_agree_bit_for_bit(name: str, rng: np.random.Generator) -> None:
    b = LoopBuilder("same")
    arity = 2 if name in TWO_ARGUMENTS else 1
    inputs = [b.buffer(f"x{n}", F32) for n in range(arity)]
    out = b.buffer("out", F32, writable=True)
    count = 1024
    b.store(MATH[name](b, *[b.load(x, 0, count) for x in inputs]), out, 0)
    kernel = b.finish()
    arrays = [rng.permutation(samples(rng, count))[:count] for _ in inputs]
    if name == "exp2_coarse":
        arrays = [np.where(np.abs(x) > 127, np.float32(-np.inf), x) for x in arrays]
    wanted = np.zeros(count, np.float32)
    for cpu in DISTINCT:
        run_kernel(kernel, [*arrays, wanted], fused=CPU_CLASSES[cpu].fma)
        got = applied(name, cpu, *arrays)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
        number = ~np.isnan(wanted)
        np.testing.assert_array_equal(got[number].view(np.uint32), wanted[number].view(np.uint32))


def test_other_dtypes_are_refused_by_name() -> None:
    b = LoopBuilder("wide")
    with pytest.raises(IRError, match="exp is expanded for f32, not for f64x4"):
        MATH["exp"](b, b.const(1.0, F64, 4))


@pytest.mark.parametrize("cpu", DISTINCT)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_remainders_are_exact_for_any_quotient(cpu: str, dtype: DType, rng: np.random.Generator) -> None:
    kind, bits = (np.float32, np.int32) if dtype is F32 else (np.float64, np.int64)
    about = np.finfo(kind)
    special = np.array(
        [0, -0.0, 1, -1, 3.5, 7, -7, 1e9, INF, -INF, NAN, about.max, about.tiny, -about.smallest_subnormal], kind
    )
    pairs = np.array(np.meshgrid(special, special)).reshape(2, -1)
    drawn = rng.integers(np.iinfo(bits).min, np.iinfo(bits).max, (2, 3000), dtype=bits).view(kind)
    close = np.round(rng.normal(size=(2, 1000)) * [[1e6], [9]]).astype(kind)
    x, y = np.concatenate([pairs, drawn, close], axis=1)
    b = LoopBuilder("fmod")
    left, right, out = b.buffer("x", dtype), b.buffer("y", dtype), b.buffer("out", dtype, writable=True)
    with b.loop(0, b.dim("n"), 8) as loop:
        mask = b.tail_mask(b.sub(b.dim("n"), loop.index), 8)
        values = [b.load(v, loop.index, 8, mask=mask) for v in (left, right)]
        b.store(fmod(b, *values), out, loop.index, mask=mask)
    got = np.zeros_like(x)
    NativeKernel(b.finish(), cpu)([x, y, got], [len(x)])
    with np.errstate(all="ignore"):
        wanted = np.fmod(x, y)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got)[~np.isnan(wanted)], np.signbit(wanted)[~np.isnan(wanted)])
