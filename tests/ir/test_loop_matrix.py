"""Matrix registers: what the ops mean, what is refused, and that this machine's unit has the interpreter's bits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tilewright.backends.clike import CLike
from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.cpu.printer import print_kernel
from tilewright.errors import IRError, LoweringError
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.loops import LoopBuilder, LoopKernel, MatrixRegister
from tilewright.ir.loops.elementwise import narrow_bf16, widen_bf16
from tilewright.ir.loops_interpreter import run_kernel

UNIT = "avx512-amx"
ROWS, DEPTH, COLUMNS, STEPS = 7, 32, 16, 3


def registers(rows: int = ROWS) -> tuple[MatrixRegister, ...]:
    left, right = MatrixRegister(BF16, rows, DEPTH), MatrixRegister(BF16, DEPTH // 2, 2 * COLUMNS)
    return MatrixRegister(F32, rows, COLUMNS), left, right


def product() -> LoopKernel:
    """out = start + left right, left [ROWS, STEPS * DEPTH] in rows, right [STEPS * DEPTH / 2, COLUMNS, 2] in pairs."""
    b = LoopBuilder("product")
    left, right, start = b.buffer("left", BF16), b.buffer("right", BF16), b.buffer("start", F32)
    out = b.buffer("out", F32, writable=True)
    b.matrix = registers()
    b.matrix_load(0, start, 0, COLUMNS)
    with b.loop(0, STEPS) as k:
        b.matrix_load(1, left, b.mul(k.index, DEPTH), STEPS * DEPTH)
        b.matrix_load(2, right, b.mul(k.index, DEPTH * COLUMNS), 2 * COLUMNS)
        b.matrix_dot(0, 1, 2)
    b.matrix_store(0, out, 0, COLUMNS)
    return b.finish()


KINDS = ["plain", "far apart", "near underflow", "near overflow", "subnormal", "any bits"]


def factors(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """bf16 bits of the kind."""
    normal = rng.standard_normal(size).astype(np.float32)
    low, high = {
        "plain": (0, 1), "far apart": (-20, 20), "near underflow": (-75, -55), "near overflow": (55, 70),
        "subnormal": (-126, 0), "any bits": (0, 1),
    }[kind]  # fmt: skip
    bits = narrow_bf16(normal * np.float32(2.0) ** rng.integers(low, high, size).astype(np.float32))
    if kind == "subnormal":
        return np.where(rng.random(size) < 0.3, rng.integers(0, 128, size), bits).astype(np.uint16)
    if kind == "any bits":
        return np.where(rng.random(size) < 0.002, rng.integers(0, 65536, size), bits).astype(np.uint16)
    return bits


def given(kind: str, rng: np.random.Generator) -> list[np.ndarray]:
    left, right = (factors(kind, n * STEPS * DEPTH, rng) for n in (ROWS, COLUMNS))
    return [left, right, rng.standard_normal(ROWS * COLUMNS).astype(np.float32)]


def interpreted(arrays: list[np.ndarray]) -> np.ndarray:
    out = np.zeros(ROWS * COLUMNS, np.float32)
    run_kernel(product(), [*arrays, out])
    return out


def test_a_product_is_the_sum_over_pairs(rng: np.random.Generator) -> None:
    arrays = given("plain", rng)
    left, right = (widen_bf16(a).astype(np.float64) for a in arrays[:2])
    matrix = right.reshape(-1, COLUMNS, 2).transpose(0, 2, 1).reshape(-1, COLUMNS)
    wanted = arrays[2].reshape(ROWS, COLUMNS) + left.reshape(ROWS, -1) @ matrix
    assert np.abs(interpreted(arrays).reshape(ROWS, COLUMNS) - wanted).max() < 96 * 4 * 2**-23 * 8


@pytest.mark.skipif(UNIT not in host_classes(), reason="this machine has no matrix unit, or does not lend it")
@pytest.mark.parametrize("kind", KINDS)
def test_the_machine_has_the_interpreter_s_bits(kind: str, rng: np.random.Generator) -> None:
    arrays = given(kind, rng)
    got, wanted = np.zeros(ROWS * COLUMNS, np.float32), interpreted(arrays)
    NativeKernel(product(), UNIT)([*arrays, got])
    both = np.isnan(got) & np.isnan(wanted)
    assert np.array_equal(got.view(np.uint32)[~both], wanted.view(np.uint32)[~both])


def test_text_names_registers_and_shapes() -> None:
    text = str(product())
    for line in ("matrix 1: bf16[7, 32]", "matrix 0 += 1 * 2", "out[0, 16] = matrix 0"):
        assert line in text


def test_what_is_no_product_is_refused() -> None:
    b = LoopBuilder("wrong")
    x = b.buffer("x", F32)
    b.matrix = (MatrixRegister(F32, 8, COLUMNS), *registers()[1:])
    b.matrix_load(1, x, 0, 1)
    b.matrix_store(0, x, 0, 1)
    b.matrix_dot(0, 1, 2)
    b.matrix_zero(3)
    with pytest.raises(IRError) as caught:
        b.finish()
    told = str(caught.value)
    for fault in (
        "register 1 holds bf16, the memory f32",
        "read-only",
        "are no product",
        "declares no matrix register 3",
    ):
        assert fault in told


def test_registers_outside_memory_are_found() -> None:
    b = LoopBuilder("outside")
    x = b.buffer("x", BF16)
    b.matrix = registers()
    b.matrix_load(1, x, 0, DEPTH + 1)
    with pytest.raises(IRError, match="loads element 224 of x"):
        run_kernel(b.finish(), [np.zeros(ROWS * DEPTH, np.uint16)])


def test_machines_without_registers_refuse_them() -> None:
    with pytest.raises(LoweringError, match="avx512-bf16 does not have"):
        print_kernel(product(), CPU_CLASSES["avx512-bf16"])
    with pytest.raises(LoweringError, match="which C does not have"):
        CLike(product()).source()
