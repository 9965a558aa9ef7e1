"""Loads and stores of the loop IR as llvm-dialect lines: byte pointers from element offsets, masks, gathers."""

from __future__ import annotations

from tilewright.backends.cpu.emitter import Emitter, type_text
from tilewright.ir.dtypes import I1, U8, DType
from tilewright.ir.loops import ValueType, vec


def _stored(dtype: DType) -> DType:
    """The element type in memory: i1 takes a byte."""
    return U8 if dtype is I1 else dtype


def element_pointer(e: Emitter, base: str, dtype: DType, offset: str) -> str:
    """The address of one element."""
    return e.emit(f"llvm.getelementptr {base}[{offset}] : (!llvm.ptr, i64) -> !llvm.ptr, {_memory_text(dtype, 1)}")


def _memory_text(dtype: DType, lanes: int) -> str:
    return type_text(vec(_stored(dtype), lanes))


def _lane_pointers(e: Emitter, base: str, dtype: DType, offset: str, indices: str, index_type: ValueType) -> str:
    first = element_pointer(e, base, dtype, offset)
    pointers = f"vector<{index_type.lanes}x!llvm.ptr>"
    element = _memory_text(dtype, 1)
    return e.emit(
        f"llvm.getelementptr {first}[{indices}] : (!llvm.ptr, {type_text(index_type)}) -> {pointers}, {element}"
    )


def _to_memory(e: Emitter, type_: ValueType, value: str) -> str:
    """A register value as it lies in memory: masks become bytes."""
    if type_.dtype is not I1:
        return value
    return e.emit(f"arith.extui {value} : {type_text(type_)} to {_memory_text(I1, type_.lanes)}")


def _from_memory(e: Emitter, type_: ValueType, value: str) -> str:
    if type_.dtype is not I1:
        return value
    zero = e.constant(0, U8, type_.lanes)
    return e.emit(f"arith.cmpi ne, {value}, {zero} : {_memory_text(I1, type_.lanes)}")


def load(e: Emitter, type_: ValueType, base: str, offset: str, mask: str | None, fill: str | None) -> str:
    """Contiguous lanes. A masked scalar is a branch: there is no masked load of one element."""
    dtype, lanes = type_.dtype, type_.lanes
    typed, align = _memory_text(dtype, lanes), dtype.bytes
    pointer = element_pointer(e, base, dtype, offset)
    plain = f"llvm.load {pointer} {{alignment = {align} : i64}} : !llvm.ptr -> {typed}"
    if mask is None:
        return _from_memory(e, type_, e.emit(plain))
    other = _fill(e, type_, fill)
    if lanes == 1:
        found = e.fresh()
        e.line(f"{found} = scf.if {mask} -> ({typed}) {{")
        e.line(f"scf.yield {e.emit(plain)} : {typed}")
        e.line("} else {")
        e.line(f"scf.yield {other} : {typed}")
        e.line("}")
        return _from_memory(e, type_, found)
    operands = f"(!llvm.ptr, {type_text(vec(I1, lanes))}, {typed}) -> {typed}"
    found = e.emit(f"llvm.intr.masked.load {pointer}, {mask}, {other} {{alignment = {align} : i32}} : {operands}")
    return _from_memory(e, type_, found)


def gather(
    e: Emitter, type_: ValueType, base: str, offset: str, indices: str, index_type: ValueType,
    mask: str | None, fill: str | None,
) -> str:  # fmt: skip
    """Lanes from anywhere."""
    dtype, lanes = type_.dtype, type_.lanes
    typed = _memory_text(dtype, lanes)
    pointers = _lane_pointers(e, base, dtype, offset, indices, index_type)
    on = e.constant(1, I1, lanes) if mask is None else mask
    other = _fill(e, type_, fill)
    operands = f"(vector<{lanes}x!llvm.ptr>, {type_text(vec(I1, lanes))}, {typed}) -> {typed}"
    found = e.emit(
        f"llvm.intr.masked.gather {pointers}, {on}, {other} {{alignment = {dtype.bytes} : i32}} : {operands}"
    )
    return _from_memory(e, type_, found)


def _fill(e: Emitter, type_: ValueType, fill: str | None) -> str:
    if fill is None:
        return e.constant(0, _stored(type_.dtype), type_.lanes)
    return _to_memory(e, type_, fill)


def stream(e: Emitter, type_: ValueType, value: str, base: str, offset: str) -> None:
    """Contiguous lanes, aligned to their size, past the caches."""
    typed = _memory_text(type_.dtype, type_.lanes)
    aligned = f"{{alignment = {type_.dtype.bytes * type_.lanes} : i64, nontemporal}}"
    pointer = element_pointer(e, base, type_.dtype, offset)
    e.line(f"llvm.store {_to_memory(e, type_, value)}, {pointer} {aligned} : {typed}, !llvm.ptr")


def store(e: Emitter, type_: ValueType, value: str, base: str, offset: str, mask: str | None) -> None:
    """Contiguous lanes."""
    dtype, lanes = type_.dtype, type_.lanes
    typed, align = _memory_text(dtype, lanes), dtype.bytes
    value = _to_memory(e, type_, value)
    pointer = element_pointer(e, base, dtype, offset)
    plain = f"llvm.store {value}, {pointer} {{alignment = {align} : i64}} : {typed}, !llvm.ptr"
    if mask is None:
        e.line(plain)
    elif lanes == 1:
        e.line(f"scf.if {mask} {{")
        e.line(plain)
        e.line("}")
    else:
        types = f"{typed}, {type_text(vec(I1, lanes))} into !llvm.ptr"
        e.line(f"llvm.intr.masked.store {value}, {pointer}, {mask} {{alignment = {align} : i32}} : {types}")


def scatter(
    e: Emitter, type_: ValueType, value: str, base: str, offset: str, indices: str, index_type: ValueType,
    mask: str | None,
) -> None:  # fmt: skip
    """Lanes to anywhere."""
    dtype, lanes = type_.dtype, type_.lanes
    value = _to_memory(e, type_, value)
    pointers = _lane_pointers(e, base, dtype, offset, indices, index_type)
    on = e.constant(1, I1, lanes) if mask is None else mask
    types = f"{_memory_text(dtype, lanes)}, {type_text(vec(I1, lanes))} into vector<{lanes}x!llvm.ptr>"
    e.line(f"llvm.intr.masked.scatter {value}, {pointers}, {on} {{alignment = {dtype.bytes} : i32}} : {types}")


def prefetch(e: Emitter, base: str, dtype: DType, offset: str, *, near: bool) -> None:
    """A request for a cache line, to the first level or the second."""
    pointer = element_pointer(e, base, dtype, offset)
    how = f"rw = 0 : i32, hint = {3 if near else 2} : i32, cache = 1 : i32"
    e.line(f'"llvm.intr.prefetch"({pointer}) <{{{how}}}> : (!llvm.ptr) -> ()')
