"""The import arrows of the package, read off its source: which room may import which.

frontend, passes, backends and runtime import ir; ir imports nothing above it; the four do not import each other.
compiler.py, cli/ and the public API see every room, and no room imports them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "tilewright"
ROOMS = ("frontend", "ir", "passes", "backends", "runtime")
# What no room is: how things are refused.
REFUSING = frozenset({"errors", "option_names"})
EVERYTHING = frozenset({*ROOMS, *REFUSING, "cli", "compiler", "testing"})

# Who may import what besides itself. A module of the package that is not named here is a violation: place it first.
ARROWS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "option_names": frozenset({"errors"}),
    "ir": REFUSING,
    "frontend": REFUSING | {"ir"},
    "passes": REFUSING | {"ir"},
    "backends": REFUSING | {"ir"},
    "runtime": REFUSING | {"ir"},
    "compiler": EVERYTHING - {"cli", "testing"},
    "testing": EVERYTHING - {"cli"},
    "cli": EVERYTHING,
    "__main__": EVERYTHING,
    "__init__": EVERYTHING - {"cli"},
}

# The public API is above every room, but its version is a plain string that keys and artifacts need.
OPEN_NAMES = frozenset({"__version__"})


@dataclass(frozen=True, order=True)
class Violation:
    """One import that breaks the rules: "ir/dims.py:7: ir imports passes.fuse ..."."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Imported:
    """One imported name: "tilewright.ir.dims" or "tilewright.ir.dims.Expr", level 0 when absolute."""

    name: str
    line: int
    level: int = 0


def imports_of(source: str) -> list[Imported]:
    """Every import in the text, in functions and `if TYPE_CHECKING` too, and each import_module("...") of a literal."""
    found: list[Imported] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [Imported(alias.name, node.lineno) for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                base = f"{module}." if module else ""
                found += [Imported(base + alias.name, node.lineno, level) for alias in names]
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", None)
                if called in ("import_module", "__import__"):
                    level = len(name) - len(name.lstrip("."))
                    found.append(Imported(name.lstrip("."), node.lineno, level))
    return found


def violations(package: Path) -> list[Violation]:
    """Every import under `package` (the folder tilewright/ itself) that the arrows forbid, in file order."""
    broken: list[Violation] = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        here = relative.parts[0].removesuffix(".py")
        if here not in ARROWS:
            broken.append(Violation(str(relative), 1, f"the arrows do not say what {here} may import"))
            continue
        for imported in imports_of(path.read_text(encoding="utf-8")):
            if reason := _forbidden(here, imported):
                broken.append(Violation(str(relative), imported.line, reason))
    return sorted(set(broken))


def _forbidden(here: str, imported: Imported) -> str | None:
    if imported.level:
        return f"relative import of {'.' * imported.level}{imported.name}: write it absolute"
    root, _, rest = imported.name.partition(".")
    if root in ROOMS:
        return f"imports {imported.name} through a top-level link: write {PACKAGE}.{imported.name}"
    if root != PACKAGE:
        return None
    target = rest.partition(".")[0]
    if target == here or target in ARROWS[here] or target in OPEN_NAMES:
        return None
    if not target or target not in EVERYTHING:
        return None if "compiler" in ARROWS[here] else f"{here} imports the public API ({imported.name})"
    return f"{here} imports {rest}, but may import only {', '.join(sorted(ARROWS[here])) or 'nothing'} and itself"
