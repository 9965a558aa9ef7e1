"""`tilewright report MODEL|ARTIFACT`: what runs, what moves, what it costs, and what was refused and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

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
CompileTime = Annotated[
    bool, typer.Option("--compile-time", help="Compile without the cache and print what took how long instead.")
]
Attention = Annotated[
    bool, typer.Option("--attention", help="Print how each attention was tiled and what else was weighed instead.")
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


# What a stage is made of, as the report's data calls it and as a heading.
_PARTS: Final = {
    "passes": "passes: each with its verification",
    "lowering": "kernels: lowering to loops, here",
    "compiling": "kernels: compiling, in workers beside each other",
}


def report(
    source: SourceArgument,
    at: At = None,
    html: Html = None,
    as_json: Json = False,
    compile_time: CompileTime = False,
    attention: Attention = False,
    dims: Dims = None,
    target: Target = "cpu",
    precision: Precision = "model",
    passes: Passes = None,
    determinism: Determinism = None,
    cache: Cache = None,
) -> None:
    """Prints what runs, what moves, what was refused and why."""
    from tilewright.cli.dims_text import parse_sizes
    from tilewright.cli.flags import for_command_line
    from tilewright.cli.models import is_artifact
    from tilewright.cli.progress import say
    from tilewright.cli.writing import require_place
    from tilewright.errors import OptionError

    require_place("--html", html, "report.html")
    sizes = parse_sizes(at)
    if compile_time:
        if is_artifact(source):
            raise OptionError(
                f"{source} is an artifact, which is compiled already",
                step="leave --compile-time out, or give the model it was compiled from",
            )
        cache = "off"
    compiled = open_source(
        source,
        dims,
        compile_options(target=target, precision=precision, passes=passes, determinism=determinism, cache=cache),
    )
    found = compiled.report.at(**sizes) if sizes else compiled.report
    if compile_time and not as_json:
        _show_times(found.to_dict())
    elif attention and not as_json:
        print("\n".join(row.details for row in found.attentions) or "no attention")
    else:
        print(json.dumps(found.to_dict(), default=str, indent=2) if as_json else for_command_line(str(found)).rstrip())
    if html is not None:
        found.save_html(html)
        say(f"wrote {html}")


def _show_times(report: dict[str, Any]) -> None:
    """Stages in the order they ran, then their parts, the longest first."""
    from tilewright.cli.tables import show

    stages = report["seconds"]
    show(
        ("stage", "seconds"),
        [(n, f"{s:.3f}") for n, s in [*stages.items(), ("in all", sum(stages.values()))]],
        numbers=(1,),
    )
    for kind, parts in report["seconds_by_part"].items():
        print()
        longest = sorted(parts.items(), key=lambda item: -item[1])
        rows = [(name, f"{seconds:.3f}") for name, seconds in [*longest, ("in all", sum(parts.values()))]]
        show((_PARTS[kind], "seconds"), rows, numbers=(1,))
