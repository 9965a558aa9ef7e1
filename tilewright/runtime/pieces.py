"""Hashes of much data: sha256 over the sha256 of each 16 MiB, so that all cores can read a large file."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_PIECE: Final = 16 << 20
# So much of a piece is in memory at a time.
_READ: Final = 1 << 20


def hash_range(fd: int, offset: int, size: int) -> str:
    """The hash of `size` bytes of a file from `offset` on, or of as many as there are; none of them stay in memory."""

    def digest(begin: int) -> bytes:
        found, at, end = hashlib.sha256(), begin, min(begin + _PIECE, offset + size)
        while at < end and (data := os.pread(fd, min(_READ, end - at), at)):
            found.update(data)
            at += len(data)
        return found.digest()

    begins = range(offset, offset + size, _PIECE)
    if len(begins) <= 1:
        return hashlib.sha256(digest(offset)).hexdigest()
    with ThreadPoolExecutor(min(len(begins), len(os.sched_getaffinity(0))), "tilewright-hash") as pool:
        return hashlib.sha256(b"".join(pool.map(digest, begins))).hexdigest()


class StreamHash:
    """The same of bytes that come one after the other."""

    def __init__(self) -> None:
        self._digests = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._left = _PIECE

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Adds bytes at the end."""
        rest = memoryview(data).cast("B")
        while rest.nbytes:
            if not self._left:
                self._digests.update(self._piece.digest())
                self._piece, self._left = hashlib.sha256(), _PIECE
            part, rest = rest[: self._left], rest[self._left :]
            self._piece.update(part)
            self._left -= part.nbytes

    def hexdigest(self) -> str:
        """The hash of all bytes so far; nothing comes after them."""
        self._digests.update(self._piece.digest())
        return self._digests.hexdigest()
