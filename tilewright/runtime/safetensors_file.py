"""Files in the safetensors format: mapped when read, streamed when written, with every tensor on a 64-byte boundary.

The format (github.com/huggingface/safetensors) is a length, a JSON header and the data without gaps. Where alignment
needs a gap we put a tensor of zero bytes, named "~0", "~1", ..., so that the official reader accepts the file too. Our
own reader exists because weights also lie inside artifacts, at an offset, and because bf16 must be readable without
ml_dtypes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from tilewright.errors import TilewrightError, WeightsError
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.runtime.canonical import canonical_json
from tilewright.runtime.program import ALIGNMENT
from tilewright.runtime.tensors import Buffer, address_of

_LENGTH_BYTES = 8
# The official reader's own limit.
_LARGEST_HEADER = 100_000_000
_PADDING = re.compile(r"~\d+")

_CODES: Final = {name: name.upper() for name in DTYPES if name != "i1"} | {"i1": "BOOL"}
_DTYPES: Final[dict[str, DType]] = {code: DTYPES[name] for name, code in _CODES.items()}
# Types that checkpoints hold and programs do not: known for their size.
_FOREIGN_BITS: Final = dict.fromkeys(("U64", "C64"), 64) | {"U32": 32, "U16": 16, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_FOREIGN_BITS.update(dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), 8))

# Written where a tensor will lie: as much at a time as the kernel keeps together in memory.
_HUGE_PAGE: Final = 2 << 20
_ZEROS: Final = memoryview(bytes(_HUGE_PAGE))

Fault = Callable[[str], TilewrightError]


class Entry(NamedTuple):
    """One tensor of a header. begin, end: bytes from the start of the data."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(Mapping[str, Buffer]):
    """A safetensors file, or a piece of a file in that format, mapped read-only: names to tensors without a copy.

    fault: makes the error for a file that breaks the format (WeightsError unless told otherwise). Nothing is allocated
    from a length that the file claims before it is held against the file's size.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | int,
        *,
        offset: int = 0,
        size: int | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.name = f"file {file}" if isinstance(file, int) else os.fspath(file)
        self._fault = fault or self._weights_error
        try:
            self._fd = os.dup(file) if isinstance(file, int) else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as problem:
            raise self._fault(f"{self.name} cannot be read: {problem.strerror}") from problem
        try:
            self.offset = offset
            whole = os.fstat(self._fd).st_size
            self.size = whole - offset if size is None else size
            if offset < 0 or self.size < _LENGTH_BYTES or offset + self.size > whole:
                raise self._fault(f"{self.name} has {whole} bytes, too few for a safetensors file at {offset}")
            # A mapping starts on a page; ours may begin in the middle of one.
            lead = offset % mmap.ALLOCATIONGRANULARITY
            self._map = mmap.mmap(self._fd, self.size + lead, access=mmap.ACCESS_READ, offset=offset - lead)
            self._bytes = np.frombuffer(self._map, np.uint8)[lead:]
            self._entries, self._data = self._header()
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def _weights_error(self, text: str) -> TilewrightError:
        return WeightsError(text, step="download or write the file again")

    def _header(self) -> tuple[dict[str, Entry], int]:
        length = int.from_bytes(self._bytes[:_LENGTH_BYTES].tobytes(), "little")
        if length > min(self.size - _LENGTH_BYTES, _LARGEST_HEADER):
            raise self._fault(f"{self.name}: a header of {length} bytes does not fit in a file of {self.size}")
        start = _LENGTH_BYTES + length
        try:
            header = json.loads(self._bytes[_LENGTH_BYTES:start].tobytes())
            if not isinstance(header, dict):
                raise TypeError("the header is not a JSON object")
            entries = {name: _entry(item) for name, item in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise self._fault(f"{self.name}: the header is malformed: {problem}") from problem
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != end or _bytes_of(entry) != entry.end - entry.begin:
                raise self._fault(f"{self.name}: {name!r} lies at bytes {entry.begin} to {entry.end}, which do not fit")
            end = entry.end
        if end != self.size - start:
            raise self._fault(f"{self.name}: the tensors end at byte {end}, the data at {self.size - start}")
        return {name: e for name, e in entries.items() if e.code != "U8" or not _PADDING.fullmatch(name)}, start

    def __getitem__(self, name: str) -> Buffer:
        entry = self._entries[name]
        dtype = _DTYPES.get(entry.code)
        if dtype is None:
            raise self._fault(f"{self.name}: {name!r} holds {entry.code}, which no program reads")
        return Buffer(dtype, entry.shape, address_of(self._bytes) + self._data + entry.begin, self._bytes)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor, and raise for a dtype that no program reads.
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> Entry:
        """What the header says of a tensor; reads no data."""
        return self._entries[name]

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The bytes of the whole file or piece, read rather than mapped: they do not stay in this process's memory."""
        at, end = self.offset, self.offset + self.size
        while at < end:
            chunk = os.pread(self._fd, min(size, end - at), at)
            if not chunk:
                raise self._fault(f"{self.name} ended while it was being read")
            yield chunk
            at += len(chunk)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)


class MappedTensor:
    """A piece of a file as memory. address: of its first byte, valid while this object lives."""

    def __init__(self, fd: int, at: int, size: int) -> None:
        # from where a huge page of the file begins to where one ends: there, one fault does for 2 MiB, and elsewhere
        # each page has one of its own, with an entry in the file system's journal
        lead = at % _HUGE_PAGE
        end = min(-(-(at + size) // _HUGE_PAGE) * _HUGE_PAGE, os.fstat(fd).st_size)
        self._map = mmap.mmap(fd, max(end - at + lead, 1), offset=at - lead)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.address = address_of(self._bytes) + lead

    def drop(self) -> None:
        """Takes its pages out of this process's memory; the file keeps what was written."""
        self._map.madvise(mmap.MADV_DONTNEED)


class SafetensorsWriter:
    """Writes tensors one at a time, in any order, to a file whose layout is fixed beforehand.

    tensors: (name, dtype, shape) in the order they lie in the file. The same tensors give the same bytes. zeros: so
    many bytes from the file's start are zeros that were written already.
    """

    def __init__(self, fd: int, tensors: Sequence[tuple[str, DType, tuple[int, ...]]], zeros: int = 0) -> None:
        self._fd = fd
        self._places: dict[str, tuple[int, int]] = {}
        header: dict[str, Any] = {}
        at = 0
        for name, dtype, shape in tensors:
            if _PADDING.fullmatch(name) or name == "__metadata__" or name in header:
                raise WeightsError(f"a tensor cannot be stored as {name!r}", step="rename it")
            if gap := -at % ALIGNMENT:
                header[f"~{len(header)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [at, at + gap]}
                at += gap
            size = math.prod(shape) * dtype.bytes
            header[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": [at, at + size]}
            self._places[name] = (at, size)
            at += size
        text = canonical_json(header).encode("ascii")
        # The official format allows spaces after the JSON; they put the data on a boundary.
        text += b" " * (-(len(text) + _LENGTH_BYTES) % ALIGNMENT)
        self._data = _LENGTH_BYTES + len(text)
        self.size = self._data + at
        self._missing = set(self._places)
        self._vacant = {name for name, (at, size) in self._places.items() if self._data + at + size > zeros}
        # ext4 takes a file that was cut, even one without a byte, for one that is replaced: it writes it out at close
        if not zeros and os.fstat(fd).st_size:
            os.ftruncate(fd, 0)
        os.ftruncate(fd, self.size)
        write_all(fd, len(text).to_bytes(_LENGTH_BYTES, "little") + text, 0)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """The bytes of one tensor."""
        at, size = self._places[name]
        if len(data) != size:
            raise WeightsError(f"{name} has {len(data)} bytes, its place {size}", step="write its declared shape")
        write_all(self._fd, data, self._data + at)
        self._missing.discard(name)
        self._vacant.discard(name)

    def make_room(self, name: str) -> None:
        """Zeros in a tensor's place, the first time; `mapped` does it where nobody did. On any thread."""
        if name not in self._vacant:
            return
        self._vacant.discard(name)
        at, size = self._places[name]
        # Not a hole: on a full disk, writing through a mapping would be a signal instead of an error. Zeros that are
        # written wait in memory for the tensor; space that is only set aside costs a fault and a journal entry a page.
        for begin in range(0, size, len(_ZEROS)):
            write_all(self._fd, _ZEROS[: size - begin], self._data + at + begin)

    def mapped(self, name: str) -> MappedTensor:
        """A tensor's place in the file as memory, to be written through; counts as written. It holds what was written
        before, zeros the first time.
        """
        self.make_room(name)
        self._missing.discard(name)
        at, size = self._places[name]
        return MappedTensor(self._fd, self._data + at, size)

    def finish(self) -> None:
        """Every tensor must have been written."""
        if self._missing:
            missing = [f"{name} was not written" for name in sorted(self._missing)]
            raise WeightsError(missing, step="write every declared tensor")


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """pwrite until everything is written; a single call may stop early, and does above 2 GiB."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _entry(item: Any) -> Entry:
    shape = tuple(item["shape"])
    begin, end = item["data_offsets"]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"sizes must be whole numbers: {item!r}")
    code = item["dtype"]
    if code not in _DTYPES and code not in _FOREIGN_BITS:
        raise ValueError(f"unknown dtype {code!r}")
    return Entry(code, shape, begin, end)


def _bytes_of(entry: Entry) -> int:
    bits = _DTYPES[entry.code].bytes * 8 if entry.code in _DTYPES else _FOREIGN_BITS[entry.code]
    return math.prod(entry.shape) * bits // 8
