"""GPUs as data: units, memory, and the tile shapes that a block of threads takes. Vendors' published figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tilewright.ir.machine import Level, Machine, TileRules


@dataclass(frozen=True, slots=True)
class Gpu:
    """What decides code for a GPU beyond its machine.

    backend, arch: as Triton names them. threads: of a warp or wave. warps: of a program. stages: of a pipelined loop.
    """

    backend: str
    arch: int | str
    threads: int
    warps: int = 4
    stages: int = 3


GPUS: Final[dict[str, Gpu]] = {
    "sm_80": Gpu("cuda", 80, 32),
    "sm_90": Gpu("cuda", 90, 32),
    "sm_100": Gpu("cuda", 100, 32),
    "gfx942": Gpu("hip", "gfx942", 64, stages=2),
    "gfx950": Gpu("hip", "gfx950", 64, stages=2),
}


def _rules(lanes: int) -> TileRules:
    return TileRules(
        lanes=lanes,
        registers=256,
        dot=((16, 16, 2), (None, 64, 2)),
        panel=64,
        reduction_chunk=64,
        key_segment=64,
        query_block=64,
        rows=1,
        columns=1024,
        extent="power-of-two",
        dot_least=16,
    )


# name: units, f32 and 16-bit matrix peaks and f32 vector peak (FLOP/s of the whole device), bytes of memory and its
# bandwidth, bytes of shared memory a unit
_FACTS: Final[dict[str, tuple[int, float, float, float, int, float, int]]] = {
    "sm_80": (108, 19.5e12, 312e12, 19.5e12, 80 << 30, 2.0e12, 163 << 10),
    "sm_90": (132, 67e12, 989e12, 67e12, 80 << 30, 3.35e12, 227 << 10),
    "sm_100": (148, 75e12, 2250e12, 75e12, 180 << 30, 8.0e12, 227 << 10),
    "gfx942": (304, 163e12, 1307e12, 163e12, 192 << 30, 5.3e12, 64 << 10),
    "gfx950": (256, 157e12, 2300e12, 157e12, 288 << 30, 8.0e12, 160 << 10),
}


def _describe(name: str) -> Callable[[], Machine]:
    units, f32, half, vector, size, bandwidth, shared = _FACTS[name]
    gpu = GPUS[name]

    def build() -> Machine:
        return Machine(
            name=name,
            family="cuda" if gpu.backend == "cuda" else "rocm",
            cores=units,
            peak={
                ("matrix", "f32"): f32 / units,
                ("matrix", "bf16"): half / units,
                ("matrix", "f16"): half / units,
                ("vector", "f32"): vector / units,
            },
            levels=(
                Level("memory", size, bandwidth, alignment=128, shared=True),
                Level("shared", shared, 128e9, explicit=True, alignment=16),
                Level("registers", 256 << 10, 1e12),
            ),
            rules=_rules(gpu.threads),
            launch=4e-6,
            sync=4e-6,
        )

    return build


def machines(backend: str) -> dict[str, Callable[[], Machine]]:
    """The machines of one of Triton's backends ("cuda" or "hip")."""
    return {name: _describe(name) for name, gpu in GPUS.items() if gpu.backend == backend}
