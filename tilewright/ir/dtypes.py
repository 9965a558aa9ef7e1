"""Element types by name: the one table of storage sizes that every room reads.

Pure Python on purpose: the runtime loads artifacts with numpy alone and still speaks of dtypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["float", "int", "uint", "bool"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: its name in the IR, its width in bits and its kind."""

    name: str
    bits: int
    kind: Kind

    @property
    def bytes(self) -> int:
        """Bytes one element takes in memory; i1 is stored as a whole byte."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers, not for i1."""
        return self.kind in ("int", "uint")

    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype with the same bits; bf16 comes from ml_dtypes."""
        import numpy as np

        if self.name == "bf16":
            import ml_dtypes

            found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return found
        return np.dtype(_NUMPY[self.name])

    def __str__(self) -> str:
        return self.name


F64: Final = DType("f64", 64, "float")
F32: Final = DType("f32", 32, "float")
F16: Final = DType("f16", 16, "float")
BF16: Final = DType("bf16", 16, "float")
I64: Final = DType("i64", 64, "int")
I32: Final = DType("i32", 32, "int")
I16: Final = DType("i16", 16, "int")
I8: Final = DType("i8", 8, "int")
U8: Final = DType("u8", 8, "uint")
I1: Final = DType("i1", 1, "bool")

DTYPES: Final[dict[str, DType]] = {t.name: t for t in (F64, F32, F16, BF16, I64, I32, I16, I8, U8, I1)}

_NUMPY: Final = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "i1": "bool",
}
_TORCH: Final = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "i1": "bool",
}


def torch_name(dtype: DType) -> str:
    """The attribute of the torch module that is this dtype, as in `getattr(torch, torch_name(BF16))`."""
    return _TORCH[dtype.name]


def from_torch_name(name: str) -> DType | None:
    """The dtype of a torch dtype's name ("torch.float32" or "float32"); None where the IR has no such type."""
    short = name.rsplit(".", 1)[-1]
    return next((DTYPES[ours] for ours, theirs in _TORCH.items() if theirs == short), None)


def from_numpy(dtype: np.dtype[Any]) -> DType | None:
    """The dtype of a NumPy dtype; None where the IR has no such type."""
    if dtype.name == "bfloat16":
        return BF16
    return next((DTYPES[ours] for ours, theirs in _NUMPY.items() if theirs == dtype.name), None)


def promote(a: DType, b: DType) -> DType:
    """The dtype of an operation between two tensors, as torch promotes tensors of equal rank category."""
    if a == b:
        return a
    order: dict[Kind, int] = {"bool": 0, "uint": 1, "int": 1, "float": 2}
    if order[a.kind] != order[b.kind]:
        return a if order[a.kind] > order[b.kind] else b
    if a.is_float:
        return F32 if a.bits == b.bits else max(a, b, key=lambda t: t.bits)
    if a.kind == b.kind:
        return max(a, b, key=lambda t: t.bits)
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    return signed if signed.bits > unsigned.bits else I16
