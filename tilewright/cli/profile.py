"""`tilewright profile MODEL|ARTIFACT`: the report with a measured column, at one tuple of sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tilewright.cli.options import (
    At,
    Cache,
    Determinism,
    Dims,
    Inputs,
    Passes,
    Precision,
    SourceArgument,
    Target,
    Threads,
    compile_options,
    open_source,
)

# Times this far apart are told.
_FAR: Final = 3.0

if TYPE_CHECKING:
    from tilewright.compiler.report import Report
    from tilewright.runtime.executor import Profile

Seed = Annotated[int, typer.Option("--random", metavar="SEED", min=0, help="Of the inputs that are not given.")]
Warmup = Annotated[int, typer.Option(min=0, help="Calls before the timed ones.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, help="Timed calls; the median one is shown.")]
Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json", help="Also write the steps for chrome://tracing or Perfetto.", show_default=False
    ),
]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the report as one page.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def profile(
    source: SourceArgument,
    at: At = None,
    inputs: Inputs = None,
    random: Seed = 0,
    warmup: Warmup = 3,
    count: Count = 5,
    trace: Trace = None,
    html: Html = None,
    as_json: Json = False,
    dims: Dims = None,
    target: Target = "cpu",
    precision: Precision = "model",
    passes: Passes = None,
    determinism: Determinism = None,
    threads: Threads = None,
    cache: Cache = None,
) -> None:
    """Prints the report with a clock around every step."""
    from tilewright.cli.flags import for_command_line
    from tilewright.cli.inputs import read_arrays
    from tilewright.cli.progress import say
    from tilewright.cli.run import call_for
    from tilewright.cli.writing import require_place, writing

    require_place("--trace", trace, "trace.json")
    require_place("--html", html, "report.html")
    arrays = read_arrays(inputs or [])
    compiled = open_source(
        source,
        dims,
        compile_options(
            target=target, precision=precision, passes=passes, determinism=determinism, threads=threads, cache=cache
        ),
    )
    args, kwargs, sizes = call_for(compiled, arrays, at, random)
    for _ in range(warmup):
        compiled(*args, **kwargs)
    calls = sorted((compiled.profile(*args, **kwargs) for _ in range(count)), key=lambda each: _seconds(each.profile))
    measured = calls[(count - 1) // 2]
    found = measured.at(**sizes) if sizes else measured
    print(json.dumps(found.to_dict(), default=str, indent=2) if as_json else for_command_line(str(found)).rstrip())
    if found.profile is not None:
        spread = f", of {_seconds(calls[0].profile) * 1e3:.2f} to {_seconds(calls[-1].profile) * 1e3:.2f} ms"
        say(
            f"the {'median of ' + str(count) + ' timed calls' if count > 1 else 'timed call'} took "
            f"{found.profile.seconds * 1e3:.2f} ms{spread if count > 1 else ''} on {found.profile.threads} threads"
        )
        if told := far_apart(found):
            say(told)
        if trace is not None:
            with writing("--trace", trace):
                trace.write_text(json.dumps(trace_events(found.profile)), encoding="utf-8")
            say(f"wrote {trace}")
    if html is not None:
        found.save_html(html)
        say(f"wrote {html}")


def far_apart(found: Report) -> str:
    """A line where all kernels together took much more or less than the machine's description predicts, else empty."""
    measured = sum(row.measured or 0.0 for row in found.rows)
    predicted = sum(row.predicted or 0.0 for row in found.rows)
    if not measured or not predicted or 1 / _FAR < measured / predicted < _FAR:
        return ""
    more = measured > predicted
    times = measured / predicted if more else predicted / measured
    return (
        f"measured is {times:.1f} times as {'long' if more else 'short'} as predicted: "
        + ("others used the machine, or it is slower than its description" if more else "caches kept what it moves")
        + "; compare kernels by either column, not across them"
    )


def _seconds(profile: Profile | None) -> float:
    return profile.seconds if profile is not None else 0.0


def trace_events(measured: Profile) -> dict[str, Any]:
    """The steps in Chrome's trace event format, in microseconds from the first step's begin."""
    events = [
        {
            "name": step.name,
            "ph": "X",
            "pid": 0,
            "tid": 0,
            "ts": step.start * 1e6,
            "dur": step.seconds * 1e6,
            "args": {"symbol": step.symbol, "busy_us": step.busy * 1e6, "threads": measured.threads},
        }
        for step in measured.steps
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
