"""The signature of a user's kernel as text: `x T[rows, n], scale f32[n] -> y T[rows, n]`.

A buffer is a name, a dtype and its dims. A dim is an expression of names and integers. Names that are keyword-only
parameters of the kernel's function are *static*: fixed when the kernel is traced; all other names are dims of the
kernel, whatever their size at a call. A dtype is one of the IR's, or a static name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tilewright.errors import KernelError, ParseError, Problem
from tilewright.ir.dims import Expr, parse_expr
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.solve import Axis, solvable, solve

_BUFFER: Final = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s+(?P<dtype>[A-Za-z_]\w*)\s*\[(?P<dims>[^\[\]]*)\]\s*")
_FORM: Final = 'write it as "x f32[rows, 64] -> y f32[rows, 64]"'

Static = int | DType


@dataclass(frozen=True, slots=True)
class Buffer:
    """One tensor of a kernel. dtype: of the IR, or the static name that stands for it."""

    name: str
    dtype: str
    dims: tuple[Expr, ...]

    def dtype_at(self, statics: Mapping[str, Static]) -> DType:
        """The dtype, static names resolved."""
        found = statics.get(self.dtype, DTYPES.get(self.dtype))
        assert isinstance(found, DType)  # the spec has been checked against the function's parameters
        return found

    def dims_at(self, statics: Mapping[str, Static]) -> tuple[Expr, ...]:
        """The dims, static names resolved."""
        sizes = {name: value for name, value in statics.items() if isinstance(value, int)}
        return tuple(dim.substitute(sizes) for dim in self.dims)


@dataclass(frozen=True)
class KernelSpec:
    """A kernel's signature. statics: the function's keyword-only parameters with their defaults; `None` for none.
    where: the function's place, "model.py:12".
    """

    name: str
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    statics: Mapping[str, Static | None]
    where: str

    @staticmethod
    def of(text: str, function: Callable[..., Any], where: str) -> KernelSpec:
        """The spec that a text gives a function. KernelError lists everything that does not fit."""
        name = function.__name__
        left, arrow, right = text.partition("->")
        if not arrow or not right.strip():
            raise _wrong(name, where, [f"the signature {text!r} names no output"], _FORM)
        faults: list[str] = []
        inputs, outputs = _buffers(left, faults), _buffers(right, faults)
        if faults:
            raise _wrong(name, where, faults, _FORM)
        parameters = list(inspect.signature(function).parameters.values())
        keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        placed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        spec = KernelSpec(name, inputs, outputs, {p.name: _default(p, name, where) for p in keywords}, where)
        spec._check(placed, len(parameters) - len(keywords))
        return spec

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return (*self.inputs, *self.outputs)

    @property
    def dtypes(self) -> set[str]:
        """The static names that stand for dtypes."""
        return {b.dtype for b in self.buffers if b.dtype in self.statics}

    @property
    def dims(self) -> tuple[str, ...]:
        """The kernel's dims, in the order in which the signature names them first."""
        symbols = [s for b in self.buffers for d in b.dims for s in sorted(d.symbols)]
        return tuple(s for s in dict.fromkeys(symbols) if s not in self.statics)

    def _check(self, placed: Sequence[str], count: int) -> None:
        """The function takes the builder and the buffers, and everything that a call must know comes from inputs."""
        faults = []
        names = [b.name for b in self.buffers]
        wanted = ["b", *names]
        if count != len(wanted) or placed[1:] != names:
            faults.append(f"the function takes ({', '.join(placed)}), the signature gives ({', '.join(wanted)})")
        faults += [f"{n} is named twice" for n in sorted({n for n in names if names.count(n) > 1})]
        unknown = {b.dtype for b in self.buffers} - DTYPES.keys() - self.statics.keys()
        faults += [f"{d} is no dtype and no keyword-only parameter" for d in sorted(unknown)]
        both = self.dtypes & {s for b in self.buffers for d in b.dims for s in d.symbols}
        faults += [f"{d} stands for a dtype and for a size" for d in sorted(both)]
        faults += [f"{d}: a0, a1, ... are the names of index operands" for d in self.dims if re.fullmatch(r"a\d+", d)]
        found = solvable([d for b in self.inputs for d in b.dims], [n for n in self.statics if n not in self.dtypes])
        faults += [f"no input's shape gives {d}" for d in self.dims if d not in found]
        if faults:
            raise _wrong(self.name, self.where, faults, _FORM)

    def resolve(
        self, given: Mapping[str, Any], tensors: Sequence[tuple[DType | None, Sequence[int]]] = ()
    ) -> dict[str, Static]:
        """Every static name's value: as given, else from the inputs' dtypes and shapes, else its default.

        tensors: (dtype, shape) of each input, where there are some. KernelError names those that have none.
        """
        faults = [f"it has no static parameter {n!r}" for n in given if n not in self.statics]
        found = {n: self._value(n, v, faults) for n, v in given.items() if n in self.statics}
        from_tensors = self._from_tensors(found, tensors)
        for name, default in self.statics.items():
            value = found.get(name, from_tensors.get(name, default))
            if value is None:
                faults.append(f"{name} has no value")
            else:
                found[name] = value
        if faults:
            raise _wrong(self.name, self.where, faults, f"give {', '.join(f'{n}=...' for n in self.statics) or 'none'}")
        return {name: found[name] for name in self.statics if name in found}

    def _from_tensors(
        self, given: Mapping[str, Any], tensors: Sequence[tuple[DType | None, Sequence[int]]]
    ) -> dict[str, Static]:
        """What the inputs say of static names. Shapes that contradict each other are left to the call's own check."""
        found: dict[str, Static] = {}
        axes = []
        for buffer, (dtype, shape) in zip(self.inputs, tensors, strict=False):
            if buffer.dtype in self.dtypes and dtype is not None:
                found.setdefault(buffer.dtype, dtype)
            axes += [Axis(buffer.name, i, d, n) for i, (d, n) in enumerate(zip(buffer.dims, shape, strict=False))]
        sizes = {n: v for n, v in given.items() if isinstance(v, int)}
        known = {n: v for n, v in self.statics.items() if isinstance(v, int) and n not in sizes}
        solved = solve(axes, sizes).values
        # a default is needed only for what the shapes do not say
        solved = (
            solved if self.statics.keys() <= solved.keys() | self.dtypes else solve(axes, {**known, **solved}).values
        )
        return {**found, **{n: v for n, v in solved.items() if n in self.statics}}

    def _value(self, name: str, value: Any, faults: list[str]) -> Static:
        wanted = "a dtype's name" if name in self.dtypes else "a size"
        if name in self.dtypes:
            value = DTYPES.get(value, value) if isinstance(value, str) else value
        elif isinstance(value, str):
            value = DTYPES.get(value, value)
        right = isinstance(value, DType) or (isinstance(value, int) and not isinstance(value, bool))
        if not right or (name in self.dtypes and not isinstance(value, DType)):
            faults.append(f"{name}={value!r} is not {wanted}")
            return 0
        return value  # type: ignore[no-any-return]


def _buffers(text: str, faults: list[str]) -> tuple[Buffer, ...]:
    found, at = [], 0
    while text[at:].strip():
        match = _BUFFER.match(text, at)
        if match is None:
            faults.append(f"{text[at:].strip()!r} is not a name, a dtype and dims")
            break
        try:
            dims = tuple(parse_expr(d) for d in _split(match["dims"]))
        except ParseError as fault:
            faults += [p.text for p in fault.problems]
            dims = ()
        found.append(Buffer(match["name"], match["dtype"], dims))
        at = match.end()
        if text[at : at + 1] == ",":
            at += 1
        elif text[at:].strip():
            faults.append(f"expected a comma before {text[at:].strip()!r}")
            break
    return tuple(found)


def _split(text: str) -> list[str]:
    """Dims at the commas that stand in no parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts if text.strip() else []


def _default(parameter: inspect.Parameter, name: str, where: str) -> Static | None:
    value = parameter.default
    if value is parameter.empty:
        return None
    if isinstance(value, str):
        value = DTYPES.get(value, value)
    if isinstance(value, bool) or not isinstance(value, (int, DType)):
        raise _wrong(name, where, [f"{parameter.name}={value!r} is neither a size nor a dtype's name"], "correct it")
    return value


def _wrong(name: str, where: str, faults: Sequence[str], step: str) -> KernelError:
    return KernelError([Problem(fault, op=f"@{name}", where=where) for fault in faults], step=step)
