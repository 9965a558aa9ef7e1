"""Packed storage: the reference table and the ops that read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ir.tile.single_op import make, run, spread
from tilewright.errors import IRError
from tilewright.ir.tile.compute import PackOp, UnpackOp
from tilewright.ir.tile.formats import FORMATS


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("axis", [0, 1, 2])
class TestFormats:
    def test_every_word_unpacks_and_packs_back(self, name: str, axis: int) -> None:
        shape = [1, 1, 1]
        shape[axis] = 256
        words = np.arange(256, dtype=np.uint8).reshape(shape)
        elements = run(UnpackOp, words, format=name, axis=axis)
        assert elements.shape[axis] == 256 * FORMATS[name].per_storage
        np.testing.assert_array_equal(run(PackOp, elements, format=name, axis=axis), words)

    def test_every_element_packs_and_unpacks_back(self, name: str, axis: int, rng: Any) -> None:
        entry = FORMATS[name]
        low, high = (0, 2**entry.bits) if name.startswith("u") else (-(2 ** (entry.bits - 1)), 2 ** (entry.bits - 1))
        elements = rng.integers(low, high, (4, 8, 12)).astype(entry.element.numpy())
        packed = run(PackOp, elements, format=name, axis=axis)
        assert packed.nbytes * 8 == elements.size * entry.bits
        np.testing.assert_array_equal(run(UnpackOp, packed, format=name, axis=axis), elements)


def test_the_lowest_bits_come_first() -> None:
    assert run(UnpackOp, np.array([[0x8F, 0x21]], np.uint8), format="int4", axis=1).tolist() == [[-1, -8, 1, 2]]
    assert run(UnpackOp, np.array([[0x8F, 0x21]], np.uint8), format="uint4", axis=1).tolist() == [[15, 8, 1, 2]]
    assert run(UnpackOp, np.array([0b11_10_01_00], np.uint8), format="int2", axis=0).tolist() == [0, 1, -2, -1]


def test_poison_stays_with_its_word() -> None:
    mask = np.array([[True, False]])
    assert spread(UnpackOp, [np.zeros((1, 2), np.uint8)], [mask], format="int4", axis=1).tolist() == [[1, 1, 0, 0]]
    mask = np.array([[False, True, False, False]])
    assert spread(PackOp, [np.zeros((1, 4), np.int8)], [mask], format="int4", axis=1).tolist() == [[1, 0]]


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(IRError, match="'int3' does not unpack"):
        make(UnpackOp, np.zeros((2,), np.uint8), format="int3", axis=0)
    with pytest.raises(IRError, match="does not unpack i8"):
        make(UnpackOp, np.zeros((2,), np.int8), format="int4", axis=0)
    with pytest.raises(IRError, match="does not pack"):
        make(PackOp, np.zeros((3,), np.int8), format="int4", axis=0)
