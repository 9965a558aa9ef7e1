"""The levels at which backends take kernels, and what leads from tiles to each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tilewright.errors import BackendManifestError
from tilewright.ir.backend import Backend, Level, Source
from tilewright.ir.machine import Machine
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_tile_to_loops import lower_kernel


@dataclass(frozen=True, slots=True)
class Weaving:
    """What is woven into a kernel on its way down. instrument: counters. cleared: scratch that is zeros at first."""

    instrument: bool = False
    cleared: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """How a level is reached from tiles. lower: one kernel, for a machine; None where tiles are the level. woven:
    whether counters can be woven in.
    """

    lower: Callable[[KernelOp, Machine, Weaving], Source] | None
    woven: bool = False


def _loops(kernel: KernelOp, machine: Machine, weaving: Weaving) -> Source:
    return lower_kernel(kernel, machine, instrument=weaving.instrument, cleared=weaving.cleared)


# "graph" and "queue" are levels of the design that nothing leads to yet
LEVELS: Final[Mapping[Level, Stage]] = {"tile": Stage(None), "loops": Stage(_loops, woven=True)}


def stage_of(backend: Backend) -> Stage:
    """How a backend's kernels are lowered. BackendManifestError where it takes a level that nothing leads to."""
    found = LEVELS.get(backend.takes)
    if found is None:
        raise BackendManifestError(
            f"backend {backend.name}: takes: nothing lowers kernels to {backend.takes!r} yet",
            step=f"take one of {', '.join(LEVELS)}",
        )
    return found
