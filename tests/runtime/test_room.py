"""Room for packed weights: zeros that are there before one asks, in a file that nobody finds before it has a name."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.programs import affine_program, code, pool, values
from tilewright.ir.dtypes import U8
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.room import Room
from tilewright.runtime.safetensors_file import SafetensorsFile, SafetensorsWriter


def filled(folder: Path | None, size: int) -> Room:
    """A room whose thread is done."""
    room = Room.within(folder, size)
    assert room is not None
    deadline = time.monotonic() + 20
    while any(thread.name == "tilewright-room" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return room


@pytest.mark.parametrize("size", [1, (1 << 20) + 3, (17 << 20) + 1])
@pytest.mark.parametrize("in_file", [False, True])
def test_it_is_zeros_of_the_size_that_was_asked_for(size: int, in_file: bool, tmp_path: Path) -> None:
    room = filled(tmp_path if in_file else None, size)
    assert not list(tmp_path.iterdir())
    fd, written = room.take(tmp_path / "w" if in_file else None)
    assert (written, os.fstat(fd).st_size) == (size, size)
    assert os.pread(fd, size, 0) == bytes(size)
    assert [p.name for p in tmp_path.iterdir()] == ["w"] * in_file
    os.close(fd)


def test_whoever_takes_it_early_is_told_how_far_it_came() -> None:
    room = Room.within(None, 1 << 30)
    assert room is not None
    fd, written = room.take(None)
    assert written == os.fstat(fd).st_size < 1 << 30
    os.close(fd)


def test_one_that_is_dropped_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    room = Room.within(tmp_path, 1 << 30)
    assert room is not None
    room.drop()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list(tmp_path.iterdir())
    assert not any(thread.name == "tilewright-room" for thread in threading.enumerate())


def test_where_it_cannot_have_a_name_a_new_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.runtime.room._OPEN_FILES", str(tmp_path / "missing"))
    fd, written = filled(tmp_path, 1000).take(tmp_path / "w")
    assert (written, os.fstat(fd).st_size) == (0, 0)
    os.close(fd)
    assert (tmp_path / "w").exists()


@pytest.mark.parametrize("size", [1, 300, 5000, 1 << 20])
def test_packing_into_one_gives_the_file_that_packing_gives(
    size: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    weights, plain, roomy = values(rng), tmp_path / "plain", tmp_path / "roomy"
    prepare_weights(affine_program(), code(), pool(), weights, plain)
    prepare_weights(affine_program(), code(), pool(), weights, roomy, room=filled(tmp_path, size))
    assert roomy.read_bytes() == plain.read_bytes()


def test_what_reaches_past_the_zeros_is_no_hole_either(tmp_path: Path) -> None:
    # more than the disk keeps inside an inode, and no whole number of pages
    size = (1 << 20) + 5
    fd, zeros = filled(tmp_path, size + 70_000).take(tmp_path / "w")
    writer = SafetensorsWriter(fd, [(name, U8, (size,)) for name in "ab"], zeros)
    for name in "ab":
        writer.mapped(name)
    assert os.fstat(fd).st_blocks * 512 >= 2 * size
    writer.finish()
    file = SafetensorsFile(fd)
    assert [file[name].bytes() for name in "ab"] == [bytes(size)] * 2
    os.close(fd)
