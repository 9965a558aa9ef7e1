"""Imports inside tilewright/ point one way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.import_arrows import violations

PACKAGE = Path(__file__).resolve().parent.parent / "tilewright"


def plant(root: Path, files: dict[str, str]) -> Path:
    """A package tree with these files, in a folder of its own."""
    for name, text in files.items():
        path = root / "tilewright" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "tilewright"


def test_every_import_follows_the_arrows() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > len(list(PACKAGE.glob("*.py"))) > 0, "the tree was not found"
    broken = violations(PACKAGE)
    assert not broken, "\n" + "\n".join(map(str, broken))


ALLOWED = {
    "errors.py": "import sys",
    "ir/dims.py": "from tilewright.errors import TilewrightError\nfrom tilewright.ir import dtypes",
    "passes/fuse.py": "from tilewright import errors, ir\nimport tilewright.ir.dims, tilewright.passes.fold",
    "runtime/cache.py": "from tilewright import __version__\nfrom tilewright.ir.dims import Expr\nimport numpy",
    "backends/cpu/emit.py": "from tilewright.backends.cpu import vectors\nfrom torch_mlir import ir",
    "frontend/export.py": "def f():\n    import torch\n    from tilewright.ir.dims import Dim",
    "compiler.py": "from tilewright.frontend import export\nfrom tilewright.runtime import cache",
    "cli/__init__.py": "import tilewright as tw\nfrom tilewright import cli, compiler, passes",
    "__init__.py": "from tilewright.ir.dims import Dim\ndef f():\n    from tilewright.compiler import compile",
}


def test_the_checker_passes_imports_that_follow_the_arrows(tmp_path: Path) -> None:
    assert violations(plant(tmp_path, ALLOWED)) == []


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("ir/a.py", "import os\nfrom tilewright.passes.fuse import Fuse", "ir/a.py:2: ir imports passes.fuse.Fuse"),
        ("ir/a.py", "from tilewright import runtime", "ir/a.py:1: ir imports runtime"),
        ("ir/deep/a.py", "import tilewright.backends.cpu", "ir/deep/a.py:1: ir imports backends.cpu"),
        ("passes/a.py", "from tilewright.frontend import export", "passes imports frontend.export"),
        (
            "passes/a.py",
            "def f():\n    from tilewright.runtime import cache",
            "passes/a.py:2: passes imports runtime.cache",
        ),
        (
            "frontend/a.py",
            "class C:\n    def f(self):\n        import tilewright.passes.fuse",
            "a.py:3: frontend imports",
        ),
        (
            "runtime/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tilewright.backends import cpu",
            "runtime/a.py:3: runtime imports backends.cpu",
        ),
        ("runtime/a.py", "try:\n    import tilewright.cli\nexcept ImportError:\n    raise", "runtime imports cli"),
        ("backends/cpu/a.py", "from tilewright.compiler import compile", "backends imports compiler.compile"),
        (
            "backends/a.py",
            "import importlib\nimportlib.import_module('tilewright.passes.fuse')",
            "a.py:2: backends imports",
        ),
        ("backends/a.py", "__import__('tilewright.runtime')", "backends imports runtime"),
        ("passes/a.py", "from tilewright import compile", "passes imports the public API (tilewright.compile)"),
        ("passes/a.py", "import tilewright", "passes imports the public API (tilewright)"),
        ("compiler.py", "from tilewright.cli import main", "compiler imports cli.main"),
        ("errors.py", "from tilewright.ir.dims import Expr", "may import only nothing and itself"),
        ("passes/a.py", "from . import fuse", "relative import of .fuse"),
        ("passes/a.py", "from ..ir.dims import Expr", "relative import of ..ir.dims.Expr"),
        ("passes/a.py", "from ir.dims import Expr", "through a top-level link: write tilewright.ir.dims.Expr"),
        ("extras.py", "import sys", "the arrows do not say what extras may import"),
    ],
)
def test_the_checker_names_a_seeded_violation(tmp_path: Path, path: str, source: str, said: str) -> None:
    seeded = {**ALLOWED, path: source}
    (violation,) = violations(plant(tmp_path, seeded))
    assert said in str(violation)
