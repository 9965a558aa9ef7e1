"""A compile worker: `python -m tilewright.backends.host.worker IDLE_SECONDS`, started by `workers.CompilePool`.

Reads requests on stdin and answers on stdout, one at a time; imports MLIR while it waits for the first. It ends when
stdin does, that is when its parent has closed the pool or died, even in the middle of a compilation; and with exit
status 0 after IDLE_SECONDS without a request.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from typing import Any

from tilewright.backends.frames import received, send
from tilewright.errors import MissingDependencyError, TilewrightError

_IDLE = 0
_ORPHANED = 3


def main() -> None:
    """Serve until stdin ends."""
    # Ctrl-C goes to the whole process group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    idle_seconds = float(sys.argv[1])
    answers = os.dup(1)
    # Whatever a library prints must not land between two messages.
    os.dup2(2, 1)
    requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()

    from tilewright.backends.host import mlir

    # What is missing is told with every request, not here.
    with contextlib.suppress(MissingDependencyError):
        mlir.load_toolchain()
    while True:
        try:
            header, text = requests.get(timeout=idle_seconds)
        except queue.Empty:
            os._exit(_IDLE)
        target = mlir.CpuTarget(header["name"], header["cpu"], tuple(header["features"]), header["triple"])
        try:
            told: dict[str, Any] = {}
            made = mlir.compile_object(text.decode(), target)
        except TilewrightError as error:
            problems = [[problem.text, problem.op, problem.where] for problem in error.problems]
            told, made = {"code": error.code, "problems": problems, "step": error.step}, b""
        send(answers, told, made)


def _read(requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
    while message := received(lambda count: os.read(0, count)):
        requests.put(message)
    os._exit(_ORPHANED)


if __name__ == "__main__":
    main()
