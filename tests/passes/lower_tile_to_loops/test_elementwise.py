"""Maps, casts, broadcasts and coordinates mean in loops what they mean to the tile interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.passes.lower_tile_to_loops.kernels import on_tiles
from tests.passes.lower_tile_to_loops.running import check, check_counts, inputs, machine
from tilewright.errors import LoweringError
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, I8, I16, I32, I64, U8, DType
from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_tile_to_loops import lower_kernel

TRANSCENDENTAL = {
    "exp", "exp2", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh",
    "softplus",
    "pow", "rsqrt", "atan2",
}  # fmt: skip


def map_kernel(fn: str, dtype: DType, shape: tuple[int, ...] = (3, 21)) -> KernelOp | None:
    arity = SCALARS[fn].arity
    dtypes = [I1, dtype, dtype] if fn == "select" else [dtype] * arity
    result = SCALARS[fn].result(dtypes)
    if result is None:
        return None
    return on_tiles([(shape, d) for d in dtypes], [(shape, result)], lambda b, *args: [b.map(fn, *args)])


@pytest.mark.parametrize("fn", SCALARS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, I32, I1], ids=str)
def test_every_function_of_the_scalar_table(fn: str, dtype: DType, rng: np.random.Generator) -> None:
    kernel = map_kernel(fn, dtype)
    if kernel is None:
        return
    given = inputs(kernel, {"n": 2}, rng)
    if dtype.is_float and fn not in ("floordiv", "remainder", "pow"):
        given[-1][:4] = np.array([np.inf, -np.inf, np.nan, -0.0]).astype(dtype.numpy())
    if fn in ("div", "floordiv", "remainder") and dtype.is_integer:
        given[1][given[1] == 0] = 3
    coarse = fn == "exp2_coarse"
    if coarse and dtype.is_float:
        given[-1][np.isposinf(given[-1].astype(np.float32))] = 9  # it is for numbers up to 128
    exact = fn not in TRANSCENDENTAL and not coarse and dtype not in (BF16, F16)
    tolerance = 0.0 if exact else {F32: 2.0**-13 if coarse else 2e-6, BF16: 8e-3, F16: 1e-3}[dtype]
    check(kernel, {"n": 2}, rng, given=given, tolerance=tolerance, classes=["avx512"], compiled=dtype is F32)


@pytest.mark.parametrize("dtype", [I8, I16, I64, U8, F64], ids=str)
@pytest.mark.parametrize("fn", ["add", "div", "floordiv", "remainder", "max", "neg", "sign", "relu", "lt", "select"])
def test_arithmetic_in_the_other_dtypes(fn: str, dtype: DType, rng: np.random.Generator) -> None:
    kernel = map_kernel(fn, dtype)
    assert kernel is not None
    given = inputs(kernel, {"n": 2}, rng)
    if dtype.is_integer and fn in ("div", "floordiv", "remainder"):
        given[1][given[1] == 0] = 7
    check(kernel, {"n": 2}, rng, given=given, tolerance=1e-15 if dtype is F64 else 0.0, classes=["avx512"])


@pytest.mark.parametrize("dtype", [I8, U8, I16, I32, I64], ids=str)
@pytest.mark.parametrize("fn", ["shl", "shr"])
@pytest.mark.parametrize("lanes", [1, 16])
def test_a_shift_by_any_amount_is_torchs(fn: str, dtype: DType, lanes: int, rng: np.random.Generator) -> None:
    kernel = map_kernel(fn, dtype, (lanes,))
    assert kernel is not None
    kind, least = dtype.numpy(), 0 if dtype == U8 else -dtype.bits - 1
    amounts = np.array([*range(least, dtype.bits + 2), 100, np.iinfo(kind).max, np.iinfo(kind).min]).astype(kind)
    amounts = np.resize(amounts, -(-amounts.size // 16) * 16)
    values = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, amounts.size, kind, endpoint=True)
    operator = torch.bitwise_left_shift if fn == "shl" else torch.bitwise_right_shift
    wanted = operator(torch.from_numpy(values), torch.from_numpy(amounts)).numpy()
    (got,) = check(kernel, {"n": amounts.size // lanes}, rng, given=[values, amounts], classes=["avx512"])
    np.testing.assert_array_equal(got.reshape(-1), wanted)


def test_integer_division_never_faults(rng: np.random.Generator) -> None:
    kernel = map_kernel("div", I32, (16,))
    assert kernel is not None
    least = np.iinfo(np.int32).min
    lowered = [np.array([least, 5, least, -7] * 4, np.int32), np.array([-1, 0, 1, 2] * 4, np.int32)]
    from tests.passes.lower_tile_to_loops.running import native
    from tilewright.backends.cpu.machines import host_class

    (got,) = native(kernel, lowered, {"n": 1}, host_class())
    assert got.tolist() == [least, 0, least, -3] * 4


def test_a_function_without_an_expansion_is_named(rng: np.random.Generator) -> None:
    kernel = map_kernel("exp", F64)
    assert kernel is not None
    with pytest.raises(LoweringError, match=r"tile\.map in @on_tiles: exp has no expansion for f64"):
        lower_kernel(kernel, machine("avx512"))


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 20), (5, 1), (1, 300)])
@pytest.mark.parametrize("sizes", [(5, 70), (1, 1), (7, 64), (0, 3), (2, 301)])
def test_tiles_clip_to_their_buffers(rows: int, columns: int, sizes: tuple[int, int], rng: np.random.Generator) -> None:
    b = KernelBuilder("clipped", ["n", "m"])
    x, w, y = b.buffer(["n", "m"], F32), b.buffer(["m"], F32), b.output(["n", "m"], F32)
    i, j = b.grid(["n", "m"], [rows, columns])
    row = b.reshape(b.load(b.dense(w), [j], [columns]), [1, columns])
    value = b.map("add", b.map("mul", b.load(b.dense(x), [i, j], [rows, columns]), b.constant(2.0, (1, 1))), row)
    b.store(value, b.dense(y), [i, j])
    kernel = b.finish()
    dims = dict(zip(("n", "m"), sizes, strict=True))
    check(kernel, dims, rng, classes=["avx512", "generic"], compiled=sizes == (5, 70))
    check_counts(kernel, dims, inputs(kernel, dims, rng))


def test_coordinates_and_splats_are_absolute(rng: np.random.Generator) -> None:
    b = KernelBuilder("coordinates", ["n"])
    y = b.output(["n", 20], I32)
    i, j = b.grid(["n", 20], [3, 16])
    place = b.map("add", b.map("mul", b.coordinates(i, 0, (3, 1)), b.splat("n", (1, 1))), b.coordinates(j, 1, (1, 16)))
    b.store(place, b.dense(y), [i, j])
    (got,) = check(b.finish(), {"n": 7}, rng)
    assert got.reshape(7, 20)[6, 19] == 6 * 7 + 19


def test_a_value_read_twice_after_a_store_to_its_buffer_keeps_its_old_elements(rng: np.random.Generator) -> None:
    b = KernelBuilder("old_and_new", [])
    x, y, z = b.buffer([40], F32), b.output([40], F32), b.output([40], F32)
    b.grid([1], [1])
    b.store(b.load(b.dense(x), [0], [40]), b.dense(y), [0])
    before = b.load(b.dense(y), [0], [20])
    after = b.map("mul", before, b.constant(3.0, (1,)))
    b.store(b.concat([before, after], 0), b.dense(z), [0])
    check(b.finish(), {}, rng)
