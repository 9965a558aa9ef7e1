"""`tilewright compile MODEL -o FILE`: one artifact for the whole range of the declared dims."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tilewright.cli.options import (
    Cache,
    Determinism,
    Dims,
    MemoryLimit,
    ModelArgument,
    Passes,
    Precision,
    Target,
    Threads,
    compile_given,
    compile_options,
)
from tilewright.cli.writing import require_place
from tilewright.errors import OptionError

Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="Where the artifact goes.", show_default=False)
]
Expect = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=COUNT",
        help="A pattern count that must hold: attention=6. May be repeated.",
        show_default=False,
    ),
]


def compile_model(
    model: ModelArgument,
    output: Output,
    dims: Dims = None,
    target: Target = "cpu",
    precision: Precision = "model",
    passes: Passes = None,
    determinism: Determinism = None,
    expect: Expect = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    cache: Cache = None,
) -> None:
    """Compiles a model into an artifact for `run` and tw.load."""
    from tilewright.cli.models import open_model
    from tilewright.errors import TargetError
    from tilewright.ir.backend import resolve_target
    from tilewright.runtime.memory import shown

    require_place("-o", output, "model.tilewright")
    options = compile_options(
        target=target,
        precision=precision,
        passes=passes,
        determinism=determinism,
        expect=parse_counts(expect),
        threads=threads,
        memory_limit=memory_limit,
        cache=cache,
    )
    backend, _ = resolve_target(options.get("target", "cpu"))
    if (absent := backend.device.why_not_here()) is not None:
        raise TargetError(
            f"an artifact holds what runs in a process, and this one has no executor for {backend.name}: {absent}",
            step="read its kernels from tw.compile(...).sources, or give a target that runs here",
        )
    begin = time.perf_counter()
    compiled = compile_given(open_model(model), dims, options)
    compiled.save(output)
    program = compiled.code.program
    print(
        f"{output}: {shown(output.stat().st_size)}, {len(program.main.steps)} steps, {len(program.symbols)} kernels "
        f"for {program.target}, dims {'; '.join(map(str, program.dims)) or 'none'}; "
        f"{time.perf_counter() - begin:.1f} s, cache {compiled.facts.cache.partition(' (')[0]}"
    )


def parse_counts(texts: list[str] | None) -> dict[str, int] | None:
    """`attention=6`, each, as a mapping."""
    counts = {}
    for text in texts or []:
        name, _, count = text.partition("=")
        if not name or not count.isdigit():
            raise OptionError(f"--expect {text!r} is not a pattern and its count", step="write --expect attention=6")
        counts[name] = int(count)
    return counts or None
