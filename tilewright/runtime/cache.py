"""The cache: what was built once, found again by the factors that decided it, shared by processes.

The key of an entry is the sha256 of its factors as canonical JSON, so nothing about the process, the user or the folder
enters it. An entry is built in a folder of its own and appears by one rename. Processes that want the same entry build
it once: the others wait on a lock that the kernel releases when its holder dies. A damaged entry is replaced, and
counted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tilewright.errors import CacheError
from tilewright.runtime.cache_entry import FACTORS, Entry, bytes_of, faults_of, hold, seal
from tilewright.runtime.cache_miss import Miss, nearest
from tilewright.runtime.canonical import canonical_json, key_of
from tilewright.runtime.room import Room

ENVIRONMENT: Final = "TILEWRIGHT_CACHE"
"""The environment variable that names the cache's folder, or is `OFF`."""
OFF: Final = "off"
"""What says that nothing is to be kept, wherever a folder could be named."""
DEFAULT_LIMIT: Final = 20 << 30
"""Bytes above which the entries unused for longest are removed."""

NOTE: Final = "note"
"""The payload file that `Item.note` is read from."""

# Part of every path: another layout starts with an empty cache.
_LAYOUT = "v1"
_KIND = re.compile(r"[a-z][a-z0-9-]*")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Factors = Mapping[str, Any]


def default_root() -> Path:
    """TILEWRIGHT_CACHE, or tilewright/ in $XDG_CACHE_HOME, or in ~/.cache; CacheError where it is switched off."""
    if named := os.environ.get(ENVIRONMENT, "").strip():
        if named == OFF:
            raise CacheError(f"{ENVIRONMENT}={OFF}: there is no cache", step=f"unset {ENVIRONMENT}, or name a folder")
        return Path(named).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules: a relative path is to be ignored.
    if os.path.isabs(shared):
        return Path(shared) / "tilewright"
    try:
        return Path.home() / ".cache" / "tilewright"
    except RuntimeError as fault:
        raise CacheError(f"there is no home folder to keep a cache in ({fault})", step=_STEP) from fault


_STEP = f"export {ENVIRONMENT}=/a/folder/you/can/write, or compile with cache=False (--cache off)"


@dataclass(frozen=True, slots=True)
class Item:
    """What `entries` tells of an entry. used: seconds since the epoch when it was last opened. note: what its builder
    wrote for people into the file `note`, which is no part of the key.
    """

    kind: str
    key: str
    bytes: int
    used: float
    factors: Any
    note: str = ""


class Cache:
    """A cache in one folder; nothing is created before the first entry is built.

    root: the folder, `default_root()` if None. limit: bytes. counts: what happened in this process: hits, misses,
    damaged (replaced), evicted. Factors are plain data with a "kind" ("kernel", "weights"), which groups entries.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, limit: int = DEFAULT_LIMIT) -> None:
        self.root = default_root() if root is None else Path(root).expanduser().absolute()
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self._base = self.root / _LAYOUT
        self._building = self._base / "building"
        self._lock = threading.Lock()
        self._bytes: int | None = None

    def get(self, factors: Factors) -> Entry | None:
        """The entry with these factors, if it is there and intact."""
        entry, _ = self._open(factors)
        self._count("hits" if entry is not None else "misses")
        return entry

    def get_or_build(self, factors: Factors, build: Callable[[Path], None]) -> Entry:
        """The entry with these factors, built if it is not there: `build` fills an empty folder with files.

        While one process or thread builds an entry, others that want it wait. What `build` raises passes through, and
        leaves nothing behind. CacheError when the folder cannot be written. `build` must not ask for the same entry.
        """
        entry, _ = self._open(factors)
        if entry is not None:
            self._count("hits")
            return entry
        kind, key = self._names(factors)
        with self._exclusive(kind, key):
            entry, faults = self._open(factors)
            if entry is not None:
                self._count("hits")
                return entry
            self._count("misses")
            if faults:
                self._count("damaged")
                self._discard(self._base / kind / key)
            self._build(kind, key, canonical_json(factors), build)
            entry, faults = self._open(factors, hit=False)
        if entry is None:
            raise CacheError([f"an entry just written to {self.root} is damaged: {f}" for f in faults], step=_STEP)
        self._trim(bytes_of(entry.folder))
        return entry

    def room(self, size: int) -> Room | None:
        """A file that an entry's payload can become, filling with zeros; None where there can be none."""
        with self._writing():
            self._building.mkdir(parents=True, exist_ok=True)
            return Room.within(self._building, size)

    def explain_miss(self, factors: Factors, comparable: Callable[[Any], bool] = lambda _: True) -> Miss | None:
        """Why there is no entry with these factors: the nearest one and where they differ. None if there is one.

        comparable: whether an entry's factors are of the same thing, so that a difference from them says something.
        """
        kind, key = self._names(factors)
        if (self._base / kind / key / FACTORS).exists():
            return None
        others = (item for item in self.entries(kind) if isinstance(item.factors, Mapping) and comparable(item.factors))
        return nearest(factors, ((item.key, item.used, item.factors) for item in others))

    def entries(self, kind: str | None = None) -> list[Item]:
        """The entries, last used first."""
        found = []
        for folder in self._folders():
            if kind is not None and folder.parent.name != kind:
                continue
            with contextlib.suppress(OSError, ValueError):
                path = folder / FACTORS
                factors = json.loads(path.read_text(encoding="ascii"))
                used = path.stat().st_mtime
                found.append(Item(folder.parent.name, folder.name, bytes_of(folder), used, factors, _note(folder)))
        return sorted(found, key=lambda item: (-item.used, item.key))

    def require_readable(self) -> None:
        """CacheError where the folder is there and cannot be listed. One that is not there yet is an empty cache."""
        try:
            with os.scandir(self._base if self._base.is_dir() else self.root):
                return
        except FileNotFoundError:
            return
        except OSError as fault:
            raise CacheError(f"the cache in {self.root} cannot be read: {fault.strerror}", step=_STEP) from fault

    def is_laid_out(self) -> bool:
        """Whether the folder holds a cache: one in which something was built, or an empty folder."""
        return self._base.is_dir() or (self.root.is_dir() and not any(self.root.iterdir()))

    def stats(self) -> dict[str, Any]:
        """Entries and bytes on disk, in total and by kind, and this process's counts."""
        items = self.entries()
        kinds: dict[str, dict[str, int]] = {}
        for item in items:
            each = kinds.setdefault(item.kind, {"entries": 0, "bytes": 0})
            each["entries"] += 1
            each["bytes"] += item.bytes
        total = sum(item.bytes for item in items)
        return {
            "root": str(self.root),
            "limit": self.limit,
            "entries": len(items),
            "bytes": total,
            "kinds": dict(sorted(kinds.items())),
            **{name: self.counts[name] for name in ("hits", "misses", "damaged", "evicted")},
        }

    def verify(self) -> dict[str, list[str]]:
        """Hashes every file of every entry, and removes the damaged entries: their keys and what was wrong."""
        damaged = {}
        for folder in self._folders():
            faults = faults_of(folder, None, thorough=True)
            with contextlib.suppress(OSError, ValueError):
                if not faults and key_of(json.loads((folder / FACTORS).read_text(encoding="ascii"))) != folder.name:
                    faults = [f"{FACTORS} was altered"]
            if faults:
                damaged[folder.name] = faults
                self._discard(folder)
        return damaged

    def clear(self) -> tuple[int, int]:
        """Removes every entry that is not in use, and what dead builders left: (entries removed, entries in use)."""
        removed = kept = 0
        for folder in self._folders():
            if self._evict(folder):
                removed += 1
            else:
                kept += 1
        self._sweep()
        with self._lock:
            self._bytes = None
        return removed, kept

    # --- one entry ---------------------------------------------------------------------------------------------------

    def _names(self, factors: Factors) -> tuple[str, str]:
        kind = factors.get("kind")
        if not isinstance(kind, str) or not _KIND.fullmatch(kind) or kind == self._building.name:
            raise CacheError(f"factors of kind {kind!r} have no place in the cache", step='give them a "kind"')
        return kind, key_of(factors)

    def _open(self, factors: Factors, *, hit: bool = True) -> tuple[Entry | None, list[str]]:
        """The intact entry, or what is wrong with a damaged one; (None, []) when there is none."""
        kind, key = self._names(factors)
        folder = self._base / kind / key
        lock = hold(folder, fcntl.LOCK_SH)
        if lock is None:
            # A folder without a seal is one that somebody damaged.
            return None, ["it has no seal"] if folder.exists() else []
        entry = Entry(folder, key, lock, hit=hit)
        faults = faults_of(folder, canonical_json(factors), lock=lock)
        if faults:
            entry.close()
            return None, faults
        # When it was last used; a cache that cannot be written can still be read.
        with contextlib.suppress(OSError):
            os.utime(folder / FACTORS)
        return entry, []

    def _build(self, kind: str, key: str, factors: str, build: Callable[[Path], None]) -> None:
        # Whoever left a folder for this key is dead: the lock is ours.
        for stale in self._building.glob(f"{kind}.{key}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder = self._new_folder(kind, key)
        try:
            build(folder)
            with self._writing():
                seal(folder, factors)
                (self._base / kind).mkdir(parents=True, exist_ok=True)
                folder.rename(self._base / kind / key)
        except OSError as fault:
            if fault.errno in _FULL:
                raise self._unusable(fault) from fault
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        """Takes an entry out of sight at once, then deletes it. Whoever has mapped its files keeps them."""
        grave = self._new_folder(folder.parent.name, folder.name)
        with self._writing(), contextlib.suppress(FileNotFoundError):
            folder.rename(grave / "entry")
        shutil.rmtree(grave, ignore_errors=True)

    def _new_folder(self, kind: str, key: str) -> Path:
        folder = self._building / f"{kind}.{key}.{os.getpid()}-{secrets.token_hex(8)}"
        with self._writing():
            folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def _exclusive(self, kind: str, key: str) -> Iterator[None]:
        """The right to build an entry, among all processes and threads."""
        path = self._building / f"{kind}.{key}.lock"
        with self._writing():
            self._building.mkdir(parents=True, exist_ok=True)
        while True:
            with self._writing():
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # The file we waited on may have been removed by its last holder: then it excludes nobody.
                if not _is_still(path, lock):
                    continue
                yield
                path.unlink(missing_ok=True)
                return
            finally:
                os.close(lock)

    # --- the folder --------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        kinds = [p for p in _listed(self._base) if p.is_dir() and p != self._building]
        return sorted(p for kind in kinds for p in _listed(kind) if p.is_dir())

    def _trim(self, added: int) -> None:
        """Removes the entries unused for longest until the rest fits; sizes are counted once, then added to."""
        with self._lock:
            self._bytes = None if self._bytes is None else self._bytes + added
            if self._bytes is not None and self._bytes <= self.limit:
                return
            items = self.entries()
            self._bytes = sum(item.bytes for item in items)
            for item in reversed(items):
                if self._bytes <= self.limit:
                    break
                if self._evict(self._base / item.kind / item.key):
                    self._bytes -= item.bytes
                    self.counts["evicted"] += 1
        self._sweep()

    def _evict(self, folder: Path) -> bool:
        lock = hold(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            self._discard(folder)
        finally:
            os.close(lock)
        return True

    def _sweep(self) -> None:
        """Deletes what builders left that died: nobody holds the lock of a folder's key."""
        for path in _listed(self._building):
            if path.suffix == ".lock" or not path.is_dir():
                continue
            kind, key, _ = path.name.split(".", 2)
            lock_path = self._building / f"{kind}.{key}.lock"
            with contextlib.suppress(OSError):
                lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_still(lock_path, lock):
                        shutil.rmtree(path, ignore_errors=True)
                        lock_path.unlink(missing_ok=True)
                finally:
                    os.close(lock)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise self._unusable(fault) from fault

    def _unusable(self, fault: OSError) -> CacheError:
        return CacheError(f"the cache in {self.root} cannot be written: {fault.strerror or fault}", step=_STEP)


def _note(folder: Path) -> str:
    try:
        return (folder / NOTE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
