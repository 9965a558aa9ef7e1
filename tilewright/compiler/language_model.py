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
from tilewright.frontend.captured import Captured
from tilewright.frontend.capturing import capture
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import torch_name
from tilewright.ir.graph.base import tensor
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pipeline, run_pipeline
from tilewright.ir.signature import Argument, Input, Output, Parameter, Signature
from tilewright.ir.trees import LEAF
from tilewright.passes.kv_cache import PagedLayout, Step, step_of
from tilewright.passes.pipeline import PASSES

# What a step is made from: equal things in one form, and attention as an op.
_BEFORE = "canonicalize,fold,canonicalize,recognize,canonicalize"


@dataclass(frozen=True)
class StepProgram:
    """A compiled step. Calling it: see `Step`'s arguments; it gives logits [wanted, V]."""

    compiled: Compiled
    layout: PagedLayout
    vocabulary: int


def compile_step(model: Any, layout: PagedLayout, *, progress: Progress | None = None, **given: Any) -> StepProgram:
    """The step of a causal transformers or PyTorch model of ids [batch, tokens] that returns logits, or an object with
    `.logits`. StepError where it cannot be taken apart; else raises as tilewright.compile.
    """
    options, watch = Options.of(given), Stopwatch(progress)
    target = Target.of(options)
    target.backend.warm()
    with watch.stage("capture"):
        whole = _captured(model, layout, options)
        ctx = Context(machine=target.machine, dims=DimSpace(whole.dims), read_weight=whole.weights.__getitem__)
        run_pipeline(Pipeline.parse(_BEFORE, PASSES), whole.module, ctx)
        step = step_of(whole.module, layout)
    compiled = finish(_as_captured(whole, step), target, options, watch)
    return StepProgram(compiled, layout, step.vocabulary)


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
    import torch

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
    states = {
        name: torch.zeros([d.evaluate({}) for d in kind.dims], dtype=getattr(torch, torch_name(kind.dtype)))
        for name, kind in step.states.items()
    }
    return replace(
        whole, module=step.module, signature=signature, dims=step.dims,
        states={**whole.states, **states},
    )  # fmt: skip
