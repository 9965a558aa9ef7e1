"""Tensors at the border: NumPy's and torch's as bytes in memory, and results as either.

torch is never imported here: a torch tensor can only be met in a process that has loaded torch. Everything between
the borders is a `Buffer`, which needs no NumPy dtype, so bf16 weights work where ml_dtypes is not installed.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import CapacityError, MissingDependencyError
from tilewright.ir.dtypes import DType, from_numpy, from_torch_name, torch_name
from tilewright.runtime.program import ALIGNMENT


@dataclass(frozen=True, slots=True)
class Buffer:
    """A row-major tensor in memory: element type, shape, where it starts, and what keeps it there."""

    dtype: DType
    shape: tuple[int, ...]
    address: int
    keep: Any

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.bytes

    def bytes(self) -> memoryview:
        """The bytes as they lie in memory, without a copy; valid while the Buffer lives."""
        return memoryview(_raw(self.address, self.nbytes, self.keep)).cast("B")

    def numpy(self, *, writeable: bool = False) -> NDArray[Any]:
        """A view as a NumPy array. MissingDependencyError for bf16 without ml_dtypes."""
        dtype = numpy_dtype(self.dtype)
        array = np.frombuffer(_raw(self.address, self.nbytes, self.keep), dtype).reshape(self.shape)
        array.flags.writeable = writeable
        return array


def _raw(address: int, size: int, keep: Any) -> Any:
    raw: Any = (ctypes.c_char * size).from_address(address)
    # Views of these bytes hold `raw`; so they must hold what owns the memory.
    raw._keep = keep
    return raw


@dataclass(frozen=True, slots=True)
class Description:
    """What a caller's tensor is. dtype: None where the IR has no such type. dtype_name: torch's or NumPy's.

    dense: not in a sparse layout of torch.
    """

    dtype: DType | None
    dtype_name: str
    shape: tuple[int, ...]
    device: str
    dense: bool


def describe(value: Any) -> Description | None:
    """A NumPy array's or scalar's or a torch tensor's description; None for anything else."""
    if isinstance(value, (np.ndarray, np.generic)):
        return Description(from_numpy(value.dtype), value.dtype.name, tuple(value.shape), "cpu", True)
    if is_torch(value):
        dtype = from_torch_name(str(value.dtype))
        name = str(value.dtype).removeprefix("torch.")
        if value.is_nested:
            # rows of several lengths have no shape
            return Description(dtype, name, (), str(value.device), False)
        dense = str(value.layout) == "torch.strided"
        return Description(dtype, name, tuple(map(int, value.shape)), str(value.device), dense)
    if isinstance(value, Buffer):
        return Description(value.dtype, torch_name(value.dtype), value.shape, "cpu", True)
    return None


def is_torch(value: Any) -> bool:
    """Whether it is a torch tensor, in a process that may not have torch at all."""
    torch = sys.modules.get("torch")
    # A torch that is only being imported has no Tensor yet, and nobody has a tensor of it.
    tensor_class = getattr(torch, "Tensor", None)
    return tensor_class is not None and isinstance(value, tensor_class)


def as_buffer(value: Any) -> Buffer:
    """The tensor's bytes, dense, row-major and aligned, copied only where they are not so already.

    The value must have a description with a known dtype, on the CPU. CapacityError when there is no memory for the
    copy.
    """
    found = describe(value)
    if found is None or found.dtype is None:
        raise TypeError(f"a {type(value).__name__} has no tensor's memory")
    try:
        if isinstance(value, Buffer):
            # Files of other writers put tensors on any byte.
            return value if value.address % value.dtype.bytes == 0 else _copied(value)
        if is_torch(value):
            dense = value.detach().resolve_neg().contiguous()
            return Buffer(found.dtype, found.shape, dense.data_ptr(), dense)
        array = np.asarray(value)
        # Not ascontiguousarray, which makes a vector of a scalar.
        array = np.require(array, array.dtype.newbyteorder("="), ["C", "A"])
    except (MemoryError, RuntimeError) as fault:
        raise refused(found.shape, found.dtype, fault) from fault
    return Buffer(found.dtype, found.shape, address_of(array), array)


def _copied(buffer: Buffer) -> Buffer:
    room, address = room_of(buffer.nbytes)
    room[:] = np.frombuffer(buffer.bytes(), np.uint8)
    return Buffer(buffer.dtype, buffer.shape, address, room)


def room_of(size: int) -> tuple[NDArray[np.uint8], int]:
    """Fresh bytes on a boundary of 64, and their address."""
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -address_of(room) % ALIGNMENT
    return room[start : start + size], address_of(room) + start


def refused(shape: Sequence[int], dtype: DType, fault: Exception) -> CapacityError:
    """NumPy refuses memory by MemoryError and ValueError, torch by RuntimeError."""
    said = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
    return CapacityError(
        f"there is no memory for a tensor of {dtype} {list(shape)}: {said}", step="pass smaller sizes, or free memory"
    )


def address_of(array: NDArray[Any]) -> int:
    """Where an array's first element lies."""
    return int(array.__array_interface__["data"][0])


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a dense tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides)) if shape else ()


@cache
def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy dtype; MissingDependencyError for bf16 without ml_dtypes."""
    try:
        return dtype.numpy()
    except ImportError as fault:
        raise MissingDependencyError(
            f"NumPy arrays of {dtype} need ml_dtypes ({fault})", step="pip install ml_dtypes, or pass torch tensors"
        ) from fault


@cache
def torch_dtype(dtype: DType) -> Any:
    """The torch dtype, in a process that has torch."""
    return getattr(sys.modules["torch"], torch_name(dtype))
