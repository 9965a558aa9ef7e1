"""The last step of every compilation: code linked into this process, its weights held, on the process's threads.

compile(), @tw.kernel and load() all end here. Loading needs numpy, safetensors and llvmlite alone: nothing here imports
a tensor library, the IR's library or a code generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from tilewright.compiler.code import Code
from tilewright.compiler.compiled import Compiled
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.runtime import native
from tilewright.runtime.executor import Executable
from tilewright.runtime.facts import Account, Facts
from tilewright.runtime.launch import HostFunction
from tilewright.runtime.native import NativeLibrary
from tilewright.runtime.threads import ThreadPool, thread_pool
from tilewright.runtime.weights import WeightSet

DRIVER: Final = "driver"
"""The name, among a program's objects, of the code that walks its step table."""

Holding: TypeAlias = Callable[[NativeLibrary, ThreadPool], WeightSet]
"""Gives the program's weights; packing them runs @prepare, which is kernels of the same code on the same threads."""


def ready(
    code: Code,
    facts: Facts,
    hold: Holding,
    watch: Stopwatch,
    *,
    origin: str = "",
    capture: str = "",
    here: bool = True,
    threads: int | None = None,
    memory_limit: int | None = None,
    host: Mapping[str, HostFunction] | None = None,
    cleared: bool = False,
) -> Compiled:
    """The code as a callable. facts: for its report, to which what the stopwatch has is added.

    origin: where the code came from: a cache, an artifact, or why it was made. capture: where the graph came from.
    here: this process can run it; otherwise
    it is there to be read. See Executable for the other options.
    Raises CpuFeatureError where this CPU lacks what the code uses, ToolchainError where it does not link.
    """
    loaded = None
    if here:
        with watch.stage("load"):
            native.require_features(code.features)
            kernels = [data for name, data in code.objects.items() if name != DRIVER]
            library = native.load(kernels, code.program.symbols)
            pool = thread_pool(lambda: code.objects[DRIVER])
        weights = hold(library, pool)
        loaded = Executable(
            code.program, library, weights, pool, threads=threads, memory_limit=memory_limit, host=host, cleared=cleared
        )
    return Compiled(
        code, loaded, Account.of(facts, cache=origin, capture=capture, seconds=watch.seconds, parts=watch.parts)
    )
