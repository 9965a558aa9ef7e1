"""The classes of x86-64 CPUs that kernels are printed for: what code may assume, as data.

A class is all that decides code and cache keys; a measured machine never does. Vectors hold `lanes` f32 elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CpuClass:
    """Instructions a kernel may use, and how LLVM is told.

    lanes: f32 elements of a full vector. registers: architectural vector registers.
    fma: fused multiply-add. bf16_dot: vdpbf16ps on every vector width.
    llvm_cpu, features: the function attributes `target_cpu` and `target_features`.
    """

    name: str
    lanes: int
    registers: int
    fma: bool
    bf16_dot: bool
    llvm_cpu: str
    features: tuple[str, ...]


GENERIC: Final = CpuClass("generic", 4, 16, False, False, "x86-64", ())
AVX2: Final = CpuClass("avx2", 8, 16, True, False, "x86-64-v3", ())
AVX512: Final = CpuClass("avx512", 16, 32, True, False, "x86-64-v4", ())
AVX512_BF16: Final = CpuClass("avx512-bf16", 16, 32, True, True, "x86-64-v4", ("+avx512bf16", "+avx512vnni"))

CPU_CLASSES: Final[dict[str, CpuClass]] = {c.name: c for c in (GENERIC, AVX2, AVX512, AVX512_BF16)}
