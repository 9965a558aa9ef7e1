"""canonicalize: one form for equal things. Identities go, chains merge, equal ops are shared, dead ones erased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.canonicalize.arithmetic import ARITHMETIC
from tilewright.passes.canonicalize.broadcasts import BROADCASTS
from tilewright.passes.canonicalize.products import PRODUCTS
from tilewright.passes.canonicalize.shapes import SHAPES
from tilewright.passes.canonicalize.sharing import share_equal_ops
from tilewright.passes.canonicalize.singles import SINGLES
from tilewright.passes.rewriting import Rules, erase_dead, run_rules

RULES = Rules(SHAPES, BROADCASTS, SINGLES, PRODUCTS, ARITHMETIC)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Local simplification, sharing of equal ops, and removal of dead ones.

    Every bit of the results is kept, except that a power with a constant exponent is computed as torch computes it.
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in functions(module).values():
            erase_dead(function.block)
            # sharing brings operands together that rules compare, and rules make ops equal
            while True:
                run_rules(function.block, RULES, ctx)
                if not share_equal_ops(function.block, ctx):
                    break
            erase_dead(function.block)
