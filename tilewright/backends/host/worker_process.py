"""One compile worker as its parent sees it: start, ask, take the answer, and clear up after its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from typing import IO

from tilewright.backends.frames import received, send
from tilewright.backends.host.mlir import CpuTarget
from tilewright.backends.module_process import start_module
from tilewright.errors import Problem, TilewrightError, ToolchainError, all_errors

_QUOTED_LINES = 6
_PATIENCE_SECONDS = 5.0


class WorkerProcess:
    """A `tilewright.backends.host.worker` process, started now, and again by `ask` when it has ended."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._start()

    @property
    def answers(self) -> int:
        """The file descriptor that becomes readable when there is an answer, or none will come; -1 if not started."""
        return -1 if self._process is None or self._process.stdout is None else self._process.stdout.fileno()

    def ask(self, text: str, target: CpuTarget) -> None:
        """Send a request; a worker that has ended meanwhile shows in `answer`. Raises ToolchainError if none starts."""
        if self._process is None:
            self._start()
        process = self._process
        if process is None or process.stdin is None:
            return
        header = {"name": target.name, "cpu": target.cpu, "features": target.features, "triple": target.triple}
        with contextlib.suppress(BrokenPipeError):
            send(process.stdin.fileno(), header, text.encode())

    def answer(self) -> bytes | TilewrightError | None:
        """The object, or the error that compiling raised, or None when the worker has ended without answering."""
        message = received(lambda count: os.read(self.answers, count))
        if message is None:
            return None
        header, body = message
        if not header:
            return body
        problems = [Problem(text, op, where) for text, op, where in header["problems"]]
        return all_errors()[header["code"]](problems, step=header["step"])

    def end(self) -> tuple[int, list[str]]:
        """Let the process end, and return its exit status (negative: the signal) and the last lines it printed."""
        process, self._process = self._process, None
        printed, self._stderr = self._stderr, None
        if process is None or printed is None:
            return 0, []
        _close_pipes(process)
        try:
            status = process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        with printed:
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        # LLVM prints the fault first and then its stack, a line a frame.
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return status, lines[:_QUOTED_LINES]

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    def abandon(self) -> None:
        """In a forked child: close this side of the pipes; the process is the parent's."""
        process, self._process = self._process, None
        if process is not None:
            _close_pipes(process)
            process.returncode = 0

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  `end` reads and closes it
        try:
            self._process = start_module(
                "tilewright.backends.host.worker",
                str(self._idle_seconds),
                # numpy, which MLIR's bindings import, would otherwise start a thread a core for its linear algebra.
                environment={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                stderr=self._stderr,
            )
        except OSError as error:
            raise ToolchainError(
                f"a compile worker does not start: {error}", step="free some memory or processes and try again"
            ) from error


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
