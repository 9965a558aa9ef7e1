"""compile_lm(): from a causal model to a program that generates step by step, its keys and values in pages.

model --capture--> ids to logits --canonicalize, recognize--> --kv_cache.step_of--> step --finish--> program
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tilewright.compiler.compiled import Compiled
from tilewright.compiler.entry import finish
from tilewright.compiler.options import Options
from tilewright.compiler.stopwatch import Progress, Stopwatch
from tilewright.compiler.target import Target
from tilewright.errors import StepError
from tilewright.frontend.captured import Captured
from tilewright.frontend.capturing import capture
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.graph.base import tensor
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pipeline, run_pipeline
from tilewright.ir.signature import Argument, Input, Output, Parameter, Signature
from tilewright.ir.trees import LEAF
from tilewright.passes.kv_cache import PagedLayout, Step, step_of
from tilewright.passes.pipeline import PASSES
from tilewright.runtime.generation.compiled_step import Addressing, CompiledStep
from tilewright.runtime.generation.step import CacheGroup, StepLayout

# What a step is made from: equal things in one form, and attention as an op.
_BEFORE = "canonicalize,fold,canonicalize,recognize,canonicalize"


@dataclass(frozen=True)
class StepCode:
    """A compiled step and what it was made as. Calling `compiled`: see `Step.arguments`."""

    compiled: Compiled
    step: Step
    layout: PagedLayout

    def program(self) -> CompiledStep:
        """The step as the runtime's protocol, with a cache of its own: one program, one cache."""
        step, layout = self.step, self.layout
        cached = StepLayout(
            vocabulary=step.vocabulary,
            max_tokens=layout.most_tokens,
            step_tokens=layout.most_step,
            step_requests=layout.most_requests,
            page_size=layout.page,
            groups=tuple(CacheGroup(g.name, step.pages[g.name], g.token_bytes, g.window) for g in step.groups),
        )
        groups = tuple(Addressing(g.states, layout.page, g.window, g.columns, g.unit) for g in step.groups)
        return CompiledStep(self.compiled.executable, cached, groups)


def compile_step(model: Any, layout: PagedLayout, *, progress: Progress | None = None, **given: Any) -> StepCode:
    """The step of a causal transformers or PyTorch model of ids [batch, tokens] that returns logits, or an object with
    `.logits`. StepError where it cannot be taken apart; else raises as tilewright.compile.
    """
    options, watch = Options.of(given, caller="compile_lm()"), Stopwatch(progress)
    target = Target.of(options)
    target.backend.warm()
    layout = replace(layout, segment=target.machine.rules.key_segment)
    with watch.stage("capture"):
        whole = _captured(model, layout, options)
        _refuse_decisions(whole)
        ctx = Context(machine=target.machine, dims=DimSpace(whole.dims), read_weight=whole.weights.__getitem__)
        run_pipeline(Pipeline.parse(_BEFORE, PASSES), whole.module, ctx)
        step = step_of(whole.module, layout)
    return StepCode(finish(_as_captured(whole, step), target, options, watch), step, layout)


def _refuse_decisions(whole: Captured) -> None:
    """A step sees other numbers of tokens than the sequence has: what a model decides by that number, it cannot know."""
    if whole.guards or whole.states:
        faults = [f"the model decides by its sizes: {guard}" for guard in whole.guards]
        faults += [f"the model keeps {name} from call to call" for name in whole.states]
        raise StepError(faults, step="use a model whose forward is the same for every number of tokens")


def _captured(model: Any, layout: PagedLayout, options: Options) -> Captured:
    import torch

    class Logits(torch.nn.Module):
        """The model's logits, all of them."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> Any:
            found = self.model(ids, use_cache=False) if hasattr(self.model, "generate") else self.model(ids)
            return found.logits if hasattr(found, "logits") else found

    batch, tokens = Dim("batch", 1, layout.most_requests + 1), Dim("tokens", 1, max(layout.most_tokens, 9))
    ids = torch.zeros(2, 8, dtype=torch.int64)
    return capture(Logits(model).eval(), (ids,), {}, {"ids": (batch, tokens)}, fallback=options.fallback)


def _as_captured(whole: Captured, step: Step) -> Captured:
    """The step in the place of the model it was made from."""
    arguments = tuple(
        Argument(name, LEAF, (Input(name, kind.dtype, kind.dims),)) for name, kind in step.arguments.items()
    )
    main = functions(step.module)["main"]
    logits = tensor(main.block.last_op.operands[0])  # type: ignore[union-attr]
    signature = Signature(
        tuple(Parameter(name) for name in step.arguments),
        arguments,
        LEAF,
        (Output(logits.dtype, logits.dims, index=0),),
    )
    return replace(whole, module=step.module, signature=signature, dims=step.dims, zeroed=frozenset(step.states))
