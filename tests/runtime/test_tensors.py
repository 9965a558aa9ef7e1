"""Tensors at the border: described without torch, handed over without copies where they can be."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tilewright.errors import MissingDependencyError
from tilewright.ir.dtypes import BF16, DTYPES, F32, torch_name
from tilewright.runtime.results import fresh_numpy, fresh_torch
from tilewright.runtime.tensors import (
    Buffer,
    as_buffer,
    describe,
    numpy_dtype,
    row_major,
    torch_dtype,
)


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 5)], ids=str)
def test_every_dtype_crosses_both_borders(dtype: Any, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    [(array, address)] = fresh_numpy([(shape, row_major(shape), dtype)])
    array[...] = rng.integers(0, 2, shape)
    [(tensor, place)] = fresh_torch([(shape, row_major(shape), torch_dtype(dtype))])
    assert place == tensor.data_ptr()
    assert tensor.stride() == torch.empty(shape).stride()
    assert address % 64 == 0
    assert tensor.dtype == getattr(torch, torch_name(dtype))
    for value in (array, tensor):
        found, buffer = describe(value), as_buffer(value)
        assert found is not None
        assert (found.dtype, found.shape, found.device, found.dense) == (dtype, shape, "cpu", True)
        assert (buffer.dtype, buffer.shape) == (dtype, shape)
        assert buffer.nbytes == len(buffer.bytes()) == int(np.prod(shape)) * dtype.bytes
    if array.size:
        assert as_buffer(array).address == array.__array_interface__["data"][0] == address
        assert as_buffer(tensor).address == tensor.data_ptr()
    np.testing.assert_array_equal(as_buffer(array).numpy(), array)
    assert bytes(as_buffer(array).bytes()) == array.tobytes()


def test_what_is_no_tensor_has_no_description() -> None:
    for value in (None, 1, "x", [1.0], {"a": 1}):
        assert describe(value) is None
        with pytest.raises(TypeError):
            as_buffer(value)


def test_dtypes_that_the_ir_lacks_are_described_by_name() -> None:
    for value, name in ((np.zeros(1, np.uint16), "uint16"), (torch.zeros(1, dtype=torch.complex64), "complex64")):
        found = describe(value)
        assert found is not None
        assert (found.dtype, found.dtype_name) == (None, name)


def test_views_keep_their_memory_alive(rng: np.random.Generator) -> None:
    source = rng.standard_normal(1000, np.float32)
    view = as_buffer(torch.from_numpy(source.copy())).numpy()
    held = as_buffer(source.copy()).bytes()
    junk = [np.full(1000, 7, np.float32) for _ in range(50)]
    np.testing.assert_array_equal(view, source)
    assert bytes(held) == source.tobytes()
    assert len(junk) == 50


def test_views_are_read_only_unless_asked_for() -> None:
    array = np.zeros(3, np.float32)
    assert not as_buffer(array).numpy().flags.writeable
    as_buffer(array).numpy(writeable=True)[1] = 2
    assert array[1] == 2


def test_a_misaligned_buffer_is_copied_to_a_boundary() -> None:
    room = np.frombuffer(b"-" + np.arange(4, dtype=np.float32).tobytes(), np.uint8)
    odd = Buffer(F32, (4,), int(room.__array_interface__["data"][0]) + 1, room)
    copied = as_buffer(odd)
    assert copied.address % 64 == 0
    np.testing.assert_array_equal(copied.numpy(), np.arange(4))


def test_bf16_without_ml_dtypes_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.ones(3, ml_dtypes.bfloat16)
    buffer = as_buffer(array)
    numpy_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingDependencyError) as raised:
        buffer.numpy()
    assert str(raised.value) == (
        "TW032 a dependency is missing: NumPy arrays of bf16 need ml_dtypes "
        "(import of ml_dtypes halted; None in sys.modules)\n"
        "  next: pip install ml_dtypes, or pass torch tensors"
    )
    assert (buffer.nbytes, buffer.dtype) == (6, BF16)
    assert bytes(buffer.bytes()) == array.tobytes()


def test_the_runtime_imports_nothing_heavy() -> None:
    script = (
        "import sys, pkgutil, importlib, tilewright.runtime as room\n"
        "for module in pkgutil.iter_modules(room.__path__, 'tilewright.runtime.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'xdsl', 'ml_dtypes', 'torch_mlir', 'llvmlite', 'rich', 'transformers'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
