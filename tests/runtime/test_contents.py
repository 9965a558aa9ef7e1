"""Digests of tensors: those of their bytes now, whatever was remembered."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest
import torch

from tilewright.runtime.contents import Contents
from tilewright.runtime.weights import content_key


def digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def test_digests_are_those_of_the_bytes_row_by_row(rng: np.random.Generator) -> None:
    contents = Contents(2)
    for shape in [(), (0,), (1,), (7, 13), (3, 1, 5)]:
        array = rng.standard_normal(shape).astype(np.float32)
        turned = array.T.copy()
        for value in (
            array,
            torch.from_numpy(array),
            torch.from_numpy(turned).permute(tuple(reversed(range(array.ndim)))),
        ):
            assert contents.digest(value).result() == digest(array), (shape, type(value))
    halves = rng.standard_normal((5, 3)).astype(ml_dtypes.bfloat16)
    assert contents.digest(torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16)).result() == digest(halves)
    contents.forget()


def test_a_tensor_is_hashed_once_until_it_is_written_to(rng: np.random.Generator) -> None:
    array = rng.standard_normal((17, 5)).astype(np.float32)
    tensor = torch.nn.Parameter(torch.from_numpy(array.copy()), requires_grad=False)
    contents = Contents()
    contents.begin([tensor])
    first = contents.digest(tensor)
    assert contents.digest(tensor.detach()) is first
    assert first.result() == digest(array)
    view = tensor.view(-1)
    view[3] += 1.0
    changed = array.copy()
    changed.ravel()[3] += 1.0
    assert contents.digest(tensor).result() == digest(changed)
    # other axes of the same memory, and a part of it, are other bytes
    assert contents.digest(tensor.T).result() == digest(changed.T)
    assert contents.digest(tensor[1:]).result() == digest(changed[1:])
    assert contents.digest(torch._neg_view(tensor)).result() == digest(-changed)


def test_memory_given_to_another_tensor_is_not_taken_for_the_first(rng: np.random.Generator) -> None:
    contents = Contents()
    holder = torch.nn.Parameter(torch.zeros(1 << 16), requires_grad=False)
    contents.begin([holder])
    for fill in range(1, 6):
        # the allocator gives freed memory of this size out again
        holder.data = torch.full((1 << 16,), float(fill))
        assert contents.digest(holder).result() == digest(np.full(1 << 16, fill, np.float32))


@pytest.mark.parametrize("kind", ["array", "inference"])
def test_what_does_not_tell_of_its_writes_is_hashed_each_time(kind: str, rng: np.random.Generator) -> None:
    array = rng.standard_normal(9).astype(np.float32)
    contents = Contents()
    with torch.inference_mode():
        value = array if kind == "array" else torch.from_numpy(array.copy())
        contents.begin([value])
        before = contents.digest(value).result()
        value *= 2
        after = contents.digest(value).result()
    assert (before, after) != (after, before)
    assert after == digest(array if kind == "array" else value.numpy())


def test_digests_that_were_begun_give_the_same_key(rng: np.random.Generator) -> None:
    source = {f"w{i}": torch.from_numpy(rng.standard_normal((i, 3)).astype(np.float32)) for i in range(5)}
    contents = Contents(2)
    contents.begin(source.values())
    key = content_key(source, contents)
    assert key == content_key(source)
    source["w2"].mul_(-1)
    assert content_key(source, contents) != key
    contents.forget()
    assert content_key(source, contents) == content_key(source)
