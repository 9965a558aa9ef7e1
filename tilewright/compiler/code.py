"""What compiling gives before weights are added: the part that the code key names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tilewright.runtime.program import Program

if TYPE_CHECKING:
    from tilewright.compiler.counting import KernelCounts


@dataclass(frozen=True)
class Code:
    """A program with its object code by symbol (and "driver"), kernel sources by name, and IR texts by stage.

    texts: "captured" (the graph as captured), "graph" (grouped, before lowering) and "tile" (kernels and launches).
    features: of the CPU, by LLVM's names, that the objects use.
    """

    program: Program
    objects: Mapping[str, bytes]
    sources: Mapping[str, str]
    texts: Mapping[str, str]
    features: tuple[str, ...] = ()

    @cached_property
    def counts(self) -> Mapping[str, KernelCounts]:
        """What each kernel counts, by name, from the tile IR: read when first asked for, and kept for every report.

        Raises ImportError where the library that reads IR is absent.
        """
        from tilewright.compiler.counting import counts_of

        return counts_of(self.texts["tile"])

    def __repr__(self) -> str:
        return f"<Code of {len(self.sources)} kernels for {self.program.target}>"
