"""Where a model makes plain numbers of sizes (`float(n)`, `math.log(n)`, `range(n)`): each fixes the size it takes.

Python asks a size for its value then, and whatever is computed from the value is lost to the trace. The exporter
reports that the size was fixed, or narrowed to those that give the same number, and not by which expression.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import Problem, SpecialisationError
from tilewright.frontend.locations import innermost

if TYPE_CHECKING:
    import torch

_TAKING: Final = {"SymInt": ("__int__", "__index__", "__float__"), "SymFloat": ("__int__", "__float__")}
_LONGEST: Final = 80


@dataclass(frozen=True)
class Conversion:
    """An expression of the user's source that took a size's value. call: what it calls, "math.log"; "" if unknown."""

    text: str
    call: str
    where: str

    @property
    def step(self) -> str:
        """What to write instead."""
        if self.call in ("math.sqrt", "math.pow", "numpy.sqrt", "np.sqrt"):
            return f"write {self.text} with the operator: n ** 0.5 stays a number of the size"
        if self.call in ("int", "round", "math.trunc"):
            return f"write {self.text} in whole numbers, such as n * 3 // 10: +, -, *, // and % of sizes stay sizes"
        if self.call == "float":
            return f"leave out the conversion in {self.text}: n * 0.5 and x / n take sizes as they are"
        if self.call == "range":
            return (
                f"a loop over {self.text} is unrolled: where a round needs the one before (a recurrence), its length "
                "must be fixed, else write it with tensor operators, such as torch.arange(n)"
            )
        if self.call in ("list", "math.isqrt", "math.comb", "math.factorial", "") or "." not in self.call:
            return f"write {self.text} with tensor operators, such as torch.arange(n)"
        name = self.call.rpartition(".")[2]
        return (
            f"write {self.text} with a tensor made of the size, torch.full((), n, dtype=torch.float32).{name}(), "
            "or scale by a constant"
        )


@contextmanager
def recorded() -> Iterator[list[Conversion]]:
    """Within it, what takes the value of a size is noted. Process-wide while it lasts, as the exporter itself is."""
    import torch

    found: list[Conversion] = []
    saved: list[tuple[Any, str, Any]] = []

    def noting(method: Any) -> Any:
        def taken(number: Any) -> Any:
            frame = sys._getframe(1)
            where = innermost([(frame.f_code.co_filename, frame.f_lineno)])
            if where is not None:
                found.append(Conversion(*_expression(frame), where))
            return method(number)

        return taken

    try:
        for name, methods in _TAKING.items():
            owner: Any = getattr(torch, name)
            for method in methods:
                if method in vars(owner):
                    saved.append((owner, method, vars(owner)[method]))
                    setattr(owner, method, noting(vars(owner)[method]))
        yield found
    finally:
        for owner, method, function in saved:
            setattr(owner, method, function)


def explained(fault: SpecialisationError, found: list[Conversion]) -> SpecialisationError:
    """The error with the expressions that took a size's value at its places, and what to write instead of them."""
    by_place = {conversion.where: conversion for conversion in found}
    used = {p.where: by_place[p.where] for p in fault.problems if p.where in by_place}
    if not used:
        return fault
    problems = [
        Problem(f"{p.text}: {used[p.where].text} takes its value", p.op, p.where) if p.where in used else p
        for p in fault.problems
    ]
    steps = list(dict.fromkeys(conversion.step for conversion in used.values()))
    return SpecialisationError(problems, step="; ".join([*steps, f"or {fault.step}"]))


def unrolled(fault: SpecialisationError, model: torch.nn.Module) -> SpecialisationError:
    """The error with the recurrent layers that fixed a size nobody's line did: torch runs them a step at a time."""
    import torch

    layers = [
        f"{name or 'the model'} ({type(m).__name__})"
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.RNNBase)
    ]
    if not layers:
        return fault
    why = f"{', '.join(layers)}: nn.LSTM, nn.GRU and nn.RNN are unrolled over time, so their length must be fixed"
    problems = [p if p.where else Problem(f"{p.text}: {why}", p.op) for p in fault.problems]
    # no line of the user's fixes it
    return SpecialisationError(problems, step=fault.step.removesuffix("; or change the line that fixes it"))


def _expression(frame: Any) -> tuple[str, str]:
    """The source of the expression that a frame evaluates, and the name of what it calls."""
    first, last, start, end = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), (None,) * 4)
    line = linecache.getline(frame.f_code.co_filename, first or frame.f_lineno, frame.f_globals)
    if first is None or first != last or start is None or end is None:
        return line.strip()[:_LONGEST], ""
    # columns are counted in bytes
    text = line.encode()[start:end].decode(errors="replace")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return text[:_LONGEST], ""
    return text[:_LONGEST], ast.unparse(node.func) if isinstance(node, ast.Call) else ""
