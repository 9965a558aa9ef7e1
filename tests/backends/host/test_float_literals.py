"""Float constants reach the object bit for bit, however the newer LLVM spells them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native_kernels import GENERIC
from tilewright.backends.host.float_literals import portable_floats
from tilewright.backends.host.mlir import compile_object
from tilewright.runtime import native

BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16}
SPECIAL = {
    "f64": [0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF0000000000001, 0xFFF8DEAD0000BEEF, 1],
    "f32": [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFC01234, 0x00000001, 0x80000000, 0x3DCCCCCD, 0x7F7FFFFF],
    "f16": [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFE12, 0x0001, 0x8000, 0x2E66, 0x7BFF],
    "bf16": [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFC1, 0x0001, 0x8000, 0x3DCD, 0x7F7F],
}


def stored(dtype: str, patterns: list[int]) -> list[int]:
    """What a kernel whose constants have these bits writes."""
    width = BITS[dtype] // 4
    lines = ["llvm.func @k(%out: !llvm.ptr) {"]
    for i, pattern in enumerate(patterns):
        lines += [
            f"  %c{i} = llvm.mlir.constant(0x{pattern:0{width}X} : {dtype}) : {dtype}",
            f"  %p{i} = llvm.getelementptr %out[{i}] : (!llvm.ptr) -> !llvm.ptr, {dtype}",
            f"  llvm.store %c{i}, %p{i} : {dtype}, !llvm.ptr",
        ]
    library = native.load([compile_object("\n".join([*lines, "  llvm.return", "}"]), GENERIC)], ["k"])
    out = np.zeros(len(patterns), f"u{BITS[dtype] // 8}")
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(library["k"])(out.ctypes.data)
    return out.tolist()


@pytest.mark.parametrize("dtype", BITS)
def test_zeros_infinities_nans_and_the_smallest_keep_their_bits(dtype: str) -> None:
    assert stored(dtype, SPECIAL[dtype]) == SPECIAL[dtype]


@pytest.mark.parametrize("dtype", BITS)
@settings(max_examples=8)
@given(data=st.data())
def test_any_bits_are_kept(dtype: str, data: st.DataObject) -> None:
    patterns = data.draw(st.lists(st.integers(0, (1 << BITS[dtype]) - 1), min_size=1, max_size=60))
    assert stored(dtype, patterns) == patterns


@pytest.mark.parametrize("dtype", BITS)
def test_short_decimals_are_kept(dtype: str) -> None:
    # These are what the newer LLVM prints as decimals that only rounding makes right.
    values = np.round(np.random.default_rng().uniform(-100, 100, 50), 3)
    if dtype == "bf16":
        patterns = (values.astype(np.float32).view(np.uint32) >> 16).tolist()
    else:
        patterns = (
            values.astype(dtype.replace("f", "f")[:1] + str(BITS[dtype] // 8)).view(f"u{BITS[dtype] // 8}").tolist()
        )
    assert stored(dtype, patterns) == patterns


@pytest.mark.parametrize(
    ("line", "respelt"),
    [
        ("%1 = fmul float %0, 9.990000e-01", "%1 = fmul float %0, 0x3FEFF7CEE0000000"),
        ("ret <4 x float> splat (float f0x4B800000)", "ret <4 x float> splat (float 0x4170000000000000)"),
        (
            "%2 = phi double [ 1.000000e-01, %3 ], [ -inf, %4 ]",
            "%2 = phi double [ 0x3FB999999999999A, %3 ], [ 0xFFF0000000000000, %4 ]",
        ),
        (
            "%7 = select i1 %6, half 1.000000e+00, half -0.000000e+00",
            "%7 = select i1 %6, half 0xH3C00, half 0xH8000",
        ),
        ("store bfloat +qnan, ptr %1, align 2", "store bfloat 0xR7FC0, ptr %1, align 2"),
        (
            "%5 = call double @g(float 1.500000e+00, double 2.500000e-01)",
            "%5 = call double @g(float 0x3FF8000000000000, double 0x3FD0000000000000)",
        ),
        ("%5 = fpext float +snan(0x1) to double", "%5 = fpext float 0x7FF0000020000000 to double"),
        # Names, labels and text that look like types or numbers.
        ("define void @float.1.5e0(ptr %double) #0 {", "define void @float.1.5e0(ptr %double) #0 {"),
        ('source_filename = "float 1.5"', 'source_filename = "float 1.5"'),
        ("%float.2.5 = fadd half %half.1.0, %3.0 ; half 1.0", "%float.2.5 = fadd half %half.1.0, %3.0 ; half 1.0"),
        ("%1 = add i32 %0, 15", "%1 = add i32 %0, 15"),
    ],
)
def test_only_constants_are_respelt_each_in_its_own_type(line: str, respelt: str) -> None:
    assert portable_floats(line) == respelt
    assert portable_floats(respelt) == respelt


def test_constants_in_arrays_and_vectors_are_kept() -> None:
    text = """
    llvm.mlir.global internal constant @table(dense<[0.1, 0x7FC00001, -3.4e38, 16777216.0]> : tensor<4xf32>)
      : !llvm.array<4 x f32>
    llvm.func @k(%out: !llvm.ptr) {
      %table = llvm.mlir.addressof @table : !llvm.ptr
      %a = llvm.load %table {alignment = 4 : i64} : !llvm.ptr -> vector<4xf32>
      %b = arith.constant dense<[0.2, 0xFF800000, 1.0e-40, 33554433.0]> : vector<4xf32>
      llvm.store %a, %out {alignment = 4 : i64} : vector<4xf32>, !llvm.ptr
      %at = llvm.getelementptr %out[4] : (!llvm.ptr) -> !llvm.ptr, f32
      llvm.store %b, %at {alignment = 4 : i64} : vector<4xf32>, !llvm.ptr
      llvm.return
    }"""
    library = native.load([compile_object(text, GENERIC)], ["k"])
    out = np.zeros(8, np.uint32)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(library["k"])(out.ctypes.data)
    plain = np.array([0.1, 0, -3.4e38, 16777216.0, 0.2, -np.inf, 1e-40, 33554433.0], np.float32).view(np.uint32)
    plain[1] = 0x7FC00001
    np.testing.assert_array_equal(out, plain)
