"""Float constants in LLVM IR text, spelled so that every LLVM reads them.

MLIR's wheel carries a newer LLVM than llvmlite. The newer one prints floats in ways the older one rejects: decimals
that are exact only after rounding to the constant's type, `f0x` bit patterns, and `+inf`, `-qnan`, `+snan(0x1)`. Bit
patterns in the old spelling say the same in both: 16 hex digits of the value as a double for float and double, and
0xH and 0xR with 4 digits for half and bfloat.
"""

from __future__ import annotations

import re
import struct

# A literal has its type before it: directly, or for a second operand and inside phi's list as the instruction's type.
# So it has the type named last. Names of values, labels and functions may look like either and are stepped over.
_TOKEN = re.compile(
    r'"[^"]*"|[%@#!$][\w.$-]+|;.*$'
    r"|\b(?P<type>float|double|half|bfloat)\b"
    r"|(?<![\w.])(?P<literal>[-+]?\d+\.\d*(?:e[-+]?\d+)?|f0x[0-9A-Fa-f]+|[-+](?:inf|qnan|s?nan\(0x[0-9A-Fa-f]+\)))(?![\w.])",
    re.MULTILINE,
)
_FRACTION_BITS = {"half": 10, "bfloat": 7, "float": 23, "double": 52}
_TOTAL_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64}


def portable_floats(text: str) -> str:
    """LLVM IR text with every float constant as the bits of its type."""
    kind = ""

    def respell(match: re.Match[str]) -> str:
        nonlocal kind
        if match["type"]:
            kind = match["type"]
        elif match["literal"]:
            return _spelling(kind, _bits(kind, match["literal"]))
        return match[0]

    return _TOKEN.sub(respell, text)


def _bits(kind: str, literal: str) -> int:
    fraction, total = _FRACTION_BITS[kind], _TOTAL_BITS[kind]
    if literal.startswith("f0x"):
        return int(literal[3:], 16)
    exponent = ((1 << (total - 1 - fraction)) - 1) << fraction
    sign = (literal[0] == "-") << (total - 1)
    if literal[1:] == "inf":
        return sign | exponent
    if "nan" in literal:
        quiet = 0 if literal[1:].startswith("snan") else 1 << (fraction - 1)
        payload = int(literal[literal.index("0x") : -1], 16) if "0x" in literal else 0
        return sign | exponent | quiet | payload
    value = float(literal)
    if kind == "double":
        return int.from_bytes(struct.pack(">d", value))
    if kind == "half":
        return int.from_bytes(struct.pack(">e", value))
    single = int.from_bytes(struct.pack(">f", value))
    if kind == "float":
        return single
    # To the nearest bfloat: the decimal lies closer to one than rounding to float first could disturb.
    return (single + 0x7FFF + (single >> 16 & 1)) >> 16


def _spelling(kind: str, bits: int) -> str:
    if kind == "half":
        return f"0xH{bits:04X}"
    if kind == "bfloat":
        return f"0xR{bits:04X}"
    if kind == "double":
        return f"0x{bits:016X}"
    fraction = bits & 0x7FFFFF
    if bits >> 23 & 0xFF == 0xFF:
        # Widened by hand: arithmetic on a signalling NaN would quiet it.
        return f"0x{(bits >> 31) << 63 | 0x7FF << 52 | fraction << 29:016X}"
    widened = struct.pack(">d", struct.unpack(">f", bits.to_bytes(4))[0])
    return f"0x{int.from_bytes(widened):016X}"
