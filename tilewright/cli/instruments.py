"""What `opt` watches passes with: their time, the IR after them, and those that had nothing to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from tilewright.ir.passing import Context, Pass


class Clock:
    """The seconds of each pass, in the order they ran; a pass that ran twice has two rows."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    @contextmanager
    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> Iterator[None]:
        """Times one pass, its verification included."""
        begin, before = time.perf_counter(), len(ctx.applied)
        try:
            yield
        finally:
            self.rows.append((p.name, time.perf_counter() - begin, len(ctx.applied) - before))

    def show(self) -> None:
        """The rows and their sum, on stderr."""
        from tilewright.cli.tables import show

        total = sum(seconds for _, seconds, _ in self.rows)
        rows = [
            (name, f"{seconds * 1e3:.2f} ms", f"{100 * seconds / total if total else 0:.0f} %", applied)
            for name, seconds, applied in [*self.rows, ("total", total, sum(n for _, _, n in self.rows))]
        ]
        show(("pass", "time", "share", "applied"), rows, numbers=(1, 2, 3), error=True)


class Printer:
    """Prints the module after passes: all of them, those that changed it, or those of one name."""

    def __init__(self, which: str, stream: TextIO) -> None:
        self.which = which
        self.stream = stream

    @contextmanager
    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> Iterator[None]:
        """Prints after one pass."""
        from tilewright.ir.module import print_module

        before = print_module(module) if self.which == "changed" else ""
        yield
        after = print_module(module)
        if self.which == "all" or self.which == p.name or (self.which == "changed" and after != before):
            self.stream.write(f"// ----- after {p} -----\n{after}")
        elif self.which == "changed":
            self.stream.write(f"// ----- after {p}: unchanged -----\n")


class Idle:
    """Says which passes changed nothing while what they build on did not run: text that was fused before is fine."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._done: set[str] = set()

    @contextmanager
    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> Iterator[None]:
        """Watches one pass."""
        from tilewright.ir.module import print_module

        missing = [required for required in p.requires if not self._done & set(required.split("|"))]
        self._done.add(p.name)
        before = print_module(module) if missing else ""
        yield
        if missing and print_module(module) == before:
            after = " and ".join(required.replace("|", " or ") for required in missing)
            self.stream.write(f"{p.name} changed nothing: it works on what {after} makes, which did not run\n")
