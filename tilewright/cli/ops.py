"""`tilewright ops [NAME]`: every op of the IR, from its own declaration."""

from __future__ import annotations

import difflib
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright.errors import OptionError

if TYPE_CHECKING:
    from tilewright.ir.catalogue import OpEntry

Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="A dialect or an op: graph, graph.matmul.", show_default=False)
]


def ops(name: Name = None) -> None:
    """Lists the ops of the IR, or explains one."""
    from tilewright.cli.tables import show
    from tilewright.ir.catalogue import catalogue

    entries = catalogue()
    dialects = list(dict.fromkeys(entry.dialect for entry in entries))
    if name is None or name in dialects:
        show(("op", "what it is"), [(e.name, e.doc) for e in entries if name in (None, e.dialect)])
        return
    found = next((e for e in entries if e.name == name), None)
    if found is None:
        known = [e.name for e in entries]
        near = difflib.get_close_matches(name, known, n=1) or [n for n in known if n.endswith(f".{name}")]
        raise OptionError(
            f"no op or dialect is called {name!r}",
            step=f"did you mean {near[0]!r}?"
            if near
            else f"tilewright ops lists them; the dialects are {', '.join(dialects)}",
        )
    _explain(found)


def _explain(entry: OpEntry) -> None:
    print(entry.signature)
    print(textwrap.indent(entry.doc, "  "))
    for listed, what in ((entry.operands, "operands"), (entry.results, "results")):
        print(f"  {what}: {', '.join(listed) or 'none'}")
    for declared in entry.properties:
        print(f"  {declared}")
    if entry.dialect == "graph":
        from tilewright.passes.lower_to_tile.skeletons import skeletons_for

        for skeleton in skeletons_for(entry.name):
            print(f"  lowered by {skeleton.kind}: {skeleton.doc}")
