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
_ROOM = 120  # letters of all differences together: a report has a line or two for them


@dataclass(frozen=True, slots=True)
class Difference:
    """A factor by its dotted path ("machine.features.3"), as the entry has it and as it was asked for; JSON text."""

    path: str
    old: str
    new: str

    @property
    def says_that_alone(self) -> bool:
        """Whether it says that something differs, and not what."""
        return _DIGEST.fullmatch(self.old) is not None and _DIGEST.fullmatch(self.new) is not None

    def __str__(self) -> str:
        if self.says_that_alone:
            return f"{self.path}: other content"
        return f"{self.path}: {_cut(self.old, _LONGEST)} -> {_cut(self.new, _LONGEST)}"


@dataclass(frozen=True, slots=True)
class Miss:
    """The nearest entry's key (None where there is none to compare with), its age in seconds, and the differences: what
    changed before what is on one side alone, values before digests, short paths before long ones. As
    text it is short; `differences` has all.
    """

    kind: str
    key: str | None
    age: float
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        if self.key is None:
            return f"no {self.kind} like it is cached"
        listed = _cut(str(self.differences[0]), _ROOM) if self.differences else "nothing"
        shown = 1
        for difference in self.differences[1:]:
            if len(listed) + len(str(difference)) > _ROOM:
                break
            listed, shown = f"{listed}; {difference}", shown + 1
        more = len(self.differences) - shown
        return f"differs from {self.key[:12]}, used {_ago(self.age)}, in {listed}" + (
            f"; and {more} more" if more > 0 else ""
        )


def nearest(factors: Mapping[str, Any], entries: Iterable[tuple[str, float, Any]]) -> Miss:
    """Holds factors against entries (key, last use in seconds since the epoch, factors); the first of equals wins."""
    wanted = dict(_leaves(factors))
    best: tuple[str, float, tuple[Difference, ...]] | None = None
    for key, used, other in entries:
        found = dict(_leaves(other))
        paths = _differing(wanted, found)
        if best is None or len(paths) < len(best[2]):
            differences = (Difference(p, found.get(p, _ABSENT), wanted.get(p, _ABSENT)) for p in paths)
            best = (key, used, tuple(sorted(differences, key=_rank)))
    kind = str(factors.get("kind", "entry"))
    if best is None:
        return Miss(kind, None, 0.0, ())
    return Miss(kind, best[0], max(0.0, time.time() - best[1]), best[2])


def share_alike(one: Any, other: Any) -> float:
    """The share of leaves, by their paths, in which two values are equal: 0 to 1."""
    first, second = dict(_leaves(one)), dict(_leaves(other))
    every = first.keys() | second.keys()
    return 1 - len(_differing(first, second)) / len(every) if every else 1.0


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [path for path in one.keys() | other.keys() if one.get(path) != other.get(path)]


def _rank(difference: Difference) -> tuple[bool, bool, int, str]:
    alone = _ABSENT in (difference.old, difference.new)
    return alone, difference.says_that_alone, difference.path.count("."), difference.path


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


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _ago(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
