"""The container of an artifact: a preamble, a JSON header, and named sections of bytes, each with its hash.

Layout, integers little-endian:

0   8 bytes   magic: a byte above 127 and line ends, so that text-mode transfers break it visibly 8   u32       format
version 12  u64       length of the header 20  32 bytes  sha256 of everything before it and of the header 52
the header: canonical JSON {"facts": ..., "sections": [{"name", "offset", "size", "hash"}, ...], "size": ...} ..
the sections in order, each on its own boundary, zeros between them

Every byte is accounted for: by a hash, or as a zero. Offsets are from the file's start, and nothing is allocated from a
length before it has been held against the file's size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tilewright.errors import ArtifactAccessError, ArtifactError, ArtifactVersionError
from tilewright.runtime.canonical import canonical_json
from tilewright.runtime.pieces import StreamHash, hash_range
from tilewright.runtime.safetensors_file import write_all

MAGIC: Final = b"\x93TWART\r\n"
FORMAT_VERSION: Final = 6

_PREAMBLE = struct.Struct("<8sIQ32s")
_UNHASHED = _PREAMBLE.size - 32
_LARGEST_HEADER = 64 << 20
_CHUNK = 1 << 20
_STEP = "save or copy the artifact again"


@dataclass(frozen=True, slots=True)
class NewSection:
    """A section to write. chunks: gives its bytes in order, `size` of them, each time it is called."""

    name: str
    size: int
    chunks: Callable[[], Iterable[bytes]]
    alignment: int = 64

    @staticmethod
    def of(name: str, data: bytes) -> NewSection:
        """A section whose bytes are at hand."""
        return NewSection(name, len(data), lambda: (data,))


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a file. offset, size: in bytes. hash: as `pieces.py` takes it."""

    name: str
    offset: int
    size: int
    hash: str

    @property
    def end(self) -> int:
        return self.offset + self.size


def plain_path(path: object, step: str) -> str:
    """A path as text that the system takes. ArtifactAccessError, with this next step, for what names no file."""
    if not isinstance(path, (str, os.PathLike)):
        raise ArtifactAccessError(f"the path is of type {type(path).__name__}, not a text or a Path", step=step)
    found = os.fspath(path)
    if not isinstance(found, str) or not found or "\0" in found:
        fault = "is empty" if not found else f"{found!r} names no file"
        raise ArtifactAccessError(f"the path {fault}", step=step)
    return found


def write_container(path: Path, facts: Any, sections: Sequence[NewSection]) -> None:
    """Writes an artifact: next to its place, then renamed into it, so that no reader ever sees half of one.

    Sections are streamed. The same facts and sections give the same bytes. OSError when the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            _write(fd, facts, sections)
        finally:
            os.close(fd)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _write(fd: int, facts: Any, sections: Sequence[NewSection]) -> None:
    # Hashes have one length, so the header's length is known before the hashes are.
    hashes = ["0" * 64] * len(sections)
    header_size = _sized(facts, sections, hashes)[1]
    placed = _placed(sections, hashes, header_size)
    for number, (section, place) in enumerate(zip(sections, placed, strict=True)):
        digest, at = StreamHash(), place.offset
        for chunk in section.chunks():
            digest.update(chunk)
            write_all(fd, chunk, at)
            at += len(chunk)
        if at != place.end:
            raise ArtifactError(
                f"section {section.name} gave {at - place.offset} bytes instead of {section.size}", step=_STEP
            )
        hashes[number] = digest.hexdigest()
    header, size = _sized(facts, sections, hashes)
    if size != header_size:
        raise ArtifactError("the header changed its length while it was written", step=_STEP)
    start = struct.pack("<8sIQ", MAGIC, FORMAT_VERSION, len(header))
    os.ftruncate(fd, max([_PREAMBLE.size + header_size, *(p.end for p in placed)]))
    write_all(fd, start + hashlib.sha256(start + header).digest() + header, 0)


def _sized(facts: Any, sections: Sequence[NewSection], hashes: Sequence[str]) -> tuple[bytes, int]:
    """The header and its length; offsets in it depend on its length, so it is laid out until the two agree."""
    length = 0
    while True:
        placed = _placed(sections, hashes, length)
        listed = [{"name": p.name, "offset": p.offset, "size": p.size, "hash": p.hash} for p in placed]
        size = max([_PREAMBLE.size + length, *(p.end for p in placed)])
        header = canonical_json({"facts": facts, "sections": listed, "size": size}).encode("ascii")
        if len(header) <= length:
            # Spaces after the JSON: a shorter header would move the sections, and their offsets' digits, again.
            return header.ljust(length), length
        length = len(header)


def _placed(sections: Sequence[NewSection], hashes: Sequence[str], header: int) -> list[Section]:
    placed = []
    at = _PREAMBLE.size + header
    for section, digest in zip(sections, hashes, strict=True):
        at += -at % section.alignment
        placed.append(Section(section.name, at, section.size, digest))
        at += section.size
    return placed


class Container:
    """An artifact opened for reading: preamble, header and the layout checked, sections not yet.

    Raises ArtifactError when the file is no artifact, truncated or altered, and ArtifactVersionError when its format is
    another one. Keeps the file open: a file renamed over it later changes nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # first, because __del__ reads it whatever fails below
        self.fd = -1
        self.path = plain_path(path, "give the path of a file that save() wrote")
        try:
            # Not blocking on a pipe; what is no plain file is refused below.
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._size = os.fstat(self.fd).st_size
            start = os.pread(self.fd, _PREAMBLE.size, 0)
        except OSError as fault:
            raise ArtifactAccessError(
                f"{self.path} cannot be read: {fault.strerror}", step="give the path of a file that save() wrote"
            ) from fault
        self.facts, self.sections = self._header(start)

    def _header(self, start: bytes) -> tuple[Any, dict[str, Section]]:
        if start[:8] != MAGIC:
            what = "is truncated" if start and MAGIC.startswith(start[:8]) else "is no Tilewright artifact"
            raise ArtifactError(f"{self.path} {what}", step="give the path of a file that save() wrote")
        if len(start) < _PREAMBLE.size:
            raise self.fault("is truncated in its preamble")
        _, version, length, digest = _PREAMBLE.unpack(start)
        if version != FORMAT_VERSION:
            raise ArtifactVersionError(
                f"{self.path} has format version {version}, this Tilewright reads version {FORMAT_VERSION}",
                step="save it again with this version of Tilewright, or load it with the one that wrote it",
            )
        if length > min(self._size - _PREAMBLE.size, _LARGEST_HEADER):
            raise self.fault(f"is truncated: its header has {length} bytes, the file {self._size}")
        text = os.pread(self.fd, length, _PREAMBLE.size)
        if hashlib.sha256(start[:_UNHASHED] + text).digest() != digest:
            raise self.fault("has an altered header: its hash does not match")
        try:
            header = json.loads(text)
            sections = [Section(s["name"], s["offset"], s["size"], s["hash"]) for s in header["sections"]]
            self._check_layout(sections, _PREAMBLE.size + length, header["size"])
            return header["facts"], {section.name: section for section in sections}
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            raise self.fault(f"has a malformed header: {fault!r}") from fault

    def _check_layout(self, sections: Sequence[Section], start: int, size: int) -> None:
        """Sections lie in order without overlap, inside the file, with zeros between them, and nothing follows them."""
        at = start
        for section in sections:
            if not all(type(n) is int for n in (section.offset, section.size)) or section.size < 0:
                raise self.fault(f"has a malformed header: section {section.name}")
            if section.offset < at:
                raise self.fault(f"has a malformed header: section {section.name} overlaps what is before it")
            if section.end > self._size:
                raise self.fault(
                    f"is truncated: section {section.name} ends at byte {section.end}, the file at {self._size}"
                )
            if section.offset - at > 1 << 16 or any(os.pread(self.fd, section.offset - at, at)):
                raise self.fault(f"is altered before section {section.name}: the gap is not zero")
            at = section.end
        if len({section.name for section in sections}) != len(sections):
            raise self.fault("has a malformed header: two sections share a name")
        if not at == size == self._size:
            raise self.fault(f"has {self._size} bytes, its header says {size}")

    def fault(self, text: str) -> ArtifactError:
        """An error about this file."""
        return ArtifactError(f"{self.path} {text}", step=_STEP)

    def section(self, name: str) -> Section:
        """The section with that name; ArtifactError when there is none."""
        if name not in self.sections:
            raise self.fault(f"has no section {name}")
        return self.sections[name]

    def verify(self, name: str) -> None:
        """Hashes a section on all cores; ArtifactError when it is altered."""
        section = self.section(name)
        self._compare(name, hash_range(self.fd, section.offset, section.size))

    def read(self, name: str) -> bytes:
        """A section's bytes, verified."""
        data = b"".join(self._chunks(self.section(name)))
        digest = StreamHash()
        digest.update(data)
        self._compare(name, digest.hexdigest())
        return data

    def _compare(self, name: str, digest: str) -> None:
        if digest != self.sections[name].hash:
            raise self.fault(f"is altered in section {name}: its hash does not match")

    def _chunks(self, section: Section) -> Iterator[bytes]:
        at = section.offset
        while at < section.end:
            chunk = os.pread(self.fd, min(_CHUNK, section.end - at), at)
            if not chunk:
                raise self.fault(f"is truncated in section {section.name}")
            yield chunk
            at += len(chunk)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
