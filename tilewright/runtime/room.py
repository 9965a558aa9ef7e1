"""Zeros for a file of weights, written before it is known what comes to lie in it.

Memory that a machine has not used lately costs it a second or two a gigabyte to come by, and what is packed into a new
file is new memory. While a model is captured and its kernels compile there is a core with little to do; what it has
written by the time that weights are packed is memory which is there.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final

# A piece of zeros, and how many one call writes: a call does not ask for the interpreter lock in between.
_ZEROS: Final = bytes(1 << 20)
_AT_ONCE: Final = 16
# Written long before it is used, more than this share of the memory would go to the disk as zeros first.
_SHARE: Final = 16
# What a file system or a kernel says that has no files without names.
_NAMELESS_REFUSED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})
# Where the system shows the files of a process, by descriptor.
_OPEN_FILES: Final = "/proc/self/fd"
# Of a thread whose work nobody waits for yet, as `nice` counts.
_NICE: Final = 10


def yielding() -> None:
    """From now on this thread leaves the core to any other that wants it. For threads that end with their work."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Room:
    """A file without a name that fills with zeros on a thread of its own, until it is taken, dropped or big enough.

    fd: what is filled, owned by the room until it is taken. size: bytes at which it is big enough; no more than a
    sixteenth of the machine's memory is written. The system frees it with the process, however that ends.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = min(size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _SHARE)
        self._written = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="tilewright-room", daemon=True)
        self._thread.start()

    @staticmethod
    def within(folder: Path | None, size: int) -> Room | None:
        """On the folder's file system, or in memory for None. None where there can be none: time is all it saves."""
        if folder is None:
            return Room(os.memfd_create("tilewright-weights", os.MFD_CLOEXEC), size)
        try:
            return Room(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666), size)
        except OSError as fault:
            if fault.errno in _NAMELESS_REFUSED:
                return None
            raise

    def take(self, path: Path | None) -> tuple[int, int]:
        """The file, which is the caller's from here on, and of how many bytes it is known that they are zeros.

        path: the name it gets; None to leave it without. Where it cannot have that name, a new file of that name, of
        no bytes, takes its place.
        """
        self._stop.set()
        self._thread.join()
        if path is None or self._named(path):
            return self._fd, self._written
        os.close(self._fd)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666), 0

    def _named(self, path: Path) -> bool:
        try:
            # with a folder's descriptor, Python asks the system to follow the link to the file that is open
            folder = os.open(_OPEN_FILES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(str(self._fd), path, src_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
        except OSError:
            return False
        return True

    def drop(self) -> None:
        """Lets go of the file: nobody wants it."""
        self._stop.set()
        self._thread.join()
        os.close(self._fd)

    def _fill(self) -> None:
        yielding()
        while not self._stop.is_set() and self._written < self._size:
            left = self._size - self._written
            pieces = [
                memoryview(_ZEROS)[: left - i * len(_ZEROS)] for i in range(min(_AT_ONCE, -(-left // len(_ZEROS))))
            ]
            try:
                self._written += os.pwritev(self._fd, pieces, self._written)
            except OSError:
                # a full disk: whoever packs writes the rest, and tells what became of it
                return
