"""GPUs as data: units, memory, and the tile shapes that a block of threads takes. Vendors' published figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tilewright.ir.machine import Level, Machine, TileRules, Unit


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


@dataclass(frozen=True, slots=True)
class _Facts:
    """Figures of a whole device: FLOP/s of products in f32 and in 16 bits and of lanewise work in f32, bytes of memory
    and of the cache before it with their bandwidths, and bytes of shared memory of a unit."""

    units: int
    f32: float
    half: float
    vector: float
    memory: int
    bandwidth: float
    cache: int
    cache_bandwidth: float
    shared: int


_FACTS: Final[dict[str, _Facts]] = {
    "sm_80": _Facts(108, 19.5e12, 312e12, 19.5e12, 80 << 30, 2.0e12, 40 << 20, 4.0e12, 163 << 10),
    "sm_90": _Facts(132, 67e12, 989e12, 67e12, 80 << 30, 3.35e12, 50 << 20, 5.5e12, 227 << 10),
    "sm_100": _Facts(148, 75e12, 2250e12, 75e12, 180 << 30, 8.0e12, 126 << 20, 10e12, 227 << 10),
    "gfx942": _Facts(304, 163e12, 1307e12, 163e12, 192 << 30, 5.3e12, 256 << 20, 17.2e12, 64 << 10),
    "gfx950": _Facts(256, 157e12, 2300e12, 157e12, 288 << 30, 8.0e12, 256 << 20, 17.2e12, 160 << 10),
}


def _describe(name: str) -> Callable[[], Machine]:
    facts, gpu = _FACTS[name], GPUS[name]
    products = {"f32": facts.f32, "bf16": facts.half, "f16": facts.half}

    def build() -> Machine:
        return Machine(
            name=name,
            family="cuda" if gpu.backend == "cuda" else "rocm",
            cores=facts.units,
            units=(
                Unit("matrix", {d: rate / facts.units for d, rate in products.items()}, ("shared", "registers")),
                Unit("vector", {"f32": facts.vector / facts.units}, ("shared", "registers")),
            ),
            levels=(
                Level("memory", facts.memory, facts.bandwidth, alignment=128, shared=True),
                Level("l2", facts.cache, facts.cache_bandwidth, alignment=128, shared=True),
                Level("shared", facts.shared, 128e9, "explicit", alignment=16),
                Level("registers", 256 << 10, 1e12, "registers"),
            ),
            rules=_rules(gpu.threads),
            launch=4e-6,
        )

    return build


def machines(backend: str) -> dict[str, Callable[[], Machine]]:
    """The machines of one of Triton's backends ("cuda" or "hip")."""
    return {name: _describe(name) for name, gpu in GPUS.items() if gpu.backend == backend}
