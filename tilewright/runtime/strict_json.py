"""JSON's own types, checked one by one: what is read from a file must not hold a number where text is expected, and
True must not pass for 1. TypeError and ValueError say what stood where.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def text(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where text belongs")
    return value


def text_or_none(value: Any) -> str | None:
    """Text or null."""
    return None if value is None else text(value)


def truth(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} where true or false belongs")
    return value


def number(value: Any) -> int:
    """An integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} where an integer belongs")
    return value


def number_or_none(value: Any) -> int | None:
    """An integer or null."""
    return None if value is None else number(value)


def items(value: Any) -> list[Any]:
    """A list. Text and objects can be iterated, too."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} where a list belongs")
    return value


def table(value: Any, read: Callable[[Any], T]) -> dict[str, T]:
    """An object whose values are all of a kind."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} where an object belongs")
    return {text(name): read(found) for name, found in value.items()}


def one_of(allowed: tuple[Any, ...], value: Any) -> Any:
    """One of a few values."""
    if value not in allowed:
        raise ValueError(f"{value!r} where one of {', '.join(map(str, allowed))} belongs")
    return value
