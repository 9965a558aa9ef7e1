"""place-levels: on machines with scratchpads, loaded tiles are staged through the levels they must pass.

A machine whose levels are all caches keeps its tiles where the lowering puts them (registers, thread-private scratch):
there is nothing to name, and nothing is inserted. Capacity is checked either way: a kernel's loaded tiles must fit the
level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tilewright.errors import CapacityError
from tilewright.ir.machine import Level
from tilewright.ir.passing import Context, Pass
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import LoadOp, StageOp
from tilewright.ir.tile.structure import KernelOp


@dataclass(frozen=True)
class PlaceLevels(Pass):
    """Stages loaded tiles in the machine's explicit memory levels, outermost first."""

    name: ClassVar[str] = "place-levels"
    needed: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("lower-to-tile",)

    def run(self, module: ModuleOp, ctx: Context) -> None:
        explicit = [level for level in ctx.machine.levels if level.kind == "explicit"]
        for kernel in [op for op in module.body.block.ops if isinstance(op, KernelOp)]:
            loads = [op for op in kernel.walk() if isinstance(op, LoadOp)]
            for level in explicit:
                _check_fits(kernel, loads, level)
            for load in loads:
                if explicit and ctx.apply([load], f"staged in {', '.join(level.name for level in explicit)}"):
                    _stage(load, explicit)


def _stage(load: LoadOp, levels: list[Level]) -> None:
    uses = list(load.out.uses)
    block = load.parent_block()
    assert block is not None  # a load stands in a kernel's or loop's block
    at: Operation = load
    value = load.out
    for level in levels:
        staged = StageOp.make(value, level=level.name, like=load)
        block.insert_op_after(staged, at)
        at, value = staged, staged.out
    for use in uses:
        use.operation.operands[use.index] = value


def _check_fits(kernel: KernelOp, loads: list[LoadOp], level: Level) -> None:
    """The tiles a program loads must fit the level together; the largest one is named."""
    sizes = {load: (tile(load.out).bytes.constant or 0) for load in loads}
    needed = sum(sizes.values())
    if level.size is not None and needed > level.size:
        rows = "\n".join(
            f"    {tile(load.out)}: {size} bytes" for load, size in sorted(sizes.items(), key=lambda p: -p[1])
        )
        raise CapacityError(
            f"kernel @{kernel.sym_name.data} loads {needed} bytes a program; {level.name} holds {level.size}\n{rows}",
            step=f"use smaller tiles: at most {level.size * 100 // needed}% of these extents fit",
        )
