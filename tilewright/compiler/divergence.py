"""Where a compiled model leaves the original: the first stage, and in it the first op, whose numbers differ.

Four questions in the order of the data's way, each answered by running something obviously right beside it:

1. Is the captured graph the model?         the graph interpreter against the model's own outputs
2. Does every graph pass keep the meaning?  the interpreter in float64 before and after; then bisection of rewrites
3. Is every kernel its group?               each kernel's result against the group's reference on the operands it read
4. Which op is it, inside a kernel?         the same with the materialising pipeline, where every op is a kernel
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.checking import distance
from tilewright.compiler.intermediates import Exposed, kernel_results
from tilewright.compiler.pipelines import whole_pipeline
from tilewright.compiler.target import Target
from tilewright.frontend.captured import Captured
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.dims import DimSpace
from tilewright.ir.graph.base import GraphOp, Setting, tensor
from tilewright.ir.graph.structure import GroupOp, YieldOp
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.passing import Applied, Context, Pass, Pipeline, run_pipeline

if TYPE_CHECKING:
    import torch
    from xdsl.ir import SSAValue

# Below it, kernels; above it, graphs that the interpreter runs.
_LOWERING = "lower-to-tile"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that differs. stage: "capture", "pass" or "kernel". worst, bound: absolute. applied: the rewrite
    that a pass made there.
    """

    stage: str
    name: str
    detail: str
    where: str | None
    worst: float
    bound: float
    applied: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f"  (at {self.where})" if self.where else ""
        return (
            f"{self.stage} {self.name}: {self.detail}; off by {self.worst:.3g}, rounding explains {self.bound:.3g}{at}"
        )


@dataclass(frozen=True)
class Case:
    """A capture that can be repeated (passes consume it), its tensors in the order of @main, and what to expect."""

    capture: Callable[[], Captured]
    tensors: Sequence[torch.Tensor]
    expected: Sequence[torch.Tensor]
    target: Target
    options: CompileOptions

    def context(self, captured: Captured, limit: int | None = None) -> Context:
        """What the passes see, as in compile()."""
        return Context(self.target.machine, DimSpace(captured.dims), self.options, limit=limit)


def first_difference(case: Case, tolerance: Callable[[torch.Tensor], float]) -> Difference | None:
    """The first difference, or None where every step by itself is right and only rounding adds up.

    tolerance: of a result as a whole, by its magnitude.
    """
    captured = case.capture()
    found = _interpreted(captured.module, captured, case.tensors, wide=False)
    for i, (wanted, got) in enumerate(zip(case.expected, found, strict=False)):
        if (fault := _off(wanted, got, tolerance(wanted))) is not None:
            return Difference("capture", captured.source.model, f"output {i} of the captured graph", None, *fault)
    return (
        _in_passes(case, tolerance)
        or _in_kernels(case, case.target.pipeline, detail=True)
    )  # fmt: skip


def _interpreted(
    module: ModuleOp, captured: Captured, tensors: Sequence[torch.Tensor], *, wide: bool
) -> list[torch.Tensor]:
    """The results of @main that are outputs of the model, in order."""
    states = {name: value.clone() for name, value in captured.states.items()}
    results = list(interpret(module, list(tensors), weights=captured.weights, states=states, wide=wide).values())
    return [results[out.index] for out in captured.signature.outputs if out.index is not None]


def _off(wanted: torch.Tensor, got: torch.Tensor, bound: float) -> tuple[float, float] | None:
    """(largest difference, bound) where two tensors differ by more than the bound."""
    worst = distance(wanted, got)
    return (worst, bound) if worst > bound else None


def _graph_passes(pipeline: Pipeline) -> tuple[Pass, ...]:
    names = [p.name for p in pipeline.passes]
    return pipeline.passes[: names.index(_LOWERING)] if _LOWERING in names else pipeline.passes


def _in_passes(case: Case, tolerance: Callable[[torch.Tensor], float]) -> Difference | None:
    """The first graph pass after which the module computes something else, with the rewrite that did it."""
    captured = case.capture()
    before = _interpreted(captured.module, captured, case.tensors, wide=True)
    ctx = case.context(captured)
    for number, p in enumerate(_graph_passes(case.target.pipeline)):
        run_pipeline(Pipeline((p,)), captured.module, ctx)
        after = _interpreted(captured.module, captured, case.tensors, wide=True)
        for i, (wanted, got) in enumerate(zip(before, after, strict=True)):
            # in float64 a pass may move the last digits of f32 constants, no more
            if (fault := _off(wanted, got, tolerance(wanted.float()))) is not None:
                last = _bisected(case, number + 1, before, tolerance, len(ctx.applied))
                what = f"{last.op}: {last.what}" if last else "a rewrite that no application names"
                return Difference(
                    "pass", p.name, f"output {i} after {what}", last.where if last else None, *fault,
                    applied=(last.what,) if last else (),
                )  # fmt: skip
    return None


def _bisected(
    case: Case, passes: int, wanted: Sequence[torch.Tensor], tolerance: Callable[[torch.Tensor], float], applied: int
) -> Applied | None:
    """The first application among all, by halving."""

    def wrong(limit: int) -> tuple[bool, Context]:
        captured = case.capture()
        ctx = case.context(captured, limit)
        run_pipeline(Pipeline(case.target.pipeline.passes[:passes]), captured.module, ctx)
        found = _interpreted(captured.module, captured, case.tensors, wide=True)
        pairs = zip(wanted, found, strict=True)
        return any(_off(w, f, tolerance(w.float())) is not None for w, f in pairs), ctx

    low, high = 0, applied
    if wrong(0)[0]:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong(middle)[0] else (middle, high)
    return wrong(high)[1].applied[high - 1]


def _in_kernels(case: Case, pipeline: Pipeline, *, detail: bool) -> Difference | None:
    """The first kernel that differs from its group's reference; detail: then the op in it, by a plan without fusion."""
    captured = case.capture()
    exposed = kernel_results(captured, replace(case.target, pipeline=pipeline), case.context(captured), case.tensors)
    for group in exposed.groups:
        fault = _group_fault(group, exposed)
        if fault is None:
            continue
        ops = [op for op in group.block.ops if not isinstance(op, YieldOp)]
        inner = _in_kernels(case, _unfused(case), detail=False) if detail and len(ops) > 1 else None
        names = ", ".join(op.name for op in ops)
        described = f"a {group.kind.data} kernel of {names}" if len(ops) > 1 else f"the kernel of {names}"
        if inner is not None:
            described += f"; by itself, {inner.name} differs, too ({inner.detail})"
        return Difference("kernel", group.label.data or names, described, group.loc, *fault)
    return None


def _unfused(case: Case) -> Pipeline:
    """The case's own precision and backend, with every op a kernel."""
    return whole_pipeline(case.target.backend, precision=case.options.precision, materialise=True)


def _group_fault(group: GroupOp, exposed: Exposed) -> tuple[float, float] | None:
    """How far a kernel's results are from its group's reference in float64, on the operands that the kernel read."""
    values: dict[SSAValue, torch.Tensor] = {}
    setting = Setting(exposed.sizes, wide=True)
    for inside, outside in zip(group.block.args, group.args, strict=True):
        given = exposed.value(outside)
        values[inside] = given.double() if given.is_floating_point() else given
    terms = 1
    for op in group.block.ops:
        if isinstance(op, YieldOp) or not isinstance(op, GraphOp):
            continue
        found = op.evaluate(setting, *[None if slot is None else values[slot] for slot in op.slots()])
        results = found if isinstance(found, tuple) else (found,)
        values.update(zip(op.results, results, strict=True))
        # what one element adds up: flops of the op, spread over its elements
        terms += -(-op.cost().flops.evaluate(exposed.sizes) // max(1, sum(r.numel() for r in results)))
    # integers and booleans are equal or not; a float computed from them is among the values, too
    numbers = [v.double() for v in values.values() if v.numel() and v.is_floating_point()]
    scale = max([1e-30, *(float(v.abs().nan_to_num(0.0, 0.0, 0.0).max()) for v in numbers)])
    unit = max(_unit(v) for v in values)
    for yielded, result in zip(group.yielded, group.outs, strict=True):
        wanted, got = values[yielded], exposed.value(result)
        bound = unit * terms * scale if wanted.is_floating_point() else 0.0
        if (fault := _off(wanted, got, bound)) is not None:
            return fault
    return None


def _unit(value: SSAValue) -> float:
    return {"bf16": 2.0**-8, "f16": 2.0**-10, "f64": 2.0**-52}.get(tensor(value).dtype.name, 2.0**-23)
