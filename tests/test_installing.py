"""An editable install is found before folders that are only called like it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BUILD = "import sys, setuptools.build_meta as built; built.build_editable(sys.argv[1])"


def test_python_started_beside_the_clone_imports_the_package(tmp_path: Path) -> None:
    clone, wheels = tmp_path / "tilewright", tmp_path / "wheels"
    (clone / "tilewright").mkdir(parents=True)
    wheels.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    (clone / "tilewright" / "__init__.py").write_text('__version__ = "0.0"\n', encoding="utf-8")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-c", _BUILD, wheels], cwd=clone, env=plain, check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as opened:
        site = tmp_path / "site"
        opened.extractall(site)
    # site-packages come after the folder that Python was started in, and so does what they point to
    found = f"import site, sys; sys.path = [''] + sys.path; site.addsitedir({str(site)!r})"
    line = f"{found}; import tilewright; print(tilewright.__file__)"
    ran = subprocess.run([sys.executable, "-S", "-c", line], cwd=tmp_path, env=plain, check=True, capture_output=True)
    assert Path(ran.stdout.decode().strip()) == clone / "tilewright" / "__init__.py"
