"""compile(): from a model and example inputs to a callable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilewright.compiler.compilation import Stopwatch, Target, generate
from tilewright.compiler.compiled import Compiled
from tilewright.compiler.options import Options
from tilewright.compiler.store import Store
from tilewright.frontend import capture
from tilewright.runtime.executor import Executable
from tilewright.runtime.native import load as load_objects
from tilewright.runtime.threads import Driver, thread_pool


def compile_model(
    model: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, dims: Any = None, **given: Any
) -> Compiled:
    """See tilewright.compile."""
    options = Options.of(given)
    watch = Stopwatch()
    target = Target.of(options)
    target.backend.warm()
    with watch.stage("capture"):
        captured = capture(model, args, dict(kwargs or {}), dims, fallback=options.fallback)
    store = Store.of(options)
    code, facts = store.code(captured, target, options, watch)
    with watch.stage("load"):
        library = load_objects(code.objects.values(), code.program.symbols)
        pool = thread_pool(Driver.of(code.objects["driver"]))
    with watch.stage("weights"):
        weights = store.weights(code.program, library, pool, captured)
    executable = Executable(
        code.program, library, weights, pool, threads=options.threads, memory_limit=options.memory_limit
    )
    facts = {**facts, "seconds": dict(watch.seconds), "notes": list(captured.notes), "model": captured.source.model}
    compiled = Compiled(code, executable, facts)
    return compiled


__all__ = ["compile_model", "generate"]
