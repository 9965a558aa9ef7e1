"""A compile pool that compiles no text twice in a test run: what one test made, the others of all processes are given.

Compiling MLIR is a function of its text and its target: tests/backends/host/test_workers.py and test_mlir.py hold it to
that with pools of their own, and tests/compiler/test_artifacts.py compiles whole programs in another process, which
knows nothing of this one. The tests' small models have many kernels in common.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from tilewright.backends.host.mlir import CpuTarget
from tilewright.backends.host.workers import CompilePool

_SECONDS = struct.Struct("<d")
# longer than any test takes that compiles nothing: starting a worker costs as much as compiling a dozen kernels
_IDLE_SECONDS = 900.0


class RememberingPool(CompilePool):
    """Asks a pool, which it starts when it is first needed, for what is not in a folder yet.

    folder: of objects, each behind the seconds that it took; shared by the processes of a test run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(0)
        self._folder = folder
        self._asked: CompilePool | None = None

    def submit(self, text: str, target: CpuTarget, took: Callable[[float], None] | None = None) -> Future[bytes]:
        place = self._folder / hashlib.sha256(f"{target}\n{text}".encode()).hexdigest()
        try:
            known = place.read_bytes()
        except FileNotFoundError:
            return self._compiled(place, text, target, took)
        if took is not None:
            took(*_SECONDS.unpack_from(known))
        given: Future[bytes] = Future()
        given.set_result(known[_SECONDS.size :])
        return given

    def _compiled(
        self, place: Path, text: str, target: CpuTarget, took: Callable[[float], None] | None
    ) -> Future[bytes]:
        with self._lock:
            if self._asked is None:
                self._asked = CompilePool(idle_seconds=_IDLE_SECONDS)
            asked = self._asked
        seconds = [0.0]

        def tell(measured: float) -> None:
            seconds[0] = measured
            if took is not None:
                took(measured)

        def keep(made: Future[bytes]) -> None:
            if not made.cancelled() and made.exception() is None:
                with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                    file.write(_SECONDS.pack(seconds[0]) + made.result())
                os.replace(file.name, place)

        future = asked.submit(text, target, tell)
        future.add_done_callback(keep)
        return future

    def close(self, *, wait: bool = True) -> None:
        if self._asked is not None:
            self._asked.close(wait=wait)
        super().close(wait=wait)

    def abandon(self) -> None:
        super().abandon()
        self._asked = None
