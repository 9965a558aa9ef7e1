"""One contestant in a process of its own: `python -m bench.server NAME` reads requests and writes answers, JSON lines.

Thread pools of different libraries disturb each other in one process, so everybody has one alone and waits, blocked in
a read, while others are timed. `Server` is the other end of the pipes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.cases import Case
from bench.contestants import CONTESTANTS
from bench.generation import GENERATORS, Generator

# Before the name of one that generates.
GENERATING = "generating-"


class Server:
    """A started process; its methods are the requests."""

    def __init__(self, name: str) -> None:
        self.name = name
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.server", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, request: str, **given: Any) -> Any:
        """The answer to a request; SystemExit with the process's own words where it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"request": request, **given}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended while answering {request!r}; what it printed is above")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"{self.name}: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)


class _Answers:
    """The process's side: a contestant, or the ceilings."""

    def __init__(self, name: str) -> None:
        if name == "ceilings":
            from bench.ceilings import Ceilings

            self.ceilings = Ceilings()
        elif name.startswith(GENERATING):
            self.generator: Generator = GENERATORS[name.removeprefix(GENERATING)]()
        else:
            self.contestant: Any = CONTESTANTS[name]()

    def measure(self) -> dict[str, float]:
        return self.ceilings()

    def about(self) -> dict[str, Any]:
        return {"machine": self.ceilings.machine, "threads": self.ceilings.threads}

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.contestant.prepare(Case.of_json(case))
        return found

    def time(self, case: dict[str, Any], calls: int) -> list[float]:
        """Seconds of each call, after one call that is not counted; of several ways, those of the better one."""
        asked = Case.of_json(case)
        ways = self.contestant.ways(asked) if hasattr(self.contestant, "ways") else [self.contestant.call(asked)]
        return min((_timed(run, calls) for run in ways), key=statistics.median)

    def callers(self, case: dict[str, Any], count: int, seconds: float) -> dict[str, float]:
        found: dict[str, float] = self.contestant.callers(Case.of_json(case), count, seconds)
        return found

    def prepare_generation(self) -> dict[str, Any]:
        return self.generator.prepare()

    def measure_generation(self, what: str) -> dict[str, float]:
        return self.generator.measure(what)


def _timed(run: Callable[[], Any], calls: int) -> list[float]:
    run()
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def main() -> None:
    """Answers until the requests end."""
    # Libraries may print; answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    served = _Answers(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = {"answer": getattr(served, asked.pop("request"))(**asked)}
        except Exception as fault:  # noqa: BLE001  whatever it is, the other end says it
            reply = {"error": f"{type(fault).__name__}: {fault}"}
        answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
