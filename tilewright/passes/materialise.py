"""materialise: every op a kernel of its own, so that every intermediate value is in memory to be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.fuse.build import Builder
from tilewright.passes.fuse.plan import Plan
from tilewright.passes.rewriting import erase_dead


@dataclass(frozen=True)
class Materialise(Pass):
    """The plan without fusion, for comparing intermediates: transposes, slices and broadcasts are kernels, too."""

    name: ClassVar[str] = "materialise"
    needed: ClassVar[bool] = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in functions(module).values():
            erase_dead(function.block)
            Builder(Plan(function.block, views_apart=True), copy_returned=function.kind.data == "main").run()
