"""The CPU classes: vector features, cache sizes and tile rules. Classes, not measurements (see ir/machine.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Final

from tilewright.backends.cpu.cpu_class import AVX2, AVX512, GENERIC, CpuClass
from tilewright.backends.cpu.register_tiles import REGISTER_TILES
from tilewright.backends.host.cores import cores
from tilewright.backends.host.mlir import TARGETS
from tilewright.backends.stack_scratch import STACK_SCRATCH
from tilewright.ir.host_features import usable
from tilewright.ir.loop_math import F32_ONLY
from tilewright.ir.machine import Level, Machine, MatrixUnit, TileRules, Unit

# About what a large last cache holds: a smaller result may still be there when the next kernel reads it.
_STREAMING: Final = 32 << 20
# Prefetchers stop at the end of a page, and a window full of arithmetic does not reach the next one. Two cores of the
# avx512 class wrote 256 MiB of GELU past the caches in 25 ms where nothing was asked for, in 18 where lines were asked
# into the second level 4 KiB before, in 21 where they were asked into the first one; a copy took 18.
_AHEAD: Final = 4096
# An addition's latency is four cycles and a core starts two in each, but the passes between sums fill it, too: rows of
# 1,024 numbers through norm, GELU and sum took 18.5 ms one by one, 15.0 by twos and 14.1 by fours.
_TOGETHER: Final = 4


def _rules(cpu: CpuClass, panel: int) -> TileRules:
    return TileRules(
        cpu.lanes,
        cpu.registers,
        REGISTER_TILES[cpu.name],
        panel,
        block=96,
        near=1 << 20,
        rows=1,
        columns=64,
        f32_only=F32_ONLY,
        scratch=STACK_SCRATCH,
        streaming=_STREAMING,
        ahead=_AHEAD,
        together=_TOGETHER,
    )


_AVX512_RULES: Final = _rules(AVX512, 64)
_RULES: Final = {
    "generic": _rules(GENERIC, 16),
    "avx2": _rules(AVX2, 16),
    "avx512": _AVX512_RULES,
    # bf16 operands are widened and multiplied in f32: the class's pair products ran at half the rate of f32's, see
    # register_tiles.py, and panels of pairs would only be taken apart again
    "avx512-bf16": _AVX512_RULES,
    "avx512-amx": replace(_AVX512_RULES, matrix=MatrixUnit("bf16", 16, 16, 32, 8, 128, 1.5, idle=128)),
}
# FLOPs of products that one core does in a cycle, by class and dtype; with a nominal clock they give predicted times.
_FLOPS_PER_CYCLE: Final = {
    "generic": {"f32": 8, "bf16": 8, "f64": 4},
    "avx2": {"f32": 32, "bf16": 32, "f64": 16},
    "avx512": {"f32": 64, "bf16": 64, "f64": 32},
    "avx512-bf16": {"f32": 64, "bf16": 64, "f64": 32},
    "avx512-amx": {"f32": 64, "bf16": 1024, "f64": 32},
}
_CLOCK: Final = 2.6e9
_SECOND_LEVEL: Final = {"avx512-amx": 2 << 20}  # bytes, where all of a class have more than the others


def _describe(name: str) -> Callable[[], Machine]:
    def build() -> Machine:
        rules = _RULES[name]
        near = ("l1", "registers")
        products = {dtype: flops * _CLOCK for dtype, flops in _FLOPS_PER_CYCLE[name].items()}
        lanewise = {"f32": rules.lanes * 2 * _CLOCK, "f64": rules.lanes * _CLOCK}
        return Machine(
            name=name,
            family="cpu",
            cores=cores(),
            units=(Unit("matrix", products, near), Unit("vector", lanewise, near)),
            levels=(
                Level("memory", None, 12e9, alignment=64),
                Level("l2", _SECOND_LEVEL.get(name, 1 << 20), 80e9, alignment=64),
                Level("l1", 32 << 10, 200e9, alignment=64),
                Level("registers", rules.registers * rules.lanes * 4, 1e12, "registers"),
            ),
            rules=rules,
            launch=2e-6,
            features=TARGETS[name].features,
        )

    return build


MACHINES: Final[dict[str, Callable[[], Machine]]] = {name: _describe(name) for name in _RULES}


@cache
def host_class() -> str:
    """The richest class whose features this CPU has all of, and this process may use."""
    import llvmlite.binding as llvm

    features = usable(name for name, present in llvm.get_host_cpu_features().items() if present)
    ready = [name for name in _RULES if features.issuperset(TARGETS[name].features)]
    return ready[-1]
