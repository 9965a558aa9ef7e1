"""The compile workers: a thread here waits for each process there."""

from __future__ import annotations

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

from tilewright.backends.frames import received, send
from tilewright.backends.host.cores import cores
from tilewright.backends.module_process import start_module
from tilewright.errors import ToolchainError

_own = threading.local()
# Products and sums fuse where the machine can: the default until 3.9, which warns of another one to come.
_SETTINGS: Final = {"TRITON_DEFAULT_FP_FUSION": "1"}


@cache
def waiting() -> ThreadPoolExecutor:
    """Threads that each own a worker process; the processes end with this one."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="tilewright-triton")


def ask(head: dict[str, Any], source: str) -> tuple[dict[str, Any], bytes]:
    """One compilation by this thread's worker. Raises ToolchainError where the worker ends without an answer."""
    process: subprocess.Popen[bytes] | None = getattr(_own, "process", None)
    if process is None or process.poll() is not None:
        process = _own.process = _started()
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    try:
        send(stdin.fileno(), head, source.encode())
        answer = received(stdout.read)
    except BrokenPipeError:
        answer = None
    if answer is None:
        raise ToolchainError(
            f"Triton ends without an answer while it compiles {head['symbol']} (status {process.wait()})",
            step="compile it again, and report the kernel's source if it ends again",
        )
    return answer


def _started() -> subprocess.Popen[bytes]:
    settings = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_INTERPRET")}
    return start_module("tilewright.backends.triton.worker", environment={**settings, **_SETTINGS})
