"""What the program's kernels count, from their tile IR: FLOPs by unit, bytes read and written, and the lower bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.ir.backend import kernels_of
from tilewright.ir.cost import Work
from tilewright.ir.dims import Expr
from tilewright.ir.machine import Machine
from tilewright.ir.module import parse_module
from tilewright.ir.tile.levels import programs_of, work_of
from tilewright.ir.tile.traffic import KernelTraffic, kernel_traffic


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts at given dims: FLOPs by unit, bytes by direction, and the bytes of distinct operands and results."""

    matrix: int
    vector: int
    read: int
    write: int
    bound: int

    @property
    def flops(self) -> int:
        return self.matrix + self.vector


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """A kernel's formulas in its dims; None where no closed form exists and only `.at` gives the number."""

    traffic: KernelTraffic

    @property
    def flops(self) -> Expr | None:
        matrix, vector = self.traffic.matrix, self.traffic.vector
        return None if matrix is None or vector is None else matrix + vector

    @property
    def read(self) -> Expr | None:
        return self.traffic.read

    @property
    def write(self) -> Expr | None:
        return self.traffic.write

    @property
    def bound(self) -> Expr:
        return self.traffic.lower_bound

    def at(self, dims: Mapping[str, int]) -> Figures:
        """The exact counts at given sizes."""
        found = self.traffic.at(dims)
        moved = found["read"] + found["write"]
        # rows picked by indices bound their table from above; what a kernel does move is a bound of its own
        bound = min(self.traffic.lower_bound.evaluate(dims), moved)
        return Figures(found["matrix"], found["vector"], found["read"], found["write"], bound)

    def predicted(self, dims: Mapping[str, int], machine: Machine) -> tuple[Work, float]:
        """What a launch asks of a machine, by the model of `ir/tile/levels.py`, and the seconds that takes it.

        The launch itself counts, and equal programs are dealt out to the cores.
        """
        work = work_of(self.traffic, dims, machine)
        imbalance = machine.imbalance(programs_of(self.traffic.kernel, dims))
        return work, machine.launch + machine.seconds(work, imbalance=imbalance)


def counts_of(text: str) -> dict[str, KernelCounts]:
    """Every kernel's counts by name. text: tile IR."""
    return {name: KernelCounts(kernel_traffic(k)) for name, k in kernels_of(parse_module(text)).items()}
