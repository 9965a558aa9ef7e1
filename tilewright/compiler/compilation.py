"""Code from a captured model: passes, kernels and the step table, in that order, each stage timed.

    graph --passes--> groups --lower-to-tile--> kernels + launches
    kernels --lower-tile-to-loops, backend--> objects        launches --plan-memory, assemble--> step table

What comes out is cached under the *code key* (`code_key`); `entry` is what calls this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.assemble import Interface
from tilewright.compiler.building import build_code
from tilewright.compiler.code import Code
from tilewright.compiler.options import Options
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.compiler.target import Target
from tilewright.frontend.captured import Captured
from tilewright.ir.dims import DimSpace
from tilewright.ir.module import print_module
from tilewright.ir.passing import Context, Instrument, Pass, run_pipeline
from tilewright.runtime.canonical import key_of
from tilewright.runtime.facts import Declined, Facts


def generate(
    captured: Captured,
    text: str,
    target: Target,
    options: Options,
    watch: Stopwatch,
    instruments: tuple[Instrument, ...] = (),
    *,
    meanwhile: Callable[[], object] | None = None,
) -> tuple[Code, Facts]:
    """Runs the passes, compiles the kernels and assembles the program. The captured module is consumed.

    text: of the captured module. meanwhile: called while kernels compile; what it raises ends the compilation.
    """
    # what programs need besides kernels depends on the machine alone: it is made while the passes run
    with ThreadPoolExecutor(1) as beside:
        runtime = beside.submit(target.backend.runtime_objects, target.machine)
        return _generated(captured, text, target, options, watch, instruments, runtime, meanwhile)


def _generated(
    captured: Captured,
    text: str,
    target: Target,
    options: Options,
    watch: Stopwatch,
    instruments: tuple[Instrument, ...],
    runtime: Future[Mapping[str, bytes]],
    meanwhile: Callable[[], object] | None,
) -> tuple[Code, Facts]:
    module, space = captured.module, DimSpace(captured.dims)
    ctx = Context(
        machine=target.machine,
        dims=space,
        options=target.told(options),
        read_weight=captured.weights.__getitem__,
    )
    texts = {"captured": text}
    with watch.stage("passes"):
        watched = _Texts(texts)
        run_pipeline(target.pipeline, module, ctx, instruments=(*instruments, watched, _Clock(watch)))
        texts["tile"] = print_module(module)
    code = build_code(
        module, Interface.of(captured), target.backend, target.machine, dims=space, texts=texts,
        runtime=runtime.result, watch=watch, meanwhile=meanwhile,
    )  # fmt: skip
    return code, facts_of(ctx, watched.structured or {}, captured.source.model, target, options)


STRUCTURED: Final = ("attention", "polynomial-attention", "norm", "rotary", "softmax", "experts")
"""Ops of the graph dialect that count as patterns where they stay whole."""


def facts_of(ctx: Context, structured: Mapping[str, int], model: str, target: Target, options: Options) -> Facts:
    """What the report tells of the passes: applications by pass, patterns by name, refusals with their reasons.

    structured: ops that stayed whole, recognised by a pass or handed over so by the frontend; they count as patterns.
    """
    recognised = Counter(a.what for a in ctx.applied if a.pass_name == "recognize")
    return Facts(
        model=model,
        pipeline=str(target.pipeline),
        precision=options.precision,
        determinism=target.order(options),
        objective=ctx.options.objective,
        applied=dict(sorted(Counter(a.pass_name for a in ctx.applied).items())),
        patterns=dict(sorted({**recognised, **structured}.items())),
        refused=tuple(Declined(r.pass_name, r.op, r.reason, r.where) for r in dict.fromkeys(ctx.refused)),
        choices=tuple(_choices(ctx)),
        notes=tuple(
            f"{count} {noted.what}{'s' if count > 1 else ''}: {noted.text}"
            for noted, count in Counter(ctx.noted).items()
        ),
    )


def _choices(ctx: Context) -> list[dict[str, Any]]:
    """What passes chose, equal choices once with how often they were made and where first."""
    found: dict[str, dict[str, Any]] = {}
    for choice in ctx.chosen:
        told = choice.to_dict()
        same = found.setdefault(key_of({**told, "where": None}), {**told, "times": 0})
        same["times"] += 1
    return list(found.values())


@dataclass(frozen=True)
class _Clock:
    """Tells the stopwatch what each pass takes, its verification included."""

    watch: Stopwatch

    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> AbstractContextManager[None]:
        return self.watch.part("passes", p.name)


class _Texts:
    """Keeps the graph's text as it is when grouping is done, and counts its structured ops before layers are shared."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.structured: Counter[str] | None = None

    @contextmanager
    def around(self, p: Any, module: ModuleOp, ctx: Context) -> Iterator[None]:
        if p.name in ("dedupe-layers", "fuse", "materialise") and self.structured is None:
            self.structured = Counter(
                name for op in module.walk() if (name := op.name.removeprefix("graph.").replace("_", "-")) in STRUCTURED
            )
        if p.name == "lower-to-tile":
            self.texts["graph"] = print_module(module)
        yield
