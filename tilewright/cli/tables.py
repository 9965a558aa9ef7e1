"""Tables on stdout: as wide as the terminal, and unbroken where the output goes to a file or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def show(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[int] = (), error: bool = False
) -> None:
    """Prints rows under headings; the columns in `numbers` are aligned right. error: on stderr."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if error else sys.stdout
    # without colours, without bold
    heading_style = "" if os.environ.get("NO_COLOR") else "table.header"
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style=heading_style)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i in numbers else "left", overflow="fold")
    for row in rows:
        # plain text: what is shown may hold brackets, which are no markup
        table.add_row(*(Text(str(cell)) for cell in row))
    width = None if stream.isatty() else 10_000
    console = Console(file=stream, width=width, highlight=False, soft_wrap=False)
    if width is None:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), file=stream)
