"""`tilewright passes [NAME]`: every pass with its options, and the default pipeline."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright.errors import OptionError

if TYPE_CHECKING:
    from tilewright.ir.passing import Pass

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A pass.", show_default=False)]


def passes(name: Name = None) -> None:
    """Lists the passes and the default pipeline, or explains one."""
    from tilewright.cli.tables import show
    from tilewright.compiler.pipelines import legalizing
    from tilewright.ir.backend import backends
    from tilewright.ir.passing import Pipeline
    from tilewright.passes.pipeline import PASSES, default_pipeline

    if name is None:
        show(
            ("pass", "what it does", "options"),
            [(n, _line(PASSES[n]()), ", ".join(options(PASSES[n]()))) for n in PASSES],
        )
        print(f"\nThe default pipeline: {default_pipeline()}")
        for backend in backends().values():
            if backend.legalize:
                print(f"After it, for {backend.name}: {Pipeline(legalizing(backend))}")
        return
    if name not in PASSES:
        near = difflib.get_close_matches(name, list(PASSES), n=1)
        raise OptionError(
            f"no pass is called {name!r}", step=f"did you mean {near[0]!r}?" if near else "tilewright passes lists them"
        )
    found = PASSES[name]()
    print(f"{name}\n\n{inspect.getdoc(found) or ''}\n")
    print(f"options: {', '.join(options(found)) or 'none'}")
    if found.requires:
        print(f"runs after: {', '.join(name.replace('|', ' or ') for name in found.requires)}")
    print(f"write: {name}" + (f"{{{options(found)[0]}}}" if options(found) else ""))


def options(found: type[Pass]) -> list[str]:
    """A pass's options as a pipeline writes them, with their defaults: ["max-ops=32"]."""
    from tilewright.ir.passing import option_text

    return [f"{f.name.replace('_', '-')}={option_text(f.default)}" for f in dataclasses.fields(found)]


def _line(found: type[Pass]) -> str:
    """The docstring's first paragraph on one line."""
    return " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
