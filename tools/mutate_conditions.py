"""Removes one side condition of the passes at a time and runs the tests that reach it.

One that no test misses is a hole in the tests.

`conditions.py` beside this file says what a side condition is. Each is replaced by what lets the rewrite go on.

    python tools/mutate_conditions.py tilewright/passes/fold.py --tests tests/passes/test_fold.py

The tests are collected once and run once, to see which lines each of them reaches; then every mutant is a forked child
that has the mutated function in place of the right one and runs the tests that reach it, the quickest and those that
noticed a mutant before first. `equivalent_conditions.toml` beside this file lists conditions that change no result,
each with the reason. Exits 1 where another one is not missed, or where a listed one is gone or is missed after all.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import hypothesis
import pytest
from conditions import ROOT, Mutant, mutants

EQUIVALENT = Path(__file__).with_name("equivalent_conditions.toml")
WARM = ("tilewright", "tests", "xdsl", "llvmlite")  # packages whose modules the children find loaded
OUT_OF_TIME = -1
MEMORY = 16 << 30  # bytes a mutant may take on top of what it starts with


# --- putting a mutant in place ----------------------------------------------------------------------------------------


Live = dict[tuple[str, str], list[FunctionType]]


def live_functions() -> Live:
    """The functions there are, wherever they are bound, by module and name."""
    found: Live = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType:  # not isinstance, which asks lazy modules for a __class__
            found.setdefault((thing.__module__, thing.__code__.co_qualname), []).append(thing)
    return found


def put_in_place(mutant: Mutant, live: Live) -> None:
    """Gives the live function the mutated code."""
    codes = {code.co_qualname: code for code in _codes(compile(mutant.tree, str(mutant.path), "exec"))}
    for function in live[mutant.module, mutant.function]:
        function.__code__ = codes[mutant.function]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


# --- running tests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """What an unmutated test does: whether it passes, its seconds, and the lines of the mutated files it runs."""

    passes: bool
    seconds: float
    lines: frozenset[tuple[str, int]]


def in_child(session: pytest.Session, work: Callable[[Callable[[Any], None]], None]) -> list[Any]:
    """Does `work` in a forked child and gives what it reported, up to where it ended or died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        session.config.pluginmanager.unregister(name="terminalreporter")
        with os.fdopen(writing, "w") as pipe:

            def report(item: Any) -> None:
                print(json.dumps(item), file=pipe, flush=True)

            try:
                work(report)
            finally:
                os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        # a child that died may leave half a line
        found = [json.loads(line) for line in pipe if line.endswith("\n")]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that it started
    os.waitpid(child, 0)
    return found


def passes(session: pytest.Session, item: pytest.Item, following: pytest.Item | None) -> bool:
    """Runs one test."""
    before = session.testsfailed
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return session.testsfailed == before


def survey(session: pytest.Session, files: set[str]) -> tuple[list[Reach], list[str]]:
    """Every test once, unmutated, and the modules that they load."""

    def work(report: Callable[[Any], None]) -> None:
        seen: set[tuple[str, int]] = set()

        def per_line(frame: FrameType, event: str, _: Any) -> Any:
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            return per_line

        def per_call(frame: FrameType, event: str, _: Any) -> Any:
            return per_line if frame.f_code.co_filename in files else None

        items = session.items
        for item, following in zip(items, [*items[1:], None], strict=True):
            seen.clear()
            start = time.monotonic()
            sys.settrace(per_call)
            good = passes(session, item, following)
            sys.settrace(None)
            report([good, time.monotonic() - start, sorted(seen)])
        report([name for name in sys.modules if name.partition(".")[0] in WARM])

    *reached, loaded = in_child(session, work)
    return [Reach(good, took, frozenset(map(tuple, lines))) for good, took, lines in reached], loaded


def judge(
    session: pytest.Session, mutant: Mutant, live: Live, tests: list[tuple[int, float]], seconds: float
) -> int | None:
    """The test that notices the mutant, of (its number, its usual seconds); None where none does, or OUT_OF_TIME.

    A test that takes far longer than usual is taken for one that hangs, and so has noticed.
    """

    def work(report: Callable[[Any], None]) -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        put_in_place(mutant, live)
        end = time.monotonic() + seconds
        for place, (number, usual) in enumerate(tests):
            if time.monotonic() > end:
                report(OUT_OF_TIME)
                return
            report(number)
            signal.setitimer(signal.ITIMER_REAL, 10 + 20 * usual)
            following = session.items[tests[place + 1][0]] if place + 1 < len(tests) else None
            if not passes(session, session.items[number], following):
                return
        report(None)

    found: list[int | None] = in_child(session, work)
    return found[-1]


class Judge:
    """The pytest plugin that runs the collected tests against mutants instead of once."""

    def __init__(self, found: list[Mutant], seconds: float, equivalent: dict[tuple[str, str, str], str]) -> None:
        self.mutants = found
        self.seconds = seconds
        self.equivalent = equivalent
        self.complaints: list[str] = []

    def pytest_sessionstart(self) -> None:
        """Examples that fail are neither kept nor made smaller; the house's own settings are loaded by now."""
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", database=None, phases=phases)
        hypothesis.settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judges every mutant."""
        reached, loaded = survey(session, {str(m.path) for m in self.mutants})
        for module in [*loaded, *(m.module for m in self.mutants)]:
            importlib.import_module(module)
        live = live_functions()
        gc.freeze()
        usable = {number: reach for number, reach in enumerate(reached) if reach.passes}
        for item, reach in zip(session.items, reached, strict=False):
            if not reach.passes:
                self.complaints.append(f"fails without a mutant: {item.nodeid}")
        print(f"\n{len(usable)} tests in {sum(r.seconds for r in reached):.0f} s", flush=True)
        noticed: Counter[int] = Counter()
        for place, mutant in enumerate(self.mutants, 1):
            reaching = [
                (number, reach.seconds)
                for number, reach in usable.items()
                if any((str(mutant.path), line) in reach.lines for line in mutant.lines)
            ]
            named = {mutant.path.stem, mutant.path.parent.name}
            own = {n for n, _ in reaching if any(name in session.items[n].nodeid for name in named - {"passes"})}
            reaching.sort(key=lambda test: (test[0] not in own, test[1] / (1 + noticed[test[0]])))
            start = time.monotonic()
            found = judge(session, mutant, live, reaching, self.seconds) if reaching else None
            by = None if found == OUT_OF_TIME else found
            noticed.update([] if by is None else [by])
            verdict = self._verdict(mutant, missed=by is not None)
            why = f"{len(reaching)} tests reach it" + (", not all run" if found == OUT_OF_TIME else "")
            if by is not None:
                why = session.items[by].nodeid.rpartition("/")[2]
            where = f"{mutant.file}:{mutant.lines.start} {mutant.function}"
            took = time.monotonic() - start
            print(f"[{place}/{len(self.mutants)}] {verdict} {where}: {mutant.text}  [{why}, {took:.1f} s]", flush=True)
        return True

    def _verdict(self, mutant: Mutant, *, missed: bool) -> str:
        reason = self.equivalent.get(mutant.key)
        if missed and reason is None:
            return "missed"
        if not missed and reason is not None:
            return "equivalent"
        verdict = "MISSED BUT LISTED" if missed else "NOT MISSED"
        self.complaints.append(f"{verdict} {mutant.file}:{mutant.lines.start} {mutant.function}: {mutant.text}")
        return verdict


def main() -> None:
    """Judges every mutant and prints those that no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="files and folders of passes")
    parser.add_argument("--tests", nargs="+", required=True, help="what is to notice their mutants")
    parser.add_argument("--only", default="", help="judge the conditions whose function or text contains this")
    parser.add_argument("--seconds", type=float, default=60, help="of tests for one mutant")
    stated = parser.parse_args()
    import torch  # noqa: F401  # loaded once, before the children

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sources = [source.resolve() for source in stated.sources]
    files = [path for s in sources for path in (sorted(s.rglob("*.py")) if s.is_dir() else [s])]
    every = [mutant for path in files for mutant in mutants(path)]
    chosen = [m for m in every if stated.only in f"{m.function}: {m.text}"]
    listed = tomllib.loads(EQUIVALENT.read_text())["condition"]
    equivalent = {(c["file"], c["function"], c["text"]): c["reason"] for c in listed}
    plugin = Judge(chosen, stated.seconds, equivalent)
    with tempfile.TemporaryDirectory(prefix="tilewright-mutants-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:warnings", "-m", "not slow"]
        code = pytest.main([*stated.tests, *options], plugins=[plugin])
    present = {m.key for m in every}
    names = {str(path.relative_to(ROOT)) for path in files}
    gone = [f"GONE {':'.join(key)}" for key in equivalent if key[0] in names and key not in present]
    complaints = [*plugin.complaints, *gone]
    print("\n".join([f"{len(chosen)} conditions removed, {len(complaints)} complaints", *complaints]))
    sys.exit(int(code) or bool(complaints))


if __name__ == "__main__":
    main()
