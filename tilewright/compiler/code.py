"""What compiling gives before weights are added: the part that the code key names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.runtime.program import Program


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

    def __repr__(self) -> str:
        return f"<Code of {len(self.sources)} kernels for {self.program.target}>"
