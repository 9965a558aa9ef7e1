"""compile(): from a model and example inputs to a callable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilewright.compiler.checking import FirstCall, check_expected, check_names
from tilewright.compiler.code import Code
from tilewright.compiler.code_key import code_factors
from tilewright.compiler.compilation import generate
from tilewright.compiler.compiled import Compiled
from tilewright.compiler.full_collections import put_off
from tilewright.compiler.linking import ready
from tilewright.compiler.options import Options
from tilewright.compiler.stopwatch import Progress, Stopwatch
from tilewright.compiler.store import Store
from tilewright.compiler.taken import Memory, Taken
from tilewright.compiler.target import Target
from tilewright.compiler.verify_each import NumericCheck
from tilewright.errors import ArgumentError, TilewrightError
from tilewright.frontend.captured import Captured, Proof, Unproved
from tilewright.frontend.capturing import capture_unproved, load_program
from tilewright.frontend.directories import open_directory
from tilewright.frontend.identity import bytes_of, tensors_of
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.module import parse_module, print_module
from tilewright.runtime.facts import Facts
from tilewright.runtime.native import NativeLibrary
from tilewright.runtime.threads import ThreadPool
from tilewright.runtime.weights import WeightSet


@put_off()
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
    options = Options.of(given, more=("args", "kwargs", "dims"))
    check_names(options.expect)
    watch = Stopwatch(progress)
    target = Target.of(options)
    target.backend.warm()
    notes: list[str] = []
    if isinstance(model, (str, os.PathLike)):
        model, args, kwargs, dims, notes = _opened(Path(model), args, kwargs, dims)

    def begins() -> Unproved:
        return capture_unproved(model, args, dict(kwargs or {}), dims, fallback=options.fallback)

    def captures() -> Captured:
        return begins().proved()

    compiled = _compiled(begins, (model, args, dict(kwargs or {}), dims), target, options, watch, notes)
    if options.check == "first" and compiled.executable is not None:
        compiled.first_call = FirstCall(model, captures, target, CompileOptions(**compiled.facts.options))
    return compiled


def _compiled(
    captures: Callable[[], Unproved],
    given: tuple[Any, Any, Any, Any],
    target: Target,
    options: Options,
    watch: Stopwatch,
    notes: Sequence[str],
) -> Compiled:
    """Code for what was captured before, where the key of the model proves that it is the same; else it is captured."""
    store = store_of(options)
    try:
        with watch.stage("identity"):
            if store.cache is not None and target.runs_here:
                # their digests are part of a key at the end; until then one core has nothing to do
                store.contents.begin(tensors_of(given[0]).values())
            memory = Memory.of(store, *given, fallback=options.fallback)
        known = remembered(memory, target, options, watch, notes)
        if known is not None:
            return known
        # an unproved identity is no sign that the weights are new: they may be packed already
        if target.runs_here and (store.cache is None or memory.identity.factors is not None):
            store.begin_room(bytes_of(given[0], options.float_bytes))
        with watch.stage("capture"):
            unproved = captures()
        return finish(unproved, target, options, watch, notes, memory)
    finally:
        store.forget()


def remembered(
    memory: Memory, target: Target, options: Options, watch: Stopwatch, notes: Sequence[str]
) -> Compiled | None:
    """The callable of a model whose capture and code are known, its own weights packed or mapped."""
    if memory.taken is None:
        return None
    with watch.stage("key"):
        found = memory.store.code_if_there(code_factors(memory.taken, target, options))
    if found is None:
        return None
    return _linked(*found, "hit", memory.taken, options, target, memory.store, watch, notes)


def store_of(options: Options) -> Store:
    """Where a compilation keeps things: what is found in a cache has run no pass that could be verified."""
    return Store(None) if options.verify_each == "numeric" else Store.of(options)


def finish(
    found: Captured | Unproved,
    target: Target,
    options: Options,
    watch: Stopwatch,
    notes: Sequence[str] = (),
    memory: Memory | None = None,
) -> Compiled:
    """A captured model to a callable: code from the cache or generated, weights packed or mapped.

    A capture is proved while its kernels compile. Where that finds sizes that the graph is not right at, the code is
    made once more, for the others. memory: where the capture is kept, if it is.
    """
    captured, proof = (found.captured, _Proving(found, watch)) if isinstance(found, Unproved) else (found, None)
    store = memory.store if memory is not None else Store.of(options)
    with watch.stage("key"):
        text = print_module(captured.module)
        taken = Taken.of(captured, text, f"made ({memory.why})" if memory is not None and memory.why else "made")
        factors = code_factors(taken, target, options)
    checks = (NumericCheck(),) if options.verify_each == "numeric" else ()

    def build() -> tuple[Code, Facts]:
        return generate(captured, text, target, options, watch, checks, meanwhile=proof)

    if proof is not None:
        proof.text = text
    try:
        code, facts, origin = (*build(), "off (verify_each)") if checks else store.code(factors, build)
    except TilewrightError:
        # a graph that is not the model's says so first, whatever else became of it
        if proof is not None:
            proof()
        raise
    if proof is not None:
        proved = proof()
        if proved.guards:
            return finish(proved.of(captured, parse_module(text)), target, options, watch, notes, memory)
        captured = replace(captured, proved=proved.proved)
        taken = replace(taken, notes=(*taken.notes, *proved.notes))
    if memory is not None:
        memory.keep(captured, taken)
    return _linked(code, facts, origin, taken, options, target, store, watch, notes)


@dataclass
class _Proving:
    """The proof of a capture, or what refutes it: made when it is first called and known from then on.

    text: of the captured module.
    """

    unproved: Unproved
    watch: Stopwatch
    text: str = ""
    found: Proof | TilewrightError | None = None

    def __call__(self) -> Proof:
        if self.found is None:
            try:
                with self.watch.stage("proof"):
                    self.found = self.unproved.prove(lambda: parse_module(self.text))
            except TilewrightError as fault:
                self.found = fault
        if isinstance(self.found, TilewrightError):
            raise self.found
        return self.found


def _linked(
    code: Code,
    facts: Facts,
    origin: str,
    taken: Taken,
    options: Options,
    target: Target,
    store: Store,
    watch: Stopwatch,
    notes: Sequence[str],
) -> Compiled:
    check_expected(options.expect, facts)
    # the graph is the code's key: what its capture noted is not, and another model may have the same graph
    told = replace(facts, model=taken.model, notes=(*notes, *taken.notes, *facts.notes))

    def hold(library: NativeLibrary, pool: ThreadPool) -> WeightSet:
        with watch.stage("weights"):
            tensors = {**taken.weights, **taken.states}
            wanted = {spec.name for spec in code.program.weights}
            chosen = {n: t for n, t in tensors.items() if n in wanted}
            return store.weights(code, library, pool, chosen, model=taken.model)

    return ready(
        code, told, hold, watch, origin=origin, capture=taken.origin, here=target.runs_here, threads=options.threads,
        memory_limit=options.memory_limit, host=taken.externs,
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
