"""One entry of the cache on disk: its files, the seal that tells whether they are as they were written, the lock on it.

An entry is a folder with the payload, `factors.json` (what its key is the hash of) and `seal.json` (size, digest and
file identity of each payload file). Whoever uses an entry holds a shared lock on its seal; the kernel drops it with the
process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tilewright.errors import CacheError
from tilewright.runtime.canonical import canonical_json
from tilewright.runtime.pieces import hash_range

FACTORS: Final = "factors.json"
SEAL: Final = "seal.json"

# Files up to this size are hashed each time. A larger one is trusted while its inode and times are those it was sealed
# with: nothing that writes to it can leave these as they were.
_HASHED_ALWAYS = 4 << 20


def hash_file(path: Path) -> str:
    """The hash of a file (`pieces.py`)."""
    with open(path, "rb", buffering=0) as file:
        return hash_range(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _seal_of(folder: Path) -> dict[str, Any]:
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name in (FACTORS, SEAL):
            continue
        files[path.name] = {"digest": hash_file(path), **_identity(path)}
    return {"files": files}


def _identity(path: Path) -> dict[str, Any]:
    found = path.stat(follow_symlinks=False)
    return {"size": found.st_size, "inode": found.st_ino, "times": [found.st_mtime_ns, found.st_ctime_ns]}


def seal(folder: Path, factors: str) -> None:
    """Completes an entry that has been built in `folder`: writes its factors and its seal."""
    (folder / FACTORS).write_text(factors, encoding="ascii")
    (folder / SEAL).write_text(canonical_json(_seal_of(folder)), encoding="ascii")


def bytes_of(folder: Path) -> int:
    """What an entry takes on disk, its own bookkeeping included; 0 when it is gone."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for item in found:
            with contextlib.suppress(OSError):
                total += item.stat(follow_symlinks=False).st_size
    return total


class Entry:
    """An intact entry, locked against removal until it is closed or dropped. hit: it was there before.

    As a context manager it closes itself. What was mapped from its files stays mapped after that.
    """

    def __init__(self, folder: Path, key: str, lock: int, *, hit: bool) -> None:
        self.folder = folder
        self.key = key
        self.hit = hit
        self._lock = lock

    def path(self, name: str) -> Path:
        """Where a payload file lies."""
        return self.folder / name

    def read(self, name: str) -> bytes:
        """A payload file's bytes; CacheError when it is gone."""
        try:
            return self.path(name).read_bytes()
        except OSError as fault:
            raise CacheError(
                f"{self.path(name)} cannot be read: {fault.strerror}", step="tilewright cache verify"
            ) from fault

    def close(self) -> None:
        """Let the entry be removed; a second time does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Entry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def hold(folder: Path, operation: int) -> int | None:
    """A lock on an entry's seal, as a descriptor: LOCK_SH to use it, LOCK_EX | LOCK_NB to remove it.

    None when there is no such entry, or (LOCK_NB) when another holds it.
    """
    path = folder / SEAL
    while True:
        try:
            lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(lock, operation)
            # Waited for: the entry may have been replaced since the file was opened.
            if os.fstat(lock).st_ino == os.stat(path).st_ino:
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def faults_of(folder: Path, factors: str | None, *, lock: int | None = None, thorough: bool = False) -> list[str]:
    """What is wrong with an entry; empty when it is intact.

    factors: its canonical text, None to take the entry's own word. thorough: hash large files whatever their times say.
    lock: the caller's shared lock; a moved entry, intact but with other file identities, is then sealed anew.
    """
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="ascii"))["files"]
        if factors is not None and (folder / FACTORS).read_text(encoding="ascii") != factors:
            return [f"{FACTORS} was altered"]
        present = {path.name for path in folder.iterdir()} - {FACTORS, SEAL}
        faults = [f"{name} is missing" for name in sorted(sealed.keys() - present)]
        faults += [f"{name} does not belong here" for name in sorted(present - sealed.keys())]
        moved = False
        for name in sorted(sealed.keys() & present):
            wanted = sealed[name]
            found = _identity(folder / name)
            known = {field: wanted[field] for field in found} == found
            moved = moved or not known
            if found["size"] != wanted["size"]:
                faults.append(f"{name} has {found['size']} bytes, not {wanted['size']}")
                continue
            hashed = thorough or not known or found["size"] <= _HASHED_ALWAYS
            if hashed and hash_file(folder / name) != wanted["digest"]:
                faults.append(f"{name} was altered")
        if moved and not faults and lock is not None:
            _seal_again(folder, lock)
        return faults
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        return [f"{SEAL} or a file it names cannot be read: {fault}"]


def _seal_again(folder: Path, lock: int) -> None:
    """New identities for the same contents, written while nobody else reads them."""
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            (folder / SEAL).write_text(canonical_json(_seal_of(folder)), encoding="ascii")
        finally:
            fcntl.flock(lock, fcntl.LOCK_SH)
