"""compile(): from a model and example inputs to a callable."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilewright.compiler.checking import FirstCall, check_expected, check_names
from tilewright.compiler.code_key import code_factors
from tilewright.compiler.compilation import generate
from tilewright.compiler.compiled import Compiled
from tilewright.compiler.linking import ready
from tilewright.compiler.options import Options
from tilewright.compiler.stopwatch import Progress, Stopwatch
from tilewright.compiler.store import Store
from tilewright.compiler.target import Target
from tilewright.compiler.verify_each import NumericCheck
from tilewright.errors import ArgumentError
from tilewright.frontend.captured import Captured
from tilewright.frontend.capturing import capture, load_program
from tilewright.frontend.directories import open_directory
from tilewright.ir.choices import CompileOptions
from tilewright.ir.module import print_module
from tilewright.runtime.native import NativeLibrary
from tilewright.runtime.threads import ThreadPool
from tilewright.runtime.weights import WeightSet


def compile_model(
    model: Any,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dims: Any = None,
    *,
    progress: Progress | None = None,
    **given: Any,
) -> Compiled:
    """See tilewright.compile. progress: told what runs, see `Progress`."""
    if not isinstance(args, (tuple, list)):
        raise ArgumentError(
            f"args is a {type(args).__name__}, not a tuple of the example's positional arguments",
            step="write args=(x,)",
        )
    options = Options.of(given)
    check_names(options.expect)
    watch = Stopwatch(progress)
    target = Target.of(options)
    target.backend.warm()
    notes: list[str] = []
    if isinstance(model, (str, os.PathLike)):
        model, args, kwargs, dims, notes = _opened(Path(model), args, kwargs, dims)

    def captures() -> Captured:
        return capture(model, args, dict(kwargs or {}), dims, fallback=options.fallback)

    with watch.stage("capture"):
        captured = captures()
    compiled = finish(captured, target, options, watch, notes)
    if options.check == "first" and compiled.executable is not None:
        compiled.first_call = FirstCall(model, captures, target, CompileOptions(**compiled.facts.options))
    return compiled


def finish(
    captured: Captured, target: Target, options: Options, watch: Stopwatch, notes: Sequence[str] = ()
) -> Compiled:
    """A captured model to a callable: code from the cache or generated, weights packed or mapped."""
    store = Store.of(options)
    with watch.stage("key"):
        text = print_module(captured.module)
        factors = code_factors(captured, text, target, options)
    if options.verify_each == "numeric":
        # what is found in the cache has run no pass that could be verified
        (code, facts), origin = generate(captured, text, target, options, watch, (NumericCheck(),)), "off (verify_each)"
    else:
        code, facts, origin = store.code(factors, lambda: generate(captured, text, target, options, watch))
    check_expected(options.expect, facts)
    # the graph is the code's key: what its capture noted is not, and another model may have the same graph
    told = replace(facts, model=captured.source.model, notes=(*notes, *captured.notes, *facts.notes))

    def hold(library: NativeLibrary, pool: ThreadPool) -> WeightSet:
        with watch.stage("weights"):
            tensors = {**captured.weights, **captured.states}
            wanted = {spec.name for spec in code.program.weights}
            chosen = {n: t for n, t in tensors.items() if n in wanted}
            return store.weights(code, library, pool, chosen, model=captured.source.model)

    return ready(
        code, told, hold, watch, origin=origin, here=target.runs_here, threads=options.threads,
        memory_limit=options.memory_limit, host=captured.externs,
    )  # fmt: skip


def _opened(
    path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, dims: Any
) -> tuple[Any, tuple[Any, ...], Mapping[str, Any] | None, Any, list[str]]:
    """A path's model with what compile() was given; a directory brings inputs and dims where none were given."""
    if not path.is_dir():
        return load_program(path), args, kwargs, dims, []
    found = open_directory(path)
    if args or kwargs:
        return found.model, args, kwargs, dims, []
    return found.model, (), found.kwargs, found.dims if dims is None else dims, [found.note]
