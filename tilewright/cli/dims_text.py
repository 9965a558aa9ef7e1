"""Dims and sizes as command lines write them: `--dims "ids=batch:1..64,tokens:1..256"`, `--at batch=8,tokens=82`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import DimDeclarationError, ParseError

if TYPE_CHECKING:
    from tilewright.ir.dims import Dim

_AXIS: Final = re.compile(r"(?P<name>[A-Za-z_]\w*)(?::(?P<low>\d+)\.\.(?P<high>\d*))?|(?P<size>\d+)")
_SIZE: Final = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>\d+)")
# a name and its bounds in another spelling: batch:1-64, batch=1:64, and of no more than the upper one, batch:64
_MISSPELT: Final = re.compile(r"(?P<name>[A-Za-z_]\w*)[^\w.]+(?:(?P<low>\d+)\W+)?(?P<high>\d+)")
_OPEN: Final = ("", "*", "?", "-1", "-", "none", "None")
_PYTHON: Final = re.compile(r"dims=(?=\{)|tw\.Dim\([^()]*\)")
_SIZES_STEP: Final = "write batch=8,tokens=82"


def parse_dims(texts: Sequence[str]) -> dict[str, Any] | None:
    """What compile() takes as `dims`, or None when nothing was given.

    A text is NAME=AXIS,AXIS,... with an axis being `batch:1..64`, `batch:1..` (no upper bound), `batch` (bounds stand
    elsewhere on the line), `_` (fixed) or a number (fixed at this size). A nested argument is named by its path:
    `batch.mask=...`. ParseError for other texts, DimDeclarationError for a dim with two ranges or with none.
    """
    axes: dict[str, list[re.Match[str] | int | None]] = {}
    before: dict[str, str] = {}
    for text in texts:
        name, rest = _entry(text)
        found = _axes(name, rest, text)
        if name in axes:
            raise ParseError(
                f"--dims {text!r}: {name} has its axes from another --dims",
                step=_step(name, _joined(before[name].split(","), rest.split(","))),
            )
        axes[name], before[name] = found, rest
    named = _named([axis for listed in axes.values() for axis in listed if not isinstance(axis, int)])
    result: dict[str, Any] = {}
    for path, listed in axes.items():
        spec = tuple(_meaning(axis, named) for axis in listed)
        *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        inside: dict[Any, Any] = result
        for part in parents:
            inside = inside.setdefault(part, {})
        inside[last] = spec
    return result or None


def parse_sizes(text: str | None) -> dict[str, int]:
    """`batch=8,tokens=82` as a mapping; empty for no text. ParseError otherwise."""
    sizes: dict[str, int] = {}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        found = _SIZE.fullmatch(part)
        if found is None:
            raise ParseError(f"{part!r} in {text!r} is not a size of a dim", step=_SIZES_STEP)
        sizes[found["name"]] = int(found["value"])
    return sizes


def written_as_options(text: str) -> str:
    """A message with its `dims={...}` and `tw.Dim(...)` as the command line writes them; what it cannot say stays."""
    parts, at = [], 0
    for found in _PYTHON.finditer(text):
        if found.start() < at:
            continue
        declared = found[0] == "dims="
        end = _closing(text, found.end()) if declared else found.end()
        said = _as_options(text[found.end() : end]) if declared else _as_axis(found[0])
        if said is not None:
            parts += [text[at : found.start()], said]
            at = end
    return "".join([*parts, text[at:]])


def _closing(text: str, start: int) -> int:
    """Where the brace that opens at `start` is closed; names hold no braces."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return at + 1
    return len(text)


def _as_options(declaration: str) -> str | None:
    """`{"ids": {0: tw.Dim("n", 1, 8)}}` as `--dims "ids=n:1..8"`, an option an argument."""
    try:
        # a Dim becomes the tuple of what it was called with, which no declaration has in an axis's place
        listed = list(_leaves(ast.literal_eval(declaration.replace("tw.Dim(", "(")), ()))
    except (SyntaxError, ValueError):
        return None
    return " ".join(f'--dims "{".".join(path)}={axes}"' for path, axes in listed) or None


def _leaves(spec: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path and the axes of every tensor in a declaration; ValueError for what options cannot say."""
    if not isinstance(spec, Mapping) or not spec:
        raise ValueError("neither parts nor axes")
    if any(isinstance(value, Mapping) for value in spec.values()):
        for key, inner in spec.items():
            if re.search(r"[.=\s\"]", str(key)) or (isinstance(key, str) and key.isdigit()):
                raise ValueError("a key that ends a path, or another one's text")
            yield from _leaves(inner, (*path, str(key)))
        return
    if not path or not all(isinstance(axis, int) and axis >= 0 for axis in spec):
        raise ValueError("no axes of an argument")
    dims = [spec.get(axis) for axis in range(max(spec) + 1)]
    yield path, ",".join("_" if d is None else _axis_text(d) if isinstance(d, tuple) else str(d) for d in dims)


def _as_axis(call: str) -> str | None:
    """`tw.Dim("n", 1, 8)` as `n:1..8`."""
    try:
        return _axis_text(ast.literal_eval(call.removeprefix("tw.Dim")))
    except (SyntaxError, ValueError):
        return None


def _axis_text(given: Any) -> str:
    """A Dim's arguments as an axis; ValueError for others than a name and one or two bounds."""
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        raise ValueError("not a name and its bounds")
    name, low, high = (*given, None)[:3]
    return f"{name}:{low}..{'' if high is None else high}"


def _entry(text: str) -> tuple[str, str]:
    name, equals, rest = text.replace(" ", "").partition("=")
    if not equals or not name or not rest:
        named = name if re.fullmatch(r"[A-Za-z_][\w.]*", name) else "ids"
        raise ParseError(f"--dims {text!r} does not name an argument and its axes", step=_step(named))
    return name, rest


def _step(name: str, axes: Sequence[str] = ("batch:1..64", "tokens:1..256")) -> str:
    return f'write --dims "{name}={",".join(axes)}": an entry an axis, _ or its size where it is fixed'


def _joined(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Two declarations of one argument as one: where both speak of an axis, the second speaks of those behind."""
    if any(a != "_" and b not in ("_", a) for a, b in zip(first, second, strict=False)):
        return [*first, *second]
    return [b if a == "_" else a for a, b in zip_longest(first, second, fillvalue="_")]


def _mended(axis: str) -> str | None:
    """An axis as it is written here; None where nobody can tell what is meant."""
    if _AXIS.fullmatch(axis):
        return axis
    if axis in _OPEN:
        return "_"
    found = _MISSPELT.fullmatch(axis)
    return f"{found['name']}:{found['low'] or 1}..{found['high']}" if found else None


def _axes(name: str, rest: str, text: str) -> list[re.Match[str] | int | None]:
    found: list[re.Match[str] | int | None] = []
    for part in rest.split(","):
        match = _AXIS.fullmatch(part)
        if match is None:
            mended = [axis for axis in map(_mended, rest.split(",")) if axis is not None]
            step = _step(name, mended) if len(mended) == len(rest.split(",")) else _step(name)
            raise ParseError(f"--dims {text!r}: {part!r} is not an axis", step=step)
        if part == "_":
            found.append(None)
        else:
            found.append(int(match["size"]) if match["size"] else match)
    return found


def _named(axes: Iterable[re.Match[str] | None]) -> dict[str, Dim]:
    """Every dim by its name, with the range that one of its mentions states."""
    from tilewright.ir.dims import Dim

    ranges: dict[str, set[tuple[int, int | None]]] = {}
    for axis in axes:
        if axis is not None:
            stated = ranges.setdefault(axis["name"], set())
            if axis["low"] is not None:
                stated.add((int(axis["low"]), int(axis["high"]) if axis["high"] else None))
    faults = []
    for name, stated in ranges.items():
        if len(stated) > 1:
            listed = " and ".join(f"{low}..{'' if high is None else high}" for low, high in sorted(stated, key=str))
            faults.append(f"{name} is declared with two ranges: {listed}")
        elif not stated:
            faults.append(f"{name} has no range")
    if faults:
        raise DimDeclarationError(faults, step="give each dim one range, where it is first named: batch:1..64")
    return {name: Dim(name, *next(iter(stated))) for name, stated in ranges.items()}


def _meaning(axis: re.Match[str] | int | None, named: dict[str, Dim]) -> Any:
    return named[axis["name"]] if isinstance(axis, re.Match) else axis
