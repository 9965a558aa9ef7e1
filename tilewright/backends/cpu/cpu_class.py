"""The classes of CPUs that kernels are printed for: what a printed kernel may assume, as data.

A class is all that decides code and cache keys; a measured machine never does. `mlir.TARGETS` says the same classes in
LLVM's words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class CpuClass:
    """What lowering (by way of the machine's tile rules) and printing may assume.

    lanes: f32 elements of a full vector. registers: architectural vector registers. fma: fused multiply-add. rounding:
    floor, ceil, trunc and round as instructions. half: f16 <-> f32 as instructions. scaling, narrowing: a * 2**b, and
    f32 -> bf16, of full vectors as instructions. matrix: tiles of 16 rows of 64 bytes, and tdpbf16ps.
    """

    name: str
    lanes: int
    registers: int
    fma: bool
    rounding: bool
    half: bool
    scaling: bool = False
    narrowing: bool = False
    matrix: bool = False


GENERIC: Final = CpuClass("generic", 4, 16, fma=False, rounding=False, half=False)
AVX2: Final = CpuClass("avx2", 8, 16, fma=True, rounding=True, half=True)
AVX512: Final = CpuClass("avx512", 16, 32, fma=True, rounding=True, half=True, scaling=True)
AVX512_BF16: Final = replace(AVX512, name="avx512-bf16", narrowing=True)
AVX512_AMX: Final = replace(AVX512_BF16, name="avx512-amx", matrix=True)
AARCH64: Final = CpuClass("aarch64", 4, 32, fma=True, rounding=True, half=True)

CPU_CLASSES: Final[dict[str, CpuClass]] = {c.name: c for c in (GENERIC, AVX2, AVX512, AVX512_BF16, AVX512_AMX, AARCH64)}
