"""A pass with a fault, for tests of what finds faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from tilewright.ir.attributes import Str
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.passing import Context, Pass


@dataclass(frozen=True)
class SwapActivation(Pass):
    """Takes every gelu for a silu."""

    name: ClassVar[str] = "swap-activation"

    def run(self, module: ModuleOp, ctx: Context) -> None:
        found = [op for op in module.walk() if isinstance(op, MapOp) and op.fn.data.startswith("gelu")]
        assert found, "the model has no gelu"
        for op in found:
            op.properties["fn"] = Str("silu")
