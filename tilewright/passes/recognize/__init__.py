"""recognize: structures that a model wrote out by hand become the ops that mean them.

Activations, softmax and norms first, because attention is found by its softmax. Every pattern binds its constants and
counts its matches by name ("attention", "rotary", "norm", "gelu", ...); what nearly matches is recorded with the
condition that failed.

Where a mask hides every key of a row, the written-out form gives NaN or an average over hidden keys; graph.attention
gives 0, and that is what the recognized program gives, too; where the fill is finite, the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.recognize.activations import ACTIVATIONS
from tilewright.passes.recognize.attention import attention_rules
from tilewright.passes.recognize.attention_masks import attention_mask_rules
from tilewright.passes.recognize.norms import NORMS
from tilewright.passes.recognize.rotary import ROTARY
from tilewright.passes.rewriting import Rules, erase_dead, run_rules


def pattern_names() -> frozenset[str]:
    """The names that matches are counted under."""
    return frozenset(rule.name for rules in _stages(finite=True) for rule in rules.listed)


def _stages(*, finite: bool) -> tuple[Rules, ...]:
    # masks of attention that was whole already first: what is found after it has its mask taken apart
    return Rules(ACTIVATIONS, NORMS), ROTARY, attention_mask_rules(finite=finite), attention_rules(finite=finite)


@dataclass(frozen=True)
class Recognize(Pass):
    """Written-out attention, rotary embedding, norms, softmax and activations become structured ops.

    finite_hides: whether a mask's large negative but finite number hides a key as minus infinity does. If not, such
    masks stay biases, and rows whose keys are all hidden keep their average.
    """

    name: ClassVar[str] = "recognize"
    finite_hides: bool = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        stages = _stages(finite=self.finite_hides)
        for function in functions(module).values():
            for rules in stages:
                run_rules(function.block, rules, ctx)
            erase_dead(function.block)
