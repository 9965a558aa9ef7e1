"""MLIR text to objects: right code for each class, the same bytes anywhere, coded errors for what does not compile."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.native_kernels import GENERIC, RECORD, RELAY
from tilewright.backends.host.driver import driver_text
from tilewright.backends.host.mlir import TARGETS, CpuTarget, compile_assembly, compile_object, kernel_name
from tilewright.errors import ToolchainError
from tilewright.runtime import native

ROOT = Path(__file__).parents[3]

# out = x * w + x over 16 lanes, and its bf16 rounding: every class has its own instructions for these.
LANES = """
func.func @lanes(%buffers: !llvm.ptr, %dims: !llvm.ptr, %tid: i64, %threads: i64) {
  %x_from = llvm.load %buffers : !llvm.ptr -> !llvm.ptr
  %y_at = llvm.getelementptr %buffers[1] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr
  %y_to = llvm.load %y_at : !llvm.ptr -> !llvm.ptr
  %z_at = llvm.getelementptr %buffers[2] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr
  %z_to = llvm.load %z_at : !llvm.ptr -> !llvm.ptr
  %x = llvm.load %x_from {alignment = 4 : i64} : !llvm.ptr -> vector<16xf32>
  %w = arith.constant dense<0.3> : vector<16xf32>
  %y = math.fma %x, %w, %x : vector<16xf32>
  llvm.store %y, %y_to {alignment = 4 : i64} : vector<16xf32>, !llvm.ptr
  %z = arith.truncf %x : vector<16xf32> to vector<16xbf16>
  llvm.store %z, %z_to {alignment = 2 : i64} : vector<16xbf16>, !llvm.ptr
  return
}
"""
BF16_DOT = """
llvm.func @dot(%a: vector<16xf32>, %b: vector<32xbf16>) -> vector<16xf32> {
  %r = llvm.call_intrinsic "llvm.x86.avx512bf16.dpbf16ps.512"(%a, %b, %b)
      : (vector<16xf32>, vector<32xbf16>, vector<32xbf16>) -> vector<16xf32>
  llvm.return %r : vector<16xf32>
}
"""
HERE = [target for target in TARGETS.values() if target.triple.startswith(os.uname().machine)]
RUNNABLE = [target for target in HERE if native.cpu_features() >= set(target.features)]


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
def test_every_class_this_machine_can_run_computes_the_same_right_bits(target: CpuTarget) -> None:
    library = native.load([compile_object(LANES, target)], ["lanes"])
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(library["lanes"])
    rng = np.random.default_rng()
    for _ in range(20):
        # All magnitudes, denormals too, half of them just at a tie between two bf16.
        x = rng.integers(0, 1 << 32, 16, dtype=np.uint32)
        x[::2] = x[::2] & 0xFFFF0000 | 0x8000
        x[x & 0x7F800000 == 0x7F800000] = 0
        x[3], x[5] = 0x7FC00000, 0xFF800000
        y, z = np.zeros(16, np.float32), np.zeros(16, np.uint16)
        buffers = np.array([x.ctypes.data, y.ctypes.data, z.ctypes.data], np.int64)
        kernel(buffers.ctypes.data, None, 0, 1)
        wide = x.view(np.float32).astype(np.longdouble)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (wide * np.float32(0.3).astype(np.longdouble) + wide).astype(np.float32)
        np.testing.assert_array_equal(y, expected)
        exact = x.astype(np.uint64)
        rounded = ((exact + 0x7FFF + (exact >> 16 & 1)) >> 16).astype(np.uint16)
        rounded[3] = 0x7FC0
        np.testing.assert_array_equal(z, rounded)


def test_each_class_uses_its_own_registers_and_instructions_only() -> None:
    assembly = {name: compile_assembly(LANES, target) for name, target in TARGETS.items()}
    assert "ymm" not in assembly["generic"]
    assert "vfmadd" not in assembly["generic"]
    assert "ymm" in assembly["avx2"]
    assert "vfmadd" in assembly["avx2"]
    assert "zmm" not in assembly["avx2"]
    assert "%k1" not in assembly["avx2"]
    assert "zmm" in assembly["avx512"]
    assert "zmm" in assembly["avx512-bf16"]
    assert "fmla" in assembly["aarch64"]
    assert "vdpbf16ps" in compile_assembly(BF16_DOT, TARGETS["avx512-bf16"])


def test_a_classs_features_are_those_its_processor_name_stands_for() -> None:
    # Without them by name the code is the same, so a host that has `features` can run it.
    for name in ("generic", "avx2", "avx512"):
        target = TARGETS[name]
        for text in (LANES, RELAY, driver_text(GENERIC)):
            assert compile_object(text, CpuTarget(name, target.cpu, ())) == compile_object(text, target)
    assert set(TARGETS["avx2"].features) < set(TARGETS["avx512"].features) < set(TARGETS["avx512-bf16"].features)


def digests() -> dict[str, str]:
    return {
        f"{name} {kernel_name(text)}": hashlib.sha256(compile_object(text, target)).hexdigest()
        for name, target in TARGETS.items()
        for text in (LANES, driver_text(target))
    }


def test_the_bytes_do_not_depend_on_process_directory_home_hash_seed_or_history(tmp_path: Path) -> None:
    here = digests()
    compile_object(RECORD, GENERIC)
    assert digests() == here
    script = "import json\nfrom tests.backends.host.test_mlir import digests\nprint(json.dumps(digests()))"
    for seed in ("1", "4711"):
        place = tmp_path / seed
        place.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "HOME": str(place), "TMPDIR": str(place)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=place, env=environment, check=True, capture_output=True, timeout=120
        )
        assert json.loads(done.stdout) == here
        assert not list(place.iterdir()), "nothing is left behind"


def test_an_object_holds_one_copy_of_the_code_and_no_unwind_tables() -> None:
    code = compile_object(LANES, TARGETS["avx2"])
    assert code.count(b"lanes") == 1
    assert b"eh_frame" not in code
    assert b"_mlir_" not in code


def test_scalar_loops_are_not_vectorised_behind_the_kernels_back() -> None:
    assembly = compile_assembly(RELAY, TARGETS["avx512"])
    assert "mm0" not in assembly


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llvm.func @one() {\n  llvm.return\n}", "one"),
        (
            "llvm.func @declared(i64) -> i64\nllvm.func internal @two.b(%x: i64) -> i64 {\n  llvm.return %x : i64\n}",
            "two.b",
        ),
        ("func.func @three(%x: i64) attributes {a} {\n  return\n}", "three"),
        ("module {\n  func.func private @declared()\n  func.func @four() {\n    return\n  }\n}", "four"),
        ("nonsense", "<unnamed>"),
    ],
)
def test_a_kernel_is_called_by_the_first_function_that_its_text_defines(text: str, name: str) -> None:
    assert kernel_name(text) == name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "func.func @bad() {\n  %x = arith.addi %y, %y : i32\n  return\n}",
            ["kernel @bad", "use of undeclared SSA value name", "line 2: %x = arith.addi %y, %y : i32"],
        ),
        (
            "func.func @typed(%a: i64) {\n  %x = arith.addf %a, %a : i64\n  return\n}",
            ["kernel @typed", "must be floating-point-like", "line 2: %x = arith.addf %a, %a : i64"],
        ),
        (
            "func.func @left(%x: tensor<4xf32>) -> tensor<4xf32> {\n  return %x : tensor<4xf32>\n}",
            ["kernel @left", "these ops have no lowering to LLVM: func.func"],
        ),
        ("func.func @open() {", ["kernel @open", "line 1: func.func @open() {"]),
        ("what is this", ["kernel @<unnamed>", "line 1: what is this"]),
    ],
)
def test_text_that_does_not_compile_is_a_coded_error_with_kernel_diagnostic_and_line(
    text: str, parts: list[str]
) -> None:
    with pytest.raises(ToolchainError) as caught:
        compile_object(text, GENERIC)
    message = str(caught.value)
    assert message.startswith("TW033 toolchain failed: kernel @")
    for part in parts:
        assert part in message
    assert "report the kernel and the lines above" in message
    assert compile_object(RECORD, GENERIC), "the next one compiles"
