"""The small C functions that printed kernels call where C's operators say something else than the loop IR.

Each is printed only into kernels that use it, after those that it calls itself (`_NEEDS`). Functions that exist for
several dtypes have the dtype at the end of their name (`typed`).
"""

from __future__ import annotations

from typing import Final

from tilewright.errors import IRError
from tilewright.ir.dtypes import DType

TYPES: Final[dict[str, str]] = {
    "f64": "double", "f32": "float", "f16": "uint16_t", "bf16": "uint16_t",
    "i64": "int64_t", "i32": "int32_t", "i16": "int16_t", "i8": "int8_t", "u8": "uint8_t", "i1": "bool",
}  # fmt: skip
"""The C type of a value in a register. 16-bit floats are their bits: they are stored, never computed with."""

_MIN: Final = "static inline {T} {name}({T} a, {T} b) {{ return a < b ? a : b; }}"
_MAX: Final = "static inline {T} {name}({T} a, {T} b) {{ return a > b ? a : b; }}"
# Equal operands give b, and a NaN on the right falls through the comparison.
_MINIMUM: Final = "static inline {T} {name}({T} a, {T} b) {{ return a != a ? a : a < b ? a : b; }}"
_MAXIMUM: Final = "static inline {T} {name}({T} a, {T} b) {{ return a != a ? a : a > b ? a : b; }}"
_ABS: Final = "static inline {T} {name}({T} a) {{ return a < 0 ? -a : a; }}"
_FLOORDIV: Final = """\
static inline {T} {name}({T} a, {T} b) {{
    {T} q = a / b;
    return q - (a % b != 0 && (a % b < 0) != (b < 0));
}}"""
_MOD: Final = """\
static inline {T} {name}({T} a, {T} b) {{
    {T} r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}}"""
_BY_TYPE: Final[dict[str, str]] = {
    "min": _MIN, "max": _MAX, "minimum": _MINIMUM, "maximum": _MAXIMUM, "abs": _ABS, "floordiv": _FLOORDIV, "mod": _MOD,
}  # fmt: skip

_FIXED: Final[dict[str, str]] = {
    "bits_of_f32": "static inline uint32_t bits_of_f32(float a) { uint32_t b; memcpy(&b, &a, 4); return b; }",
    "f32_of_bits": "static inline float f32_of_bits(uint32_t a) { float b; memcpy(&b, &a, 4); return b; }",
    # In two factors, neither of which is subnormal or infinite; their exponent fields are the halves of b + 254.
    "scale_f32": """\
static inline float scale_f32(float a, float b) {
    uint32_t fields = bits_of_f32(b + 12583166.0f) << 23, half = fields >> 1 & 0xff800000;
    return a * f32_of_bits(half) * f32_of_bits(fields - half);
}""",
    "fraction_f32": """\
static inline float fraction_f32(float a) {
    float whole = floorf(a), rest = a - whole;
    return rest + whole > a ? rest - 0x1p-24f : rest;
}""",
    "bits_of_f64": "static inline uint64_t bits_of_f64(double a) { uint64_t b; memcpy(&b, &a, 8); return b; }",
    "f64_of_bits": "static inline double f64_of_bits(uint64_t a) { double b; memcpy(&b, &a, 8); return b; }",
    "f32_of_bf16": "static inline float f32_of_bf16(uint16_t a) { return f32_of_bits((uint32_t)a << 16); }",
    # To nearest even: half a unit less one, plus the bit that must come out even. Any NaN is the quiet one.
    "bf16_of_f32": """\
static inline uint16_t bf16_of_f32(float a) {
    uint32_t b = bits_of_f32(a);
    return a != a ? 0x7fc0 : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}""",
    # One multiplication moves the exponent and normalises subnormals; infinities and NaN keep a full exponent.
    "f32_of_f16": """\
static inline float f32_of_f16(uint16_t a) {
    uint32_t sign = (uint32_t)(a & 0x8000) << 16;
    float scaled = f32_of_bits((uint32_t)(a & 0x7fff) << 13) * 0x1p112f;
    uint32_t b = bits_of_f32(scaled);
    return f32_of_bits(sign | (scaled >= 65536.0f ? b | 0x7f800000 : b));
}""",
    # Normal numbers are rounded as integers, subnormal ones by adding 0.5, whose last place is theirs.
    "f16_of_f32": """\
static inline uint16_t f16_of_f32(float a) {
    uint32_t b = bits_of_f32(a), m = b & 0x7fffffff, sign = b >> 16 & 0x8000;
    if (m > 0x7f800000) return sign | 0x7e00;
    if (m >= 0x47800000) return sign | 0x7c00;
    if (m < 0x38800000) return sign | (uint16_t)(bits_of_f32(f32_of_bits(m) + 0.5f) - 0x3f000000);
    return sign | (uint16_t)((m - 0x38000000 + 0xfff + (m >> 13 & 1)) >> 13);
}""",
    "i32_of_f32": """\
static inline int32_t i32_of_f32(float a) {
    return a >= -2147483648.0f && a < 2147483648.0f ? (int32_t)a : INT32_MIN;
}""",
    "i32_of_f64": """\
static inline int32_t i32_of_f64(double a) {
    return a >= -2147483648.0 && a < 2147483648.0 ? (int32_t)a : INT32_MIN;
}""",
    "i64_of_f32": """\
static inline int64_t i64_of_f32(float a) {
    return a >= -9223372036854775808.0f && a < 9223372036854775808.0f ? (int64_t)a : INT64_MIN;
}""",
    "i64_of_f64": """\
static inline int64_t i64_of_f64(double a) {
    return a >= -9223372036854775808.0 && a < 9223372036854775808.0 ? (int64_t)a : INT64_MIN;
}""",
}
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "scale_f32": ("bits_of_f32", "f32_of_bits"),
    "f32_of_bf16": ("f32_of_bits",),
    "bf16_of_f32": ("bits_of_f32",),
    "f32_of_f16": ("bits_of_f32", "f32_of_bits"),
    "f16_of_f32": ("bits_of_f32", "f32_of_bits"),
}


def typed(kind: str, dtype: DType) -> str:
    """The name of a helper that has a version for each dtype: "min" and f32 make min_f32."""
    return f"{kind}_{dtype}"


def texts(names: set[str]) -> list[str]:
    """The C text of helpers and of what they need, each once and before its users."""
    wanted = names | {needed for name in names for needed in _NEEDS.get(name, ())}
    fixed = [text for name, text in _FIXED.items() if name in wanted]
    return fixed + [_by_type(name) for name in sorted(wanted - _FIXED.keys())]


def _by_type(name: str) -> str:
    kind, _, dtype = name.rpartition("_")
    if kind not in _BY_TYPE:
        raise IRError(f"no C helper is called {name}", step="add it to the prelude")
    return _BY_TYPE[kind].format(T=TYPES[dtype], name=name)
