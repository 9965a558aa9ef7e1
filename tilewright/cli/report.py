"""`tilewright report MODEL|ARTIFACT`: what runs, what moves, what it costs, and what was refused and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tilewright.cli.options import (
    At,
    Cache,
    Determinism,
    Dims,
    Passes,
    Precision,
    SourceArgument,
    Target,
    compile_options,
    open_source,
)

Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write it as one page.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


def report(
    source: SourceArgument,
    at: At = None,
    html: Html = None,
    as_json: Json = False,
    dims: Dims = None,
    target: Target = "cpu",
    precision: Precision = "model",
    passes: Passes = None,
    determinism: Determinism = None,
    cache: Cache = None,
) -> None:
    """Prints what runs, what moves, what was refused and why."""
    from tilewright.cli.dims_text import parse_sizes
    from tilewright.cli.progress import say

    sizes = parse_sizes(at)
    compiled = open_source(
        source,
        dims,
        compile_options(target=target, precision=precision, passes=passes, determinism=determinism, cache=cache),
    )
    found = compiled.report.at(**sizes) if sizes else compiled.report
    print(json.dumps(found.to_dict(), default=str, indent=2) if as_json else str(found).rstrip())
    if html is not None:
        found.save_html(html)
        say(f"wrote {html}")
