"""compile(): capture, passes, kernels, program, weights, in that order, each stage timed.

    model --capture--> graph --passes--> groups --lower-to-tile--> kernels + launches
    kernels --lower-tile-to-loops, backend--> objects        launches --plan-memory, assemble--> step table
    weights --@prepare--> packed file (mapped)

What passes and backend produce is cached under the *code key*; packed tensors under the *weights key*.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias

from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.assemble import Interface, assemble
from tilewright.compiler.code import Code
from tilewright.compiler.options import Options
from tilewright.errors import OptionError, PassOptionError, TargetError
from tilewright.frontend.captured import Captured
from tilewright.ir.backend import Backend, Source, content_of, kernels_of, resolve_target
from tilewright.ir.dims import DimSpace
from tilewright.ir.grid_abi import Grid
from tilewright.ir.machine import Machine
from tilewright.ir.module import print_module
from tilewright.ir.passing import Context, Instrument, Pipeline, run_pipeline
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.pipeline import PASSES, default_pipeline, materialising_pipeline
from tilewright.passes.set_precision import SetPrecision
from tilewright.runtime.canonical import key_of
from tilewright.runtime.program import KernelInfo

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told a stage's name, how much of it is done and of how much in all (0 where that is not known)."""


@dataclass
class Stopwatch:
    """Seconds by stage, in the order stages ran; `progress` is told what runs."""

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Passes news on to whoever watches."""
        if self.progress is not None:
            self.progress(stage, done, total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        self.tell(name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


@dataclass(frozen=True)
class Target:
    """A resolved target: backend, machine, and the pipeline that runs for it."""

    backend: Backend
    machine: Machine
    pipeline: Pipeline

    @staticmethod
    def of(options: Options) -> Target:
        backend, machine = resolve_target(options.target)
        pipeline = pipeline_of(options)
        pipeline.check_order("lower-to-tile", "plan-memory")
        if options.determinism in ("batch", "exact") and backend.device != "cpu":
            raise OptionError(
                f"determinism={options.determinism!r} is not promised by {backend.name}: its dots and sums add in an "
                "order of their own, which depends on the tile",
                step="write determinism='run'",
            )
        return Target(backend, machine, pipeline)

    def order(self, options: Options) -> str:
        """The determinism in force: unless asked for, batch in this process and run on other devices."""
        return options.determinism or ("batch" if self.backend.device == "cpu" else "run")

    @property
    def name(self) -> str:
        return f"{self.backend.name}:{self.machine.name}"


def pipeline_of(options: Options) -> Pipeline:
    """The pipeline asked for, or the default one."""
    if isinstance(options.passes, Pipeline):
        return options.passes
    if isinstance(options.passes, str):
        return Pipeline.parse(options.passes, PASSES)
    pipeline = materialising_pipeline() if options.materialise else default_pipeline()
    if options.precision == "model":
        return pipeline
    # after recognize, which knows models by the casts they are written with; before weights are laid out
    return pipeline.before("hoist-weights", SetPrecision(options.precision))


@cache
def sources_hash() -> str:
    """The hash of this package's own code: a change to any pass, kernel or printer is another code key."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def plugins_of(pipeline: Pipeline) -> dict[str, str]:
    """For each class that a pass from outside this package is made of, the hash of all source beside it.

    All of its package (or, for a single module, its folder's modules that are loaded): a pass may call any of it.
    """
    found = {}
    for p in pipeline.passes:
        for kind in type(p).__mro__:
            root = kind.__module__.partition(".")[0]
            if root in ("tilewright", "builtins", "abc", "typing"):
                continue
            try:
                own = Path(inspect.getfile(kind)).resolve()
            except (OSError, TypeError) as fault:
                raise PassOptionError(
                    f"the source of pass {p.name} cannot be read, so nothing made with it can be cached: {fault}",
                    step="define the pass in a file, or compile with cache=False",
                ) from fault
            found[f"{kind.__module__}.{kind.__qualname__}"] = _source_hash(own, root)
    return found


def _source_hash(own: Path, root: str) -> str:
    """The hash of a class's file, of its top-level package, and of loaded modules from the same folder."""
    files = {own}
    for name, module in list(sys.modules.items()):
        place = Path(getattr(module, "__file__", None) or ".")
        # some modules name a file that never was, relative to nothing ("_classes.py")
        if place.suffix == ".py" and place.is_absolute() and place.is_file():
            same = name.partition(".")[0] == root or place.resolve().parent == own.parent
            files |= {place.resolve()} if same else set()
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def code_factors(captured: Captured, target: Target, options: Options) -> dict[str, Any]:
    """Everything that decides the program and its objects: graph, dims, machine, pipeline, options, toolchain."""
    return {
        "kind": "code",
        "graph": hashlib.sha256(print_module(captured.module).encode()).hexdigest(),
        "signature": key_of(captured.signature.to_json()),
        "guards": [str(g) for g in captured.guards],
        "reads": [list(r) for r in captured.reads],
        "aliases": dict(sorted(captured.aliases.items())),
        "transient": sorted(captured.transient),
        "names": key_of(sorted({*captured.weights, *captured.states})),
        "dims": [[d.name, d.min, d.max, d.kind] for d in captured.dims],
        "machine": target.machine.key(),
        "backend": target.backend.name,
        "pipeline": str(target.pipeline),
        "plugins": plugins_of(target.pipeline),
        "options": {**options.key(), "determinism": target.order(options)},
        "toolchain": {**target.backend.toolchain(), "torch": version("torch"), "xdsl": version("xdsl")},
        "tilewright": sources_hash(),
    }


def generate(
    captured: Captured, target: Target, options: Options, watch: Stopwatch, instruments: tuple[Instrument, ...] = ()
) -> tuple[Code, dict[str, Any]]:
    """Runs the passes, compiles the kernels and assembles the program. The captured module is consumed."""
    # what programs need besides kernels depends on the machine alone: it is made while the passes run
    with ThreadPoolExecutor(1) as beside:
        runtime = beside.submit(target.backend.runtime_objects, target.machine)
        return _generated(captured, target, options, watch, instruments, runtime)


def _generated(
    captured: Captured,
    target: Target,
    options: Options,
    watch: Stopwatch,
    instruments: tuple[Instrument, ...],
    runtime: Future[Mapping[str, bytes]],
) -> tuple[Code, dict[str, Any]]:
    module, space = captured.module, DimSpace(captured.dims)
    ctx = Context(
        machine=target.machine,
        dims=space,
        options={"precision": options.precision, "determinism": target.order(options)},
    )
    texts: dict[str, str] = {}
    with watch.stage("passes"):
        texts["captured"] = print_module(module)
        watched = _Texts(texts)
        run_pipeline(target.pipeline, module, ctx, instruments=(*instruments, watched))
        texts["tile"] = print_module(module)
    with watch.stage("kernels"):
        built = build_kernels(kernels_of(module), target.backend, target.machine, watch=watch)
    with watch.stage("assemble"):
        program = assemble(
            module, Interface.of(captured), built.symbols, built.infos, target=target.name, dims=space,
            device=target.backend.device,
        )  # fmt: skip
        objects = {**built.objects, **runtime.result()}
    facts = {
        **facts_of(ctx, watched.structured or {}), "pipeline": str(target.pipeline), "options": dict(ctx.options),
        "model": captured.source.model,
    }  # fmt: skip
    return Code(program, objects, built.sources, texts, built.features), facts


STRUCTURED: Final = ("attention", "norm", "rotary", "softmax", "experts")
"""Ops of the graph dialect that count as patterns where they stay whole."""


def facts_of(ctx: Context, structured: Mapping[str, int]) -> dict[str, Any]:
    """What the report tells of the passes: applications by pass, patterns by name, refusals with their reasons.

    structured: ops that stayed whole, recognised by a pass or handed over so by the frontend; they count as patterns.
    """
    recognised = Counter(a.what for a in ctx.applied if a.pass_name == "recognize")
    return {
        "applied": dict(sorted(Counter(a.pass_name for a in ctx.applied).items())),
        "patterns": dict(sorted({**recognised, **structured}.items())),
        "refused": [
            {"pass": r.pass_name, "op": r.op, "reason": r.reason, "where": r.where} for r in dict.fromkeys(ctx.refused)
        ],
    }


class _Texts:
    """Keeps the graph's text as it is when grouping is done, and counts its structured ops before layers are shared."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.structured: Counter[str] | None = None

    @contextmanager
    def around(self, p: Any, module: ModuleOp, ctx: Context) -> Iterator[None]:
        if p.name in ("dedupe-layers", "fuse", "materialise") and self.structured is None:
            self.structured = Counter(
                name for op in module.walk() if (name := op.name.removeprefix("graph.")) in STRUCTURED
            )
        if p.name == "lower-to-tile":
            self.texts["graph"] = print_module(module)
        yield


@dataclass(frozen=True)
class Kernels:
    """Built kernels. symbols, sources: by the kernel's name. objects: by symbol. features: of the CPU that they use.

    grids: by symbol, how kernels are launched that a device's own grid runs.
    """

    symbols: Mapping[str, str]
    objects: Mapping[str, bytes]
    sources: Mapping[str, str]
    features: tuple[str, ...]
    grids: Mapping[str, Grid]

    @property
    def infos(self) -> list[KernelInfo]:
        """An entry for each symbol, with one of its kernels' names."""
        names = {self.symbols[n]: n for n in sorted(self.symbols)}
        grids: dict[str, dict[str, Any]] = {s: {"grid": grid.plain()} for s, grid in self.grids.items()}
        return [KernelInfo(s, s, {"name": n, **grids.get(s, {})}) for s, n in names.items()]


def build_kernels(
    kernels: Mapping[str, KernelOp],
    backend: Backend,
    machine: Machine,
    *,
    instrument: bool = False,
    watch: Stopwatch | None = None,
) -> Kernels:
    """Kernels to objects; equal kernels compile once. instrument: with counters, see `instrumented`.

    Raises TargetError for counters on a backend that takes tiles: they are woven into loops.
    """
    if instrument and backend.takes != "loops":
        raise TargetError(
            f"{backend.name} takes {backend.takes}s, and only loops carry counters", step="count with target='cpu'"
        )
    symbols: dict[str, str] = {}
    unique: dict[str, KernelOp] = {}
    for name, kernel in kernels.items():
        symbols[name] = "k" + hashlib.sha256(content_of(kernel).encode()).hexdigest()[:20] + ("c" if instrument else "")
        unique.setdefault(symbols[name], kernel)

    def lowered() -> Iterator[tuple[str, Source]]:
        for symbol, kernel in unique.items():
            renamed = kernel.clone()
            renamed.properties["sym_name"] = type(kernel.sym_name)(symbol)
            if backend.takes == "loops":
                yield symbol, lower_kernel(renamed, machine, instrument=instrument)
            else:
                yield symbol, renamed

    built = {}
    for symbol, future in backend.build(lowered(), machine).items():
        built[symbol] = future.result()
        if watch is not None:
            watch.tell("kernels", len(built), len(unique))
    return Kernels(
        symbols,
        {symbol: b.object for symbol, b in built.items()},
        {name: built[symbol].source for name, symbol in symbols.items()},
        tuple(sorted({feature for b in built.values() for feature in b.features})),
        {symbol: b.grid for symbol, b in built.items() if b.grid is not None},
    )
