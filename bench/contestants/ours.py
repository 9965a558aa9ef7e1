"""Tilewright."""

from __future__ import annotations

import compileall
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from bench.cases import Case


class Tilewright:
    """Us: one compiled object a model and dtype, for every size."""

    @staticmethod
    def takes(case: Case) -> bool:
        return True

    def __init__(self) -> None:
        self._programs: dict[tuple[str, str], Any] = {}
        self._told: dict[tuple[str, str], dict[str, Any]] = {}
        self._cache = tempfile.TemporaryDirectory(prefix="tilewright-bench-")

    def prepare(self, case: Case) -> dict[str, Any]:
        import tilewright as tw

        key = case.model, case.dtype
        if not self._programs:
            # as an installed package is: that Python compiles sources is no part of compiling a model
            compileall.compile_dir(os.path.dirname(tw.__file__), quiet=2)
        if key not in self._programs:
            cold, _ = self._compile(case)
            warm, self._programs[key] = self._compile(case)
            stages = dict(self._programs[key].facts.seconds)
            self._told[key] = {"cold": cold, "warm": warm, "warm_stages": stages, "version": tw.__version__}
        row_sums = self._programs[key].report.at(**dict(case.sizes)).rows
        counted = {
            name: sum(getattr(row, name) or 0 for row in row_sums) for name in ("flops", "read", "write", "bound")
        }
        return {**self._told[key], **counted}

    def _compile(self, case: Case) -> tuple[float, Any]:
        import tilewright as tw
        from bench.models import axes, build, example

        model, given = build(case), example(case)
        begin = time.perf_counter()
        program = tw.compile(model, kwargs=given, dims=axes(case, tw.Dim), precision=case.dtype, cache=self._cache.name)
        return time.perf_counter() - begin, program

    def call(self, case: Case) -> Callable[[], Any]:
        from bench.models import arguments

        program, given = self._programs[case.model, case.dtype], arguments(case)
        return lambda: program(**given)

    def callers(self, case: Case, count: int, seconds: float) -> dict[str, float]:
        """Calls a second of `count` Python threads on one object, and the most threads this process had meanwhile."""
        run, stop = self.call(case), threading.Event()
        done = [0] * count

        def work(index: int) -> None:
            while not stop.is_set():
                run()
                done[index] += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        most = 0
        while time.perf_counter() - begin < seconds:
            time.sleep(0.05)
            most = max(most, len(os.listdir("/proc/self/task")))
        stop.set()
        for thread in threads:
            thread.join()
        return {"rate": sum(done) / (time.perf_counter() - begin), "os_threads": most}
