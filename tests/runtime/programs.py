"""Small programs with real kernels: y = (x * p + bias) * scale + bias; @prepare computes p = scale * scale + bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.native_kernels import GENERIC, driver
from tilewright.backends.host.mlir import compile_object
from tilewright.ir.dims import Dim, Expr
from tilewright.ir.dtypes import F32, DType
from tilewright.ir.signature import Argument, Input, Output, Parameter, Signature
from tilewright.ir.trees import LEAF, Tree
from tilewright.runtime import native
from tilewright.runtime.executor import Executable
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program import KernelInfo, Program, Ref, Routine, Slot, Step, TensorSpec, Variant
from tilewright.runtime.threads import ThreadPool

B, T = Expr.of("batch"), Expr.of("tokens")
ONE = Expr.of(1)
DIMS = (Dim("batch", 0, 64), Dim("tokens", 0, 256))
SMALL = 16
"""Elements up to which the variant affine_small runs."""

# buffers: x [n], a [1], b [1], out [n]; dims: n. out = x * a + b, in f32, each thread its part.
_AFFINE = """
llvm.func @NAME(%buffers: !llvm.ptr, %dims: !llvm.ptr, %tid: i64, %threads: i64) {
  %one = arith.constant 1 : i64
  %x = llvm.load %buffers : !llvm.ptr -> !llvm.ptr
  %a_at = llvm.getelementptr %buffers[1] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr
  %a_of = llvm.load %a_at : !llvm.ptr -> !llvm.ptr
  %b_at = llvm.getelementptr %buffers[2] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr
  %b_of = llvm.load %b_at : !llvm.ptr -> !llvm.ptr
  %out_at = llvm.getelementptr %buffers[3] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr
  %out = llvm.load %out_at : !llvm.ptr -> !llvm.ptr
  %n = llvm.load %dims : !llvm.ptr -> i64
  %lo_n = arith.muli %n, %tid : i64
  %lo = arith.divsi %lo_n, %threads : i64
  %hi_n = arith.addi %lo_n, %n : i64
  %hi = arith.divsi %hi_n, %threads : i64
  %a = llvm.load %a_of : !llvm.ptr -> f32
  %b = llvm.load %b_of : !llvm.ptr -> f32
  scf.for %i = %lo to %hi step %one : i64 {
    %p = llvm.getelementptr %x[%i] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    %v = llvm.load %p : !llvm.ptr -> f32
    %va = arith.mulf %v, %a : f32
    %y = arith.addf %va, %b : f32
    %q = llvm.getelementptr %out[%i] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    llvm.store %y, %q : f32, !llvm.ptr
  }
  llvm.return
}
"""
SYMBOLS = ("affine", "affine_small")


@cache
def kernel_object(symbol: str) -> bytes:
    return compile_object(_AFFINE.replace("NAME", symbol), GENERIC)


@cache
def code() -> native.NativeLibrary:
    return native.load([kernel_object(symbol) for symbol in SYMBOLS], list(SYMBOLS))


@cache
def pool() -> ThreadPool:
    return ThreadPool(driver(), cores=2)


def affine_step(name: str, x: Ref, a: Ref, b: Ref, out: Ref, n: Expr) -> Step:
    return Step(
        name,
        variants=(Variant("affine_small", SMALL), Variant("affine")),
        buffers=(x, a, b, out),
        formal_dims=("n",),
        dims=(n,),
        guard=Expr.of("n"),
        kind="map",
        path="layer.0",
        location="model.py:12",
    )


def tensor_argument(name: str, dims: tuple[Expr, ...], dtype: DType = F32, *, mutated: bool = False) -> Argument:
    return Argument(name, LEAF, (Input(name, dtype, dims, mutated=mutated),))


def signature(*arguments: Argument, outputs: tuple[Output, ...], output: Tree = LEAF, **more: Any) -> Signature:
    return Signature(tuple(Parameter(a.name) for a in arguments), arguments, output, outputs, **more)


def affine_program(**changes: Any) -> Program:
    """The program of the module's docstring, over x f32 [batch, tokens]; weights scale and bias f32 [1]."""
    n = B * T
    scale, bias, packed = Ref("weight", 0), Ref("weight", 1), Ref("packed", 0)
    main = Routine(
        steps=(
            affine_step("first", Ref("input", 0), packed, bias, Ref("slot", 0), n),
            affine_step("second", Ref("slot", 0), scale, bias, Ref("output", 0), n),
        ),
        slots=(Slot((n * 4,)),),
    )
    program = Program(
        dims=DIMS,
        signature=signature(tensor_argument("x", (B, T)), outputs=(Output(F32, (B, T), index=0),)),
        main=main,
        results=(TensorSpec("y", (B, T), F32),),
        weights=(TensorSpec("scale", (ONE,), F32), TensorSpec("bias", (ONE,), F32)),
        packed=(TensorSpec("power", (ONE,), F32),),
        prepare=(Routine((affine_step("square", scale, scale, bias, packed, ONE),)),),
        kernels=tuple(KernelInfo(symbol, symbol, symbol) for symbol in SYMBOLS),
    )
    return replace(program, **changes)


def values(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Fresh weights."""
    return {name: rng.standard_normal(1, np.float32) for name in ("scale", "bias")}


def affine(x: NDArray[np.float32], weights: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """What the program computes, in the same order of roundings."""
    scale, bias = weights["scale"], weights["bias"]
    with np.errstate(invalid="ignore"):
        power = scale * scale + bias
        return (x * power + bias) * scale + bias


def executable(program: Program, weights: Mapping[str, Any], path: Path | None = None, **options: Any) -> Executable:
    held = prepare_weights(program, code(), pool(), weights, path)
    return Executable(program, code(), held, pool(), **options)


class Addresses:
    """Code made of Python functions: each takes (buffers, dims, tid, threads) as the kernel ABI has them."""

    def __init__(self, **kernels: Callable[[Any, Any, int, int], None]) -> None:
        import ctypes

        kind = ctypes.CFUNCTYPE(
            None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64), ctypes.c_int64, ctypes.c_int64
        )
        self._kept = {name: kind(function) for name, function in kernels.items()}
        self._addresses = {n: ctypes.cast(k, ctypes.c_void_p).value or 0 for n, k in self._kept.items()}

    def __getitem__(self, symbol: str) -> int:
        return self._addresses[symbol]


def memory(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """What a kernel's buffer pointer points at."""
    import ctypes

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
