"""`tilewright explain CODE`: an error's meaning, with an example that raises it and one that does not."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from typing import Annotated

import typer

from tilewright.errors import OptionError, TilewrightError, all_errors

Code = Annotated[str | None, typer.Argument(metavar="[CODE]", help="TW004, or a class's name.", show_default=False)]


def explain(code: Code = None) -> None:
    """Explains an error by its code, or lists all codes."""
    if code is None:
        from tilewright.cli.tables import show

        show(("code", "class", "title"), [(c, cls.__name__, cls.title) for c, cls in all_errors().items()])
        return
    print(page(find(code)))


def find(code: str) -> type[TilewrightError]:
    """The class of a code ("TW004", "tw4", "4") or of a class's name. OptionError names the nearest."""
    known = all_errors()
    digits = code.upper().removeprefix("TW")
    if digits.isdigit() and f"TW{int(digits):03}" in known:
        return known[f"TW{int(digits):03}"]
    for cls in known.values():
        if cls.__name__.lower() == code.lower():
            return cls
    # a code that does not exist is no misspelt one: only names have near ones
    near = [] if digits.isdigit() else difflib.get_close_matches(code, [c.__name__ for c in known.values()], n=1)
    raise OptionError(
        f"no error has the code or name {code!r}",
        step=f"did you mean {near[0]}?" if near else "tilewright explain lists them",
    )


def page(cls: type[TilewrightError]) -> str:
    """What an error means, and how it comes and goes."""
    from tilewright.cli.error_examples import EXAMPLES, SETUP

    example = EXAMPLES[cls.code]
    parts = [f"{cls.code} {cls.title} ({cls.__name__})", inspect.cleandoc(cls.__doc__ or "")]
    parts += [f"With\n{_indented(SETUP)}"] if example.runs else []
    parts += [f"this raises it:\n{_indented(example.bad)}", f"and this does not:\n{_indented(example.fixed)}"]
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return textwrap.indent(text.strip(), "    ")
