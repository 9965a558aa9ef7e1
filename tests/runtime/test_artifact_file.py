"""The container: deterministic, every byte accounted for, nothing allocated on a file's word."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import ArtifactError, ArtifactVersionError, TilewrightError
from tilewright.runtime.artifact_file import FORMAT_VERSION, MAGIC, Container, NewSection, write_container
from tilewright.runtime.canonical import canonical_json

SECTIONS = {"first": b"abc" * 50, "empty": b"", "page": bytes(range(256)) * 2, "last": b"\0\0end"}


def sections() -> list[NewSection]:
    made = [NewSection.of(name, data) for name, data in SECTIONS.items()]
    made[2] = NewSection("page", len(SECTIONS["page"]), lambda: (SECTIONS["page"][:9], SECTIONS["page"][9:]), 1024)
    return made


def written(path: Path) -> bytes:
    write_container(path, {"note": ["x", 1]}, sections())
    return path.read_bytes()


def opened(path: Path) -> Container:
    """Opened with every section verified, as a load does."""
    container = Container(path)
    for name in container.sections:
        container.verify(name)
    return container


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    container = opened(tmp_path / "a")
    assert container.facts == {"note": ["x", 1]}
    assert {name: container.read(name) for name in container.sections} == SECTIONS
    assert container.section("page").offset % 1024 == 0
    assert all(s.offset % 64 == 0 for s in container.sections.values())
    assert data.startswith(MAGIC)
    with pytest.raises(ArtifactError, match="has no section other"):
        container.read("other")


def test_the_same_sections_give_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    assert written(tmp_path / "b") == data
    script = (
        "import sys; from pathlib import Path; from tests.runtime.test_artifact_file import written\n"
        "written(Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        environment = {"HOME": f"/{seed}", "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / seed)], env=environment, cwd=tmp_path, check=True)
        assert (tmp_path / seed).read_bytes() == data


@given(st.lists(st.integers(0, 5000), max_size=12))
def test_any_number_and_size_of_sections(sizes: list[int]) -> None:
    path = Path(f"/dev/shm/tilewright-test-{os.getpid()}")
    data = {f"s{i}": bytes([i]) * size for i, size in enumerate(sizes)}
    try:
        write_container(path, None, [NewSection.of(name, content) for name, content in data.items()])
        assert {name: opened(path).read(name) for name in data} == data
    finally:
        path.unlink()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    fd = os.open(tmp_path / "a", os.O_RDWR)
    for at, byte in enumerate(data):
        os.pwrite(fd, bytes([byte ^ 1 << at % 8]), at)
        with pytest.raises((ArtifactError, ArtifactVersionError)):
            opened(tmp_path / "a")
        os.pwrite(fd, bytes([byte]), at)
    os.close(fd)
    opened(tmp_path / "a")


def test_every_truncation_is_found(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    placed = Container(tmp_path / "a").sections.values()
    ends = {0, 1, 7, 8, 11, 12, 19, 20, 51, 52, 53, *(s.offset for s in placed), *(s.end for s in placed)}
    ends |= {end + step for end in ends for step in (-1, 1)} | set(range(0, len(data), 97))
    path = tmp_path / "b"
    for end in sorted(e for e in ends if 0 <= e < len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ArtifactError):
            opened(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError, match=f"has {len(data) + 1} bytes, its header says {len(data)}"):
        opened(path)


def said(path: Path) -> str:
    with pytest.raises(TilewrightError) as raised:
        opened(path)
    return str(raised.value)


def test_messages_in_full(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    page = Container(tmp_path / "a").section("page")
    path = tmp_path / "b"
    again = "\n  next: save or copy the artifact again"
    other = "\n  next: give the path of a file that save() wrote"
    for content, text in (
        (b"", f"TW042 artifact is damaged: {path} is no Tilewright artifact{other}"),
        (b"PK\3\4" + data, f"TW042 artifact is damaged: {path} is no Tilewright artifact{other}"),
        (data[:5], f"TW042 artifact is damaged: {path} is truncated{other}"),
        (data[:30], f"TW042 artifact is damaged: {path} is truncated in its preamble{again}"),
        (
            data[: page.offset + 9],
            f"TW042 artifact is damaged: {path} is truncated: section page ends at byte {page.end}, "
            f"the file at {page.offset + 9}{again}",
        ),
        (
            data[: page.offset + 9] + b"!" + data[page.offset + 10 :],
            f"TW042 artifact is damaged: {path} is altered in section page: its hash does not match{again}",
        ),
        (
            data[: page.offset - 1] + b"!" + data[page.offset :],
            f"TW042 artifact is damaged: {path} is altered before section page: the gap is not zero{again}",
        ),
        (
            data[:60] + b"!" + data[61:],
            f"TW042 artifact is damaged: {path} has an altered header: its hash does not match{again}",
        ),
        (
            data.replace(b"\r\n", b"\n"),
            f"TW042 artifact is damaged: {path} is no Tilewright artifact{other}",
        ),
        (
            data[:8] + struct.pack("<I", FORMAT_VERSION + 1) + data[12:],
            f"TW043 artifact version: {path} has format version {FORMAT_VERSION + 1}, "
            f"this Tilewright reads version {FORMAT_VERSION}\n"
            "  next: save it again with this version of Tilewright, or load it with the one that wrote it",
        ),
    ):
        path.write_bytes(content)
        assert said(path) == text
    assert said(tmp_path / "none") == (
        "TW046 artifact cannot be read or written: "
        f"{tmp_path / 'none'} cannot be read: No such file or directory{other}"
    )
    assert (
        said(tmp_path) == f"TW046 artifact cannot be read or written: {tmp_path} cannot be read: Is a directory{other}"
    )


def forged(header: Any, tail: bytes = b"", *, length: int | None = None) -> bytes:
    """A file whose hash of the header is right, whatever the header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<8sIQ", MAGIC, FORMAT_VERSION, len(text) if length is None else length)
    return start + hashlib.sha256(start + text).digest() + text + tail


def section(**changes: Any) -> dict[str, Any]:
    return {"name": "s", "offset": 1000, "size": 4, "hash": "", **changes}


@pytest.mark.parametrize(
    "content",
    [
        forged({}),
        forged([]),
        forged(b"{"),
        forged(b"\xff"),
        forged(b"[" * 100_000),
        forged({}, length=1 << 62),
        forged({}, length=3),
        forged({"facts": 1, "sections": 3, "size": 100}),
        forged({"facts": 1, "sections": [3], "size": 100}),
        *(
            forged({"facts": 1, "sections": [section(**change)], "size": 1004}, b"\0" * 2000)
            for change in (
                {"offset": -1},
                {"offset": 3},
                {"offset": "0"},
                {"offset": 1 << 70},
                {"offset": True},
                {"size": -5},
                {"size": 1 << 62},
                {"size": 1.5},
            )
        ),
        forged({"facts": 1, "sections": [section(), section(offset=1004)], "size": 1008}, b"\0" * 2000),
        forged({"facts": 1, "sections": [section(), section(offset=1002, name="t")], "size": 1006}, b"\0" * 2000),
    ],
)
def test_forged_headers_are_coded_errors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        opened(path)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_crash_the_reader(tail: bytes) -> None:
    path = Path(f"/dev/shm/tilewright-test-{os.getpid()}")
    try:
        for content in (tail, MAGIC + tail, forged(tail)):
            path.write_bytes(content)
            with pytest.raises((ArtifactError, ArtifactVersionError)):
                opened(path)
    finally:
        path.unlink()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    for chunks in (lambda: (b"1234",), lambda: (b"12", b"345")):
        with pytest.raises(ArtifactError, match=r"section s gave \d bytes instead of 3"):
            write_container(tmp_path / "a", {}, [NewSection("s", 3, chunks)])

    def broken() -> Any:
        yield b"1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_container(tmp_path / "a", {}, [NewSection("s", 3, broken)])
    assert (tmp_path / "a").read_bytes() == data
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_renamed_over_an_open_one_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path / "a")
    container = Container(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"other")
    (tmp_path / "b").replace(tmp_path / "a")
    assert container.read("first") == SECTIONS["first"]


def test_the_header_is_canonical_json(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    length = struct.unpack_from("<Q", data, 12)[0]
    header = data[52 : 52 + length].decode("ascii")
    assert canonical_json(json.loads(header)) == header.rstrip(" ")
