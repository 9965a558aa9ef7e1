"""`Cast` of the loop IR as MLIR lines: torch's conversions, with the same bits on every CPU class.

bf16 is rounded by integer arithmetic, but for numbers known to be normal, or that may be flushed: the native
instruction flushes subnormals. Small integers are bf16 numbers: the upper half of their f32.
"""

from __future__ import annotations

from typing import Final

from tilewright.backends.cpu.emitter import Emitter, type_text
from tilewright.backends.cpu.print_arithmetic import binary, bitcast, compare, select
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, I8, I32, I64, U8, DType
from tilewright.ir.loops import ValueType, vec

_QUIET_NAN: Final = 0x7FC0
_LEAST_NORMAL: Final = 0x00800000  # as bits
_EXACT_IN_BF16: Final = (I1, I8, U8)


def cast(e: Emitter, source: ValueType, target: DType, a: str, *, normal: bool = False, flush: bool = False) -> str:
    """A value of type `source` as lanes of `target`; see `Cast` for those that are known or made to be normal."""
    lanes, here = source.lanes, source.dtype
    if (normal or flush) and e.cpu.narrowing and lanes in (e.cpu.lanes, 2 * e.cpu.lanes):
        return _narrow_natively(e, source, target, a)
    if flush:
        return cast(e, source, target, _flushed(e, lanes, a))
    if here is target:
        return a
    if target is BF16 and here in _EXACT_IN_BF16:
        words = vec(I32, lanes)
        bits = bitcast(e, vec(F32, lanes), words, cast(e, source, F32, a))
        return _upper_half(e, lanes, bits)
    if here is BF16 or here is F16:
        wide = _widen_bf16(e, lanes, a) if here is BF16 else _widen_f16(e, lanes, a)
        return cast(e, vec(F32, lanes), target, wide)
    if target is BF16 or target is F16:
        single = cast(e, source, F32, a)
        return _narrow_bf16(e, lanes, single) if target is BF16 else _narrow_f16(e, lanes, single)
    if target is I1:
        return compare(e, "ne", source, a, e.constant(0, here, lanes))
    if here.is_float:
        if target.is_float:
            return _convert(e, "extf" if target is F64 else "truncf", source, target, a)
        return _to_integer(e, source, target, a)
    if target.is_float:
        return _convert(e, "sitofp" if here.kind == "int" else "uitofp", source, target, a)
    if target.bits == here.bits:
        return a
    if target.bits < here.bits:
        return _convert(e, "trunci", source, target, a)
    return _convert(e, "extsi" if here.kind == "int" else "extui", source, target, a)


def _convert(e: Emitter, op: str, source: ValueType, target: DType, a: str) -> str:
    return e.emit(f"arith.{op} {a} : {type_text(source)} to {type_text(vec(target, source.lanes))}")


def _to_integer(e: Emitter, source: ValueType, target: DType, a: str) -> str:
    """Towards zero; outside the range, and for NaN, the least integer, as x86 converts. Narrow ones go through i32."""
    lanes, wide = source.lanes, I64 if target is I64 else I32
    limit = 2.0 ** (wide.bits - 1)
    low = compare(e, "ge", source, a, e.constant(-limit, source.dtype, lanes))
    high = compare(e, "lt", source, a, e.constant(limit, source.dtype, lanes))
    inside = binary(e, "and", vec(I1, lanes), low, high)
    whole = _convert(e, "fptosi", source, wide, a)
    fixed = select(e, inside, vec(wide, lanes), whole, e.constant(-(1 << (wide.bits - 1)), wide, lanes))
    return cast(e, vec(wide, lanes), target, fixed)


def _widen_bf16(e: Emitter, lanes: int, a: str) -> str:
    words = vec(I32, lanes)
    wide = e.emit(f"arith.extui {a} : {type_text(vec(BF16, lanes))} to {type_text(words)}")
    return bitcast(e, words, vec(F32, lanes), binary(e, "shl", words, wide, e.constant(16, I32, lanes)))


def _narrow_bf16(e: Emitter, lanes: int, a: str) -> str:
    """To nearest even: half an ulp less one, plus the bit that must come out even, then the upper half."""
    words, floats = vec(I32, lanes), vec(F32, lanes)
    bits = bitcast(e, floats, words, a)
    sixteen = e.constant(16, I32, lanes)
    odd = binary(e, "and", words, binary(e, "ushr", words, bits, sixteen), e.constant(1, I32, lanes))
    bumped = binary(e, "add", words, binary(e, "add", words, bits, e.constant(0x7FFF, I32, lanes)), odd)
    rounded = binary(e, "ushr", words, bumped, sixteen)
    nan = compare(e, "ne", floats, a, a)
    fixed = select(e, nan, words, e.constant(_QUIET_NAN, I32, lanes), rounded)
    return e.emit(f"arith.trunci {fixed} : {type_text(words)} to {type_text(vec(BF16, lanes))}")


def _upper_half(e: Emitter, lanes: int, bits: str) -> str:
    words = vec(I32, lanes)
    upper = binary(e, "ushr", words, bits, e.constant(16, I32, lanes))
    return e.emit(f"arith.trunci {upper} : {type_text(words)} to {type_text(vec(BF16, lanes))}")


def _narrow_natively(e: Emitter, source: ValueType, target: DType, a: str) -> str:
    """One instruction for one vector, and one for two."""
    lanes, one = source.lanes, e.cpu.lanes
    short, kind = f"vector<{lanes}xbf16>", type_text(source)
    if lanes == one:
        call = f'"llvm.x86.avx512bf16.cvtneps2bf16.512"({a}) : ({kind}) -> {short}'
    else:
        half = type_text(vec(F32, one))
        low, high = (e.emit(f"vector.shuffle {a}, {a} {list(range(n, n + one))} : {kind}, {kind}") for n in (0, one))
        call = f'"llvm.x86.avx512bf16.cvtne2ps2bf16.512"({high}, {low}) : ({half}, {half}) -> {short}'
    narrow = e.emit(f"llvm.call_intrinsic {call}")
    return e.emit(f"llvm.bitcast {narrow} : {short} to {type_text(vec(target, lanes))}")


def _flushed(e: Emitter, lanes: int, a: str) -> str:
    """Subnormal numbers as zeros of their sign."""
    words, floats = vec(I32, lanes), vec(F32, lanes)
    bits = bitcast(e, floats, words, a)
    sign = binary(e, "and", words, bits, e.constant(-(1 << 31), I32, lanes))
    magnitude = binary(e, "xor", words, bits, sign)
    small = compare(e, "lt", words, magnitude, e.constant(_LEAST_NORMAL, I32, lanes))
    return bitcast(e, words, floats, select(e, small, words, sign, bits))


def _half_text(lanes: int) -> str:
    return "f16" if lanes == 1 else f"vector<{lanes}xf16>"


def _widen_f16(e: Emitter, lanes: int, a: str) -> str:
    if e.cpu.half:
        half = e.emit(f"llvm.bitcast {a} : {type_text(vec(F16, lanes))} to {_half_text(lanes)}")
        return e.emit(f"arith.extf {half} : {_half_text(lanes)} to {type_text(vec(F32, lanes))}")
    # F. Giesen, "half_to_float_fast5": rescale the exponent with one multiplication, which also normalises subnormals.
    words, floats = vec(I32, lanes), vec(F32, lanes)

    def word(value: int) -> str:
        return e.constant(value, I32, lanes)

    wide = e.emit(f"arith.extui {a} : {type_text(vec(F16, lanes))} to {type_text(words)}")
    magnitude = binary(e, "shl", words, binary(e, "and", words, wide, word(0x7FFF)), word(13))
    scaled = binary(e, "mul", floats, bitcast(e, words, floats, magnitude), e.constant(2.0**112, F32, lanes))
    special = compare(e, "ge", floats, scaled, e.constant(65536.0, F32, lanes))
    raised = binary(e, "or", words, bitcast(e, floats, words, scaled), word(0x7F800000))
    bits = select(e, special, words, raised, bitcast(e, floats, words, scaled))
    sign = binary(e, "shl", words, binary(e, "and", words, wide, word(0x8000)), word(16))
    return bitcast(e, words, floats, binary(e, "or", words, bits, sign))


def _narrow_f16(e: Emitter, lanes: int, a: str) -> str:
    if e.cpu.half:
        half = e.emit(f"arith.truncf {a} : {type_text(vec(F32, lanes))} to {_half_text(lanes)}")
        return e.emit(f"llvm.bitcast {half} : {_half_text(lanes)} to {type_text(vec(F16, lanes))}")
    # F. Giesen, "float_to_half_fast3_rtne": normal numbers by integer rounding, subnormal ones by adding a magic float.
    words, floats = vec(I32, lanes), vec(F32, lanes)

    def word(value: int) -> str:
        return e.constant(value, I32, lanes)

    bits = bitcast(e, floats, words, a)
    sign = binary(e, "and", words, bits, word(-(1 << 31)))
    magnitude = binary(e, "xor", words, bits, sign)
    odd = binary(e, "and", words, binary(e, "ushr", words, magnitude, word(13)), word(1))
    rebased = binary(e, "add", words, magnitude, word(((15 - 127) << 23) + 0xFFF))
    normal = binary(e, "ushr", words, binary(e, "add", words, rebased, odd), word(13))
    magic = ((127 - 15) + (23 - 10) + 1) << 23
    tiny = binary(e, "add", floats, bitcast(e, words, floats, magnitude), bitcast(e, words, floats, word(magic)))
    subnormal = binary(e, "sub", words, bitcast(e, floats, words, tiny), word(magic))
    nan = compare(e, "gt", words, magnitude, word(0x7F800000))
    special = select(e, nan, words, word(0x7E00), word(0x7C00))
    is_tiny = compare(e, "lt", words, magnitude, word(113 << 23))
    is_special = compare(e, "ge", words, magnitude, word((127 + 16) << 23))
    chosen = select(e, is_special, words, special, select(e, is_tiny, words, subnormal, normal))
    signed = binary(e, "or", words, chosen, binary(e, "ushr", words, sign, word(16)))
    return e.emit(f"arith.trunci {signed} : {type_text(words)} to {type_text(vec(F16, lanes))}")
