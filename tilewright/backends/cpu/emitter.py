"""Lines of MLIR text in the making: fresh names, types, and constants gathered at the function's entry."""

from __future__ import annotations

import struct
from functools import cache

from tilewright.backends.cpu.cpu_class import CpuClass
from tilewright.ir.dtypes import BF16, DType
from tilewright.ir.loops import ValueType, vec
from tilewright.ir.loops.values import rounded

_PACK = {"f64": ("<d", "<Q", 16), "f32": ("<f", "<I", 8), "f16": ("<e", "<H", 4)}


def element_text(dtype: DType) -> str:
    """The MLIR type of one element in a register. 16-bit floats travel as their bits: the generic class has neither."""
    return f"i{dtype.bits}" if dtype.bits <= 16 or not dtype.is_float else dtype.name


@cache
def type_text(type_: ValueType) -> str:
    """The MLIR type of a loop-IR type."""
    element = element_text(type_.dtype)
    return element if type_.lanes == 1 else f"vector<{type_.lanes}x{element}>"


def literal(value: int | float, dtype: DType) -> str:
    """A number as an MLIR literal; floats by their bits, so that nothing is lost."""
    value = rounded(value, dtype)
    if dtype is BF16:
        return str(struct.unpack("<H", struct.pack("<f", value)[2:])[0] if value == value else 0x7FC0)
    if dtype.is_float:
        pack, bits, digits = _PACK[dtype.name]
        number = struct.unpack(bits, struct.pack(pack, value))[0]
        return str(number) if dtype.bits == 16 else f"0x{number:0{digits}X}"
    if dtype.kind == "bool":
        return "true" if value else "false"
    wrapped = int(value) & ((1 << dtype.bits) - 1)
    return str(wrapped - (1 << dtype.bits) if wrapped >> (dtype.bits - 1) else wrapped)


class Emitter:
    """Collects the body of one function for one CPU class."""

    def __init__(self, cpu: CpuClass) -> None:
        self.cpu = cpu
        self.lines: list[str] = []
        self.entry: list[str] = []  # constants, dims and buffer pointers: printed before the body
        self.indent = "  "
        self._count = 0
        self._known: dict[str, str] = {}

    def fresh(self) -> str:
        """A name not used before."""
        self._count += 1
        return f"%{self._count}"

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    def emit(self, text: str) -> str:
        """Adds `name = text` and returns the name."""
        self._count += 1
        name = f"%{self._count}"
        self.lines.append(f"{self.indent}{name} = {text}")
        return name

    def at_entry(self, name: str, text: str) -> str:
        """Defines `name` once at the function's entry."""
        if name not in self._known:
            self._known[name] = name
            self.entry.append(f"  {name} = {text}")
        return name

    def constant(self, value: int | float, dtype: DType, lanes: int = 1) -> str:
        """A constant, the same in every lane, defined at the entry."""
        return self.constant_text(literal(value, dtype), vec(dtype, lanes))

    def constant_text(self, text: str, type_: ValueType) -> str:
        """A constant from its literal; "[1, 2]" gives each lane its own."""
        typed = type_text(type_)
        # MLIR prints and reads the two i1 constants without their type.
        key = text if typed == "i1" else f"{text if type_.lanes == 1 else f'dense<{text}>'} : {typed}"
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = f"%c{len(self._known)}"
            self.entry.append(f"  {found} = arith.constant {key}")
        return found
