"""The toy machine: any host, one lane, eight registers to accumulate in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tilewright.backends.host.cores import cores
from tilewright.backends.stack_scratch import STACK_SCRATCH
from tilewright.ir.loop_math import F32_ONLY
from tilewright.ir.machine import Level, Machine, TileRules, Unit

_CLOCK: Final = 2.6e9

SCALAR: Final = "scalar"


def _scalar() -> Machine:
    return Machine(
        name=SCALAR,
        family="toy",
        cores=cores(),
        units=tuple(Unit(name, {"f32": 2 * _CLOCK}, ("cache", "registers")) for name in ("matrix", "vector")),
        levels=(
            Level("memory", None, 8e9, alignment=64),
            Level("cache", 32 << 10, 40e9, alignment=64),
            Level("registers", 16 * 4, 1e12, "registers"),
        ),
        rules=TileRules(
            lanes=1,
            registers=16,
            dot=((1, 1, 4), (None, 2, 4)),
            panel=16,
            rows=1,
            columns=64,
            f32_only=F32_ONLY,
            scratch=STACK_SCRATCH,
        ),
        launch=2e-6,
    )


MACHINES: Final[dict[str, Callable[[], Machine]]] = {SCALAR: _scalar}


def default_machine() -> str:
    """The only one."""
    return SCALAR
