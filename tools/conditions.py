"""The side conditions of a Python file, and the file without each of them.

A side condition is an operand of a guard (`if a or b: return None`), of a returned conjunction (`return a and b`), of
a conditional result (`x if a and b else None`) or of a `case ... if` clause. It is removed by the constant that lets
the function go on: false in a guard, true elsewhere.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A condition of a function, and the file's syntax tree without it."""

    path: Path
    function: str
    lines: range
    text: str
    tree: ast.Module

    @property
    def file(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def module(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the condition in the list of equivalent ones, wherever its line moves."""
        return self.file, self.function, self.text


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(path.read_text())
    for number in range(len(list(_conditions(tree)))):
        changed = copy.deepcopy(tree)
        function, holder, field, index, neutral = list(_conditions(changed))[number]
        old = getattr(holder, field) if index is None else getattr(holder, field)[index]
        new = ast.copy_location(ast.Constant(neutral), old)
        if index is None:
            setattr(holder, field, new)
        else:
            getattr(holder, field)[index] = new
        yield Mutant(path, function, range(old.lineno, old.end_lineno + 1), ast.unparse(old), changed)


Condition = tuple[str, Any, str, int | None, bool]


def _conditions(tree: ast.Module) -> Iterator[Condition]:
    """Where conditions sit: (outermost function, node, field, index in it, the constant that removes it)."""
    for name, function in _functions(tree, ""):
        for node in ast.walk(function):
            for place in _of(node):
                yield name, *place


def _functions(within: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in within.body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield f"{prefix}{node.name}", node


def _of(node: ast.AST) -> Iterator[tuple[Any, str, int | None, bool]]:
    match node:
        case ast.If(body=[ast.Return() | ast.Continue() | ast.Break()], orelse=[]):
            yield from _operands(node, "test", ast.Or, neutral=False)
        case ast.Return(value=ast.BoolOp(op=ast.And())) as returned:
            yield from _operands(returned, "value", ast.And, neutral=True)
        case ast.IfExp(orelse=ast.Constant(value=None)):
            yield from _operands(node, "test", ast.And, neutral=True)
        case ast.match_case(guard=ast.expr()):
            yield from _operands(node, "guard", ast.And, neutral=True)


def _operands(
    node: Any, field: str, joined: type[ast.boolop], *, neutral: bool
) -> Iterator[tuple[Any, str, int | None, bool]]:
    value = getattr(node, field)
    if isinstance(value, ast.BoolOp) and isinstance(value.op, joined):
        for index in range(len(value.values)):
            yield value, "values", index, neutral
    else:
        yield node, field, None, neutral
