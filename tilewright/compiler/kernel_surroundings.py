"""What a kernel's function reads beside its arguments: a kernel that was built with other values is another kernel."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

_PACKAGE: Final = __name__.partition(".")[0]
_ABSENT: Final = object()
_CONTAINERS: Final = (list, tuple, set, frozenset, dict)


class Surroundings:
    """Globals, closures, defaults and named attributes of what a function and the user's functions it calls name.

    Numbers, texts and containers of such are compared by value, everything else by identity: what is inside an object
    counts where the functions ask for it by name. Libraries are taken to stay what they are.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._reads: list[tuple[Callable[[], Any], Any]] = []
        self._seen: set[int] = set()
        if isinstance(function, types.FunctionType):
            self._follow(function)

    def are_as_before(self) -> bool:
        """Whether every value is what it was when this was made."""
        for read, before in self._reads:
            value = read()
            if value is not before and not _same(value, before):
                return False
        return True

    def _follow(self, function: types.FunctionType) -> None:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        names = set(_names_in(function.__code__))
        for name in sorted(names & function.__globals__.keys()):
            self._value(partial(function.__globals__.get, name, _ABSENT), names)
        for cell in function.__closure__ or ():
            self._value(partial(_contents, cell), names)
        for place in ("__code__", "__defaults__", "__kwdefaults__"):
            self._value(partial(getattr, function, place), set())

    def _value(self, read: Callable[[], Any], names: set[str]) -> None:
        found = read()
        self._reads.append((read, _copied(found)))
        if isinstance(found, types.FunctionType):
            if not _is_a_librarys(found.__module__):
                self._follow(found)
        elif id(found) not in self._seen and not isinstance(found, (*_CONTAINERS, str, int, float)):
            self._seen.add(id(found))
            if isinstance(found, types.ModuleType) and _is_a_librarys(found.__name__):
                return
            held = getattr(found, "__dict__", {})
            for name in sorted(names & held.keys()):
                self._value(partial(held.get, name, _ABSENT), names)


def _names_in(code: types.CodeType) -> Iterator[str]:
    """The names that code and the functions written inside it load."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


def _is_a_librarys(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    if root in sys.stdlib_module_names:
        return root != "__main__"
    place = getattr(sys.modules.get(root), "__file__", None)
    return root == _PACKAGE or (place is not None and "site-packages" in Path(place).parts)


def _copied(value: Any) -> Any:
    """The value as it is now: containers that are changed later are copied, those inside others included."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_copied(item) for item in value])
    return type(value)(value) if type(value) in (set, frozenset) else value


def _same(value: Any, before: Any) -> bool:
    if type(value) is not type(before):
        return False
    if type(value) is dict:
        return value.keys() == before.keys() and all(
            value[key] is v or _same(value[key], v) for key, v in before.items()
        )
    if type(value) in (list, tuple):
        return len(value) == len(before) and all(a is b or _same(a, b) for a, b in zip(value, before, strict=True))
    return isinstance(value, (bool, int, float, complex, str, bytes, set, frozenset)) and bool(value == before)
