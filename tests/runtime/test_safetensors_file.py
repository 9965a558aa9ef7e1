"""The safetensors format: read by the official reader, readable from it, and every broken file refused."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import ArtifactError, WeightsError
from tilewright.ir.dtypes import BF16, DTYPES, F32, U8, DType
from tilewright.runtime.safetensors_file import SafetensorsFile, SafetensorsWriter
from tilewright.runtime.tensors import as_buffer


def write(path: Path, tensors: dict[str, np.ndarray[Any, Any]], dtypes: dict[str, DType]) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    writer = SafetensorsWriter(fd, [(name, dtypes[name], tensor.shape) for name, tensor in tensors.items()])
    for name in reversed(tensors):  # any order
        writer.write(name, as_buffer(tensors[name]).bytes())
    writer.finish()
    os.close(fd)


def some(rng: np.random.Generator) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, DType]]:
    tensors, dtypes = {}, {}
    for dtype in DTYPES.values():
        for shape in ((), (1,), (3, 5), (0, 4), (7,)):
            name = f"{dtype}.{'x'.join(map(str, shape))}"
            tensors[name] = (rng.standard_normal(shape) * 9).astype(dtype.numpy())
            dtypes[name] = dtype
    return tensors, dtypes


def test_what_was_written_is_read_back_mapped_and_aligned(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors, dtypes = some(rng)
    write(tmp_path / "w", tensors, dtypes)
    file = SafetensorsFile(tmp_path / "w")
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        buffer = file[name]
        assert (buffer.dtype, buffer.shape) == (dtypes[name], tensor.shape)
        assert buffer.address % 64 == 0
        assert bytes(buffer.bytes()) == tensor.tobytes()
        assert buffer.numpy().dtype == tensor.dtype
        assert not buffer.numpy().flags.writeable
    assert b"".join(file.chunks(100)) == (tmp_path / "w").read_bytes()


def test_a_mapping_outlives_its_file_object_and_the_file(tmp_path: Path) -> None:
    write(tmp_path / "w", {"a": np.arange(5, dtype=np.float32)}, {"a": F32})
    array = SafetensorsFile(tmp_path / "w")["a"].numpy()
    os.unlink(tmp_path / "w")
    np.testing.assert_array_equal(array, np.arange(5))


def test_the_official_reader_reads_it(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors, dtypes = some(rng)
    write(tmp_path / "w", tensors, dtypes)
    with safetensors.safe_open(tmp_path / "w", "pt") as official:
        for name, tensor in tensors.items():
            found = official.get_tensor(name)
            assert tuple(found.shape) == tensor.shape
            assert found.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == tensor.tobytes()


def test_files_of_the_official_writer_are_read_misaligned_or_not(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {"odd": np.ones(3, np.uint8), "x": rng.standard_normal((2, 3)), "y": rng.standard_normal(4).astype("f2")}
    safetensors.numpy.save_file(tensors, tmp_path / "w", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "w")
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file[name].numpy(), tensor)
        assert as_buffer(file[name]).address % tensor.itemsize == 0
        np.testing.assert_array_equal(as_buffer(file[name]).numpy(), tensor)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors, dtypes = some(rng)
    for name in ("a", "b"):
        write(tmp_path / name, tensors, dtypes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_piece_of_a_file_at_any_offset(tmp_path: Path) -> None:
    write(tmp_path / "w", {"a": np.arange(5, dtype=np.float32)}, {"a": F32})
    inner = (tmp_path / "w").read_bytes()
    for lead in (0, 64, 4096, 5000):
        (tmp_path / "outer").write_bytes(b"x" * lead + inner + b"tail")
        file = SafetensorsFile(tmp_path / "outer", offset=lead, size=len(inner))
        np.testing.assert_array_equal(file["a"].numpy(), np.arange(5))
        assert b"".join(file.chunks()) == inner


def test_foreign_dtypes_are_skipped_until_they_are_asked_for(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"u": np.arange(3, dtype=np.uint32), "f": np.ones(2, np.float32)}, tmp_path / "w")
    file = SafetensorsFile(tmp_path / "w")
    np.testing.assert_array_equal(file["f"].numpy(), [1, 1])
    assert file.entry("u").shape == (3,)
    with pytest.raises(WeightsError) as raised:
        file["u"]
    assert str(raised.value) == (
        f"TW040 weights do not fit: {tmp_path / 'w'}: 'u' holds U32, which no program reads\n"
        "  next: download or write the file again"
    )


def container(header: Any, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


BROKEN = {
    "empty": (b"", "has 0 bytes, too few for a safetensors file at 0"),
    "short": (b"1234567", "has 7 bytes, too few for a safetensors file at 0"),
    "huge header": (b"\xff" * 8 + b"{}", f": a header of {(1 << 64) - 1} bytes does not fit in a file of 10"),
    "header past the end": (container(entry())[:20], ": a header of "),
    "not JSON": (container(b"{nope"), ": the header is malformed: Expecting property name"),
    "not UTF-8": (container(b'{"\xff"}'), ": the header is malformed: 'utf-8' codec"),
    "a list": (container([]), ": the header is malformed: the header is not a JSON object"),
    "deep": (container(b"[" * 100_000), ": the header is malformed: "),
    "no dtype": (container({"a": {"shape": [2], "data_offsets": [0, 8]}}), ": the header is malformed: 'dtype'"),
    "unknown dtype": (container(entry(dtype="F99")), ": the header is malformed: unknown dtype 'F99'"),
    "negative": (container(entry(shape=[-2])), ": the header is malformed: sizes must be whole numbers"),
    "fraction": (container(entry(shape=[2.0])), ": the header is malformed: sizes must be whole numbers"),
    "three offsets": (container(entry(data_offsets=[0, 4, 8])), ": the header is malformed: too many values"),
    "wrong size": (container(entry(shape=[3])), ": 'a' lies at bytes 0 to 8, which do not fit"),
    "past the end": (container(entry(data_offsets=[0, 8]), b""), ": the tensors end at byte 8, the data at 0"),
    "a gap": (container(entry(data_offsets=[4, 12]), b"\0" * 12), ": 'a' lies at bytes 4 to 12, which do not fit"),
    "overlap": (container(entry() | {"b": entry()["a"]}), ": 'b' lies at bytes 0 to 8, which do not fit"),
    "a tail": (container(entry(), b"\0" * 9), ": the tensors end at byte 8, the data at 9"),
    "enormous": (container(entry(shape=[1 << 62, 1 << 62])), ": 'a' lies at bytes 0 to 8, which do not fit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str, tmp_path: Path) -> None:
    data, said = BROKEN[name]
    path = tmp_path / "w"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as raised:
        SafetensorsFile(path)
    assert str(raised.value).startswith(f"TW040 weights do not fit: {path}{'' if said[0] == ':' else ' '}{said}")
    with pytest.raises(ArtifactError, match="mine"):
        SafetensorsFile(path, fault=lambda text: ArtifactError(f"mine: {text}", step="x"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as raised:
        SafetensorsFile(tmp_path / "none")
    assert str(raised.value) == (
        f"TW040 weights do not fit: {tmp_path / 'none'} cannot be read: No such file or directory\n"
        "  next: download or write the file again"
    )


@given(st.binary(max_size=200))
def test_no_bytes_at_all_crash_the_reader(data: bytes) -> None:
    fd = os.memfd_create("broken")
    try:
        os.write(fd, data)
        try:
            file = SafetensorsFile(fd)
        except WeightsError:
            return
        for name in file:
            file[name].bytes()
    finally:
        os.close(fd)


def test_a_writer_wants_every_tensor_once_and_whole(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "w", os.O_RDWR | os.O_CREAT)
    writer = SafetensorsWriter(fd, [("a", F32, (2,)), ("b", BF16, (3,))])
    with pytest.raises(WeightsError, match=r"a has 4 bytes, its place 8"):
        writer.write("a", b"1234")
    writer.write("b", np.ones(3, ml_dtypes.bfloat16).tobytes())
    with pytest.raises(WeightsError) as raised:
        writer.finish()
    assert str(raised.value) == ("TW040 weights do not fit: a was not written\n  next: write every declared tensor")
    place = writer.mapped("a")
    ctypes.memmove(place.address, b"12345678", 8)
    place.drop()
    writer.finish()
    assert SafetensorsFile(tmp_path / "w")["a"].bytes() == b"12345678"
    for bad in ("~7", "__metadata__", "a"):
        with pytest.raises(WeightsError, match="a tensor cannot be stored as"):
            SafetensorsWriter(fd, [("a", F32, (2,)), (bad, F32, (2,))])
    os.close(fd)


def test_no_place_that_is_mapped_is_a_hole_and_what_was_written_there_stays(tmp_path: Path) -> None:
    # a store into a hole of a full disk is a signal, not an error; 3 MiB and 5 bytes: no whole number of writes
    size = (3 << 20) + 5
    with open(tmp_path / "w", "w+b") as file:
        writer = SafetensorsWriter(file.fileno(), [("a", U8, (size,)), ("b", U8, (size,))])
        place = writer.mapped("b")
        assert os.fstat(file.fileno()).st_blocks * 512 >= size
        ctypes.memmove(place.address, b"kept", 4)
        again = writer.mapped("b")
        assert ctypes.string_at(again.address, 5) == b"kept\0"
        writer.write("a", bytes(size))
        writer.finish()
        assert SafetensorsFile(file.fileno())["b"].bytes()[:5] == b"kept\0"


def test_what_is_mapped_is_the_tensor_and_its_neighbours_stay(tmp_path: Path, rng: np.random.Generator) -> None:
    # mappings begin and end where huge pages do: among others' bytes, and past the end of the file
    sizes = {"a": (2 << 20) - 77, "b": 3, "c": (4 << 20) + 1, "d": 5000}
    data = {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}
    with open(tmp_path / "w", "w+b") as file:
        writer = SafetensorsWriter(file.fileno(), [(name, U8, (size,)) for name, size in sizes.items()])
        places = {name: writer.mapped(name) for name in sizes}
        for name in ("c", "a", "d", "b"):
            ctypes.memmove(places[name].address, data[name].ctypes.data, sizes[name])
            places[name].drop()
        writer.finish()
        held = SafetensorsFile(file.fileno())
        for name in sizes:
            np.testing.assert_array_equal(held[name].numpy(), data[name])


def test_writing_keeps_one_tensor_in_memory(tmp_path: Path) -> None:
    script = f"""
import os, resource
import numpy as np
from tilewright.ir.dtypes import F32
from tilewright.runtime.safetensors_file import SafetensorsFile, SafetensorsWriter
fd = os.open({str(tmp_path / "w")!r}, os.O_RDWR | os.O_CREAT)
writer = SafetensorsWriter(fd, [(f"t{{i}}", F32, (1 << 21,)) for i in range(24)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(24):
    writer.write(f"t{{i}}", np.full(1 << 21, i, np.float32).data.cast("B"))
writer.finish()
for chunk in SafetensorsFile(fd).chunks():
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 8 << 10, "the file has 24 tensors of 8 MiB"
