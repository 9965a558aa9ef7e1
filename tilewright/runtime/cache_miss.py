"""Why the cache had nothing: the entry whose factors are nearest, and each factor that differs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tilewright.runtime.canonical import canonical_json

_ABSENT: Final = "(absent)"
_DIGEST: Final = re.compile(r'"[0-9a-f]{32,}"')  # a hash says that something differs, and not what
_LONGEST = 60
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """A factor by its dotted path ("machine.features.3"), as the entry has it and as it was asked for; JSON text."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        if _DIGEST.fullmatch(self.old) and _DIGEST.fullmatch(self.new):
            return f"{self.path}: other content"
        return f"{self.path}: {_short(self.old)} -> {_short(self.new)}"


@dataclass(frozen=True, slots=True)
class Miss:
    """The nearest entry's key (None when the cache holds nothing of that kind), its age in seconds, and the
    differences.
    """

    kind: str
    key: str | None
    age: float
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        if self.key is None:
            return f"no {self.kind} has been cached yet"
        listed = "; ".join(map(str, self.differences[:_SHOWN]))
        more = len(self.differences) - _SHOWN
        return f"the nearest {self.kind} ({self.key[:12]}, used {_ago(self.age)}) differs in {listed}" + (
            f"; and {more} more" if more > 0 else ""
        )


def nearest(factors: Mapping[str, Any], entries: Iterable[tuple[str, float, Any]]) -> Miss:
    """Holds factors against entries (key, last use in seconds since the epoch, factors); the first of equals wins."""
    wanted = dict(_leaves(factors))
    best: tuple[str, float, tuple[Difference, ...]] | None = None
    for key, used, other in entries:
        found = dict(_leaves(other))
        paths = sorted(p for p in wanted.keys() | found.keys() if wanted.get(p) != found.get(p))
        if best is None or len(paths) < len(best[2]):
            differences = (Difference(p, found.get(p, _ABSENT), wanted.get(p, _ABSENT)) for p in paths)
            best = (key, used, tuple(differences))
    kind = str(factors.get("kind", "entry"))
    if best is None:
        return Miss(kind, None, 0.0, ())
    return Miss(kind, best[0], max(0.0, time.time() - best[1]), best[2])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf as (dotted path, JSON text). An empty list or object is a leaf."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif path == "":
        return
    empty = True
    for key, item in items:
        empty = False
        yield from _leaves(item, f"{path}.{key}" if path else str(key))
    if empty:
        yield path, canonical_json(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _ago(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
