"""Removes one side condition of the passes at a time and runs their tests: a mutant that lives is a hole in the tests.

A side condition is an operand of a guard (`if a or b: return None`), of a returned conjunction (`return a and b`), of
a conditional result (`x if a and b else None`) or of a `case ... if` clause. Each is replaced by what lets the rewrite
go on. Tests run in a forked child that has torch and pytest loaded already, against the mutated source in memory.

    python tools/mutate_conditions.py tilewright/passes/fold.py tests/passes/test_fold.py tests/passes/test_mutations.py
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIVED, KILLED, TIMEOUT = "lived", "killed", "timeout"


@dataclass(frozen=True)
class Mutant:
    """A condition of a file, and the file's syntax tree without it."""

    path: Path
    line: int
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(path.read_text())
    count = len(list(_conditions(tree)))
    for number in range(count):
        changed = copy.deepcopy(tree)
        holder, field, index, neutral = list(_conditions(changed))[number]
        old = getattr(holder, field) if index is None else getattr(holder, field)[index]
        text, line = ast.unparse(old), old.lineno
        new = ast.copy_location(ast.Constant(neutral), old)
        if index is None:
            setattr(holder, field, new)
        else:
            getattr(holder, field)[index] = new
        yield Mutant(path, line, text, changed)


Condition = tuple[Any, str, int | None, bool]


def _conditions(tree: ast.Module) -> Iterator[Condition]:
    """Where conditions sit: (node, field, index in it, the constant that removes it)."""
    for node in ast.walk(tree):
        match node:
            case ast.If(body=[ast.Return() | ast.Continue() | ast.Break()], orelse=[]):
                yield from _operands(node, "test", ast.Or, neutral=False)
            case ast.Return(value=ast.BoolOp(op=ast.And())) as returned:
                yield from _operands(returned, "value", ast.And, neutral=True)
            case ast.IfExp(orelse=ast.Constant(value=None)):
                yield from _operands(node, "test", ast.And, neutral=True)
            case ast.match_case(guard=ast.expr()):
                yield from _operands(node, "guard", ast.And, neutral=True)


def _operands(node: Any, field: str, joined: type[ast.boolop], *, neutral: bool) -> Iterator[Condition]:
    value = getattr(node, field)
    if isinstance(value, ast.BoolOp) and isinstance(value.op, joined):
        for index in range(len(value.values)):
            yield value, "values", index, neutral
    else:
        yield node, field, None, neutral


class _Source(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a syntax tree."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.mutant.module:
            return None
        package = [str(self.mutant.path.parent)] if self.mutant.path.stem == "__init__" else None
        return importlib.util.spec_from_file_location(
            name, self.mutant.path, loader=self, submodule_search_locations=package
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.tree, str(self.mutant.path), "exec"), module.__dict__)


def judge(mutant: Mutant, tests: list[str], seconds: int) -> str:
    """Runs the tests against a mutant in a child."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, _Source(mutant))
        import pytest

        code = 1
        try:
            code = int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider"]))
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return LIVED if os.waitstatus_to_exitcode(status) == 0 else KILLED
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMEOUT


def main() -> None:
    """Judges every mutant and prints those that lived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a file or folder of passes")
    parser.add_argument("tests", nargs="+", help="what is to kill its mutants")
    parser.add_argument("--seconds", type=int, default=300, help="after which a mutant counts as noticed")
    stated = parser.parse_args()
    import hypothesis  # noqa: F401  # loaded once, before the children
    import pytest  # noqa: F401
    import torch  # noqa: F401
    import xdsl.dialects.builtin  # noqa: F401

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    source = stated.source.resolve()
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    found = [mutant for path in files for mutant in mutants(path)]
    lived = []
    for number, mutant in enumerate(found, 1):
        verdict = judge(mutant, stated.tests, stated.seconds)
        place = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
        print(f"[{number}/{len(found)}] {verdict:7} {place}: {mutant.text}", flush=True)
        if verdict == LIVED:
            lived.append(mutant)
    print(f"{len(found)} conditions removed, {len(lived)} not noticed")
    sys.exit(bool(lived))


if __name__ == "__main__":
    main()
