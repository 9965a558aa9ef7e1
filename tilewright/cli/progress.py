"""What a person at a terminal sees while something takes long; nothing of it reaches stdout, or a file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]


def say(text: str) -> None:
    """A line on stderr: what was assumed or written."""
    print(text, file=sys.stderr)


@contextlib.contextmanager
def watching() -> Iterator[Progress | None]:
    """A callback (stage, done, total) that draws a bar on a terminal, None elsewhere; it is gone afterwards."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def show(stage: str, done: int, total: int) -> None:
            # a stage without a count shows a pulse
            bars.update(task, description=stage, completed=done, total=total or None)

        yield show
