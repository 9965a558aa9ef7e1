"""Keyword arguments that nobody takes: one error, which names the nearest that is taken."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, cast

from tilewright.errors import OptionError

Called = TypeVar("Called", bound=Callable[..., Any])

_FIRST: Final = frozenset({"self", "cls"})
_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def no_such_options(
    caller: str, unknown: Iterable[str], offered: Iterable[str], within: Mapping[str, type] | None = None
) -> OptionError:
    """The error for names that a caller does not take: "did you mean", or all that it takes.

    within: options whose value is an object with options of its own, by its public class: what belongs there is said.
    """
    names, known = list(unknown), sorted(offered)
    inside = [
        f"{option}=tw.{kind.__name__}({name}=...)"
        for name in names
        for option, kind in (within or {}).items()
        if name in _names_of(kind)
    ]
    near = [repr(found[0]) for name in names if (found := difflib.get_close_matches(name, known, n=1))]
    step = f"it has {', '.join(known)}" if known else f"leave out {', '.join(names)}"
    if inside:
        step = f"write {', '.join(inside)}"
    elif near:
        step = f"did you mean {', '.join(near)}?"
    return OptionError([f"{caller} has no option {name!r}" for name in names], step=step)


def known_options(*also: Callable[..., Any], within: Mapping[str, type] | None = None) -> Callable[[Called], Called]:
    """Makes a function, or a class's construction, refuse names it does not take by `no_such_options`.

    also: what takes the **options of the function that it does not name itself. within: as there.
    """

    def decorate(called: Called) -> Called:
        target = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
        own = _names_of(target)
        known = frozenset(own).union(*map(_names_of, also))

        @functools.wraps(target)
        def checked(*args: Any, **given: Any) -> Any:
            if not given.keys() <= known:
                unknown = [name for name in given if name not in known]
                # what was given by its place is not what was meant
                offered = known - _FIRST - set(own[: len(args)])
                raise no_such_options(f"{called.__name__}()", unknown, offered, within)
            return target(*args, **given)

        if not isinstance(called, type):
            return cast("Called", checked)
        called.__init__ = checked  # type: ignore[misc]
        return called

    return decorate


def _names_of(called: Callable[..., Any]) -> list[str]:
    return [p.name for p in inspect.signature(called).parameters.values() if p.kind in _NAMED]
