"""Loading objects: addresses that work, libraries that live and die with their handles, and coded errors."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys

import numpy as np
import pytest

from tests.native_kernels import GENERIC
from tilewright.backends.host.mlir import TARGETS, compile_object
from tilewright.errors import ToolchainError
from tilewright.runtime import native


def adder(name: str, amount: int) -> str:
    return f"""
    llvm.func @{name}(%x: i64) -> i64 {{
      %c = arith.constant {amount} : i64
      %y = arith.addi %x, %c : i64
      llvm.return %y : i64
    }}"""


def call(address: int, x: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(x))


def test_several_objects_link_together_and_libraries_do_not_clash() -> None:
    one, two, other = (compile_object(adder(name, n), GENERIC) for name, n in (("a", 1), ("b", 20), ("a", 300)))
    first, second = native.load([one, two], ["a", "b"]), native.load([other], ["a"])
    assert [call(first["a"], 5), call(first["b"], 5), call(second["a"], 5)] == [6, 25, 305]


def test_an_object_may_call_another_one_and_libc() -> None:
    caller = """
    llvm.func @callee(i64) -> i64
    llvm.func @labs(i64) -> i64
    llvm.func @f(%x: i64) -> i64 {
      %y = llvm.call @callee(%x) : (i64) -> i64
      %z = llvm.call @labs(%y) : (i64) -> i64
      llvm.return %z : i64
    }"""
    library = native.load([compile_object(caller, GENERIC), compile_object(adder("callee", -50), GENERIC)], ["f"])
    assert call(library["f"], 8) == 42


def test_constants_beside_the_code_are_reached() -> None:
    text = """
    llvm.func @f(%p: !llvm.ptr) {
      %c = arith.constant dense<[0.1, -2.5, 3.0e30, 4.0, 5.0, 6.0, 7.0, 8.25]> : vector<8xf32>
      llvm.store %c, %p {alignment = 4 : i64} : vector<8xf32>, !llvm.ptr
      llvm.return
    }"""
    library = native.load([compile_object(text, GENERIC)], ["f"])
    out = np.zeros(8, np.float32)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(library["f"])(out.ctypes.data)
    np.testing.assert_array_equal(out, np.array([0.1, -2.5, 3e30, 4, 5, 6, 7, 8.25], np.float32))


def executable(address: int) -> bool:
    """Whether there is code at the address."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, flags = line.split()[:2]
            low, high = (int(end, 16) for end in span.split("-"))
            if low <= address < high:
                return "x" in flags
    return False


def test_code_is_unmapped_when_its_handle_is_gone_and_stays_when_pinned() -> None:
    code = compile_object(adder("a", 7), GENERIC)
    dropped, kept, pinned = (native.load([code], ["a"]) for _ in range(3))
    addresses = [library["a"] for library in (dropped, kept, pinned)]
    assert [executable(address) for address in addresses] == [True, True, True]
    pinned.pin()
    del dropped, pinned
    gc.collect()
    assert [executable(address) for address in addresses] == [False, True, True]
    assert call(kept["a"], 1) == call(addresses[2], 1) == 8


def test_what_cannot_be_linked_is_a_coded_error_that_says_why() -> None:
    good = compile_object(adder("a", 1), GENERIC)
    foreign = compile_object(adder("a", 1), TARGETS["aarch64"])
    for objects, symbols, reason in (
        ([b""], ["a"], "it is not ELF"),
        ([b"#!/bin/sh\n" * 9], ["a"], "it is not ELF"),
        ([foreign], ["a"], "ELF machine 183"),
        ([good[: len(good) // 2]], ["a"], "does not link"),
        ([good, good], ["a"], "duplicate definition of symbol 'a'"),
        ([good], ["a", "absent"], "Symbols not found: [ absent ]"),
        ([], ["a"], "Symbols not found: [ a ]"),
    ):
        with pytest.raises(ToolchainError) as caught:
            native.load(objects, symbols)
        assert reason in str(caught.value)
        assert "next: compile it again" in str(caught.value)
    library = native.load([good], ["a"])
    assert call(library["a"], 1) == 2, "an error leaves the JIT usable"


def test_cpu_features_are_those_of_this_host() -> None:
    features = native.cpu_features()
    with open("/proc/cpuinfo") as info:
        flags = next(set(line.split()) for line in info if line.startswith(("flags", "Features")))
    for name in ("sse2", "avx2", "fma", "avx512f", "avx512bw"):
        assert (name in features) == (name in flags)


def test_loading_needs_neither_mlir_nor_torch() -> None:
    code = compile_object(adder("a", 2), GENERIC)
    script = f"""
import ctypes, sys
from tilewright.runtime import native
library = native.load([bytes.fromhex({code.hex()!r})], ["a"])
assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(library["a"])(3) == 5
assert native.cpu_features()
assert not {{"torch", "torch_mlir", "xdsl"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
