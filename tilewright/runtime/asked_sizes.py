"""Sizes of dims that a user asks about (`memory`, `report.at`): held to the declared ranges, as a call's are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from tilewright.errors import OptionError
from tilewright.ir.dims import Dim


def asked_sizes(dims: Iterable[Dim], given: Mapping[str, Any]) -> dict[str, int]:
    """A size for every dim: as given, and those that only running tells (`kind` "runtime") at their upper bounds.

    OptionError lists unknown names, dims without a value, values that are no whole numbers or outside the range; its
    step is a line that is right.
    """
    known = {dim.name: dim for dim in dims}
    asked = {name: dim for name, dim in known.items() if dim.kind != "runtime"}
    faults = []
    for name in (n for n in given if n not in asked):
        near = difflib.get_close_matches(name, [n for n in asked if n not in given], n=1)
        faults.append(f"the program has no dim {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    faults += [f"{name} has no value" for name in asked if name not in given]
    right: dict[str, int] = {}
    for name, dim in asked.items():
        value = given.get(name)
        if type(value) is not int:
            if name in given:
                faults.append(f"{name} = {value!r} is not a whole number")
            value = dim.min if dim.max is None else dim.max
        right[name] = max(dim.min, value if dim.max is None else min(value, dim.max))
        if right[name] != value:
            faults.append(f"{name} = {value} is outside {dim.min}..{'' if dim.max is None else dim.max}")
    if faults:
        listed = ", ".join(f"{name}={size}" for name, size in right.items())
        raise OptionError(faults, step=f"give {listed}" if listed else "give no sizes: the program has no dims")
    return {name: right.get(name, dim.max or 0) for name, dim in known.items()}
