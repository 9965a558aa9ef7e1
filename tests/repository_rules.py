"""The rules on the repository's text that no linter knows, as functions from a file to the places that break them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

LINE_BUDGET = 500

# Machines are data; only a backend knows whose machine it is.
VENDORS = frozenset({"cuda", "rocm", "nvidia", "amd", "triton", "opencl", "ascend"})

# In two pieces, so that this file can be read by its own rule.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")

# A name that fits everything says nothing about what a file is for.
CATCH_ALL_NAMES = frozenset({"util", "utils", "helper", "helpers", "common", "misc", "manager", "v2"})

TEXT_SUFFIXES = frozenset({".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".mlir", ""})

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")


def files_below(*folders: Path, suffixes: Iterable[str] = (".py",)) -> Iterator[Path]:
    """The files under these folders, in order, without caches and without following links."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path


def too_long(path: Path) -> str | None:
    """A line naming the file if it is over the budget."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    return f"{path}: {lines} lines; {LINE_BUDGET} fit in a reader's head" if lines > LINE_BUDGET else None


def unfinished(path: Path) -> list[str]:
    """The lines that announce work instead of doing it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [f"{path}:{n}: {found[0]}" for n, line in enumerate(lines, 1) if (found := UNFINISHED.search(line))]


def vendor_names(path: Path, *, strings: bool = True) -> list[str]:
    """The places where Python code names a vendor: identifiers, comments, docstrings and (if `strings`) other strings.

    Words are whole ones, also inside snake_case and CamelCase: `cuda_stream` and `CudaStream` count, `amd64` does not.
    A frontend sets `strings` to False: there, a string may be the name that an external package gave its own thing.
    """
    source = path.read_text(encoding="utf-8")
    docstrings = {node.value.lineno for node in ast.walk(ast.parse(source)) if _is_docstring(node)}
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_string = token.type == tokenize.STRING or "STRING" in tokenize.tok_name[token.type]
        if is_string and not strings and token.start[0] not in docstrings:
            continue
        for offset, line in enumerate(token.string.splitlines()):
            for word in sorted({w.lower() for w in _WORD.findall(line)} & VENDORS):
                found.append(f"{path}:{token.start[0] + offset}: {word}")
    return found


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
