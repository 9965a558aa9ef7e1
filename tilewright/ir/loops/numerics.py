"""Bit-level number formats shared by constants and the interpreter, in pure Python."""

from __future__ import annotations

import struct


def round_to_bf16(value: float) -> float:
    """A finite number rounded to f32 and then to bf16, both to nearest even, as torch does."""
    try:
        bits = int(struct.unpack("<I", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])
