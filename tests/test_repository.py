"""The repository keeps its shape: links, small files, vendors in backends only, nothing unfinished, a light import."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.import_arrows import ROOMS
from tests.repository_rules import (
    CATCH_ALL_NAMES,
    LINE_BUDGET,
    TEXT_SUFFIXES,
    files_below,
    too_long,
    unfinished,
    vendor_names,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tilewright"
CODE = [PACKAGE, ROOT / "tests", ROOT / "bench"]

# What `import tilewright` must not pay for.
HEAVY = ["torch", "xdsl", "torch_mlir", "llvmlite", "transformers", "onnx", "typer", "rich", "matplotlib"]

# All that a machine which only runs programs has installed, besides Python and the package itself.
RUNTIME_NEEDS = {"numpy", "safetensors", "llvmlite"}


def python(source: str, *arguments: str) -> str:
    """What a fresh interpreter prints for `source`."""
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_a_link_at_the_top_level_shows_the_room(room: str) -> None:
    link = ROOT / room
    assert link.is_symlink()
    assert link.readlink() == Path("tilewright") / room, "links are relative, so that a clone can live anywhere"
    assert (link / "__init__.py").is_file()


def test_every_room_says_what_it_is_for() -> None:
    for room in (*ROOMS, "cli"):
        assert (PACKAGE / room / "__init__.py").read_text(encoding="utf-8").startswith('"""'), room


def test_every_file_fits_in_the_head() -> None:
    found = [said for path in files_below(*CODE) if (said := too_long(path))]
    assert not found, "\n" + "\n".join(found)


def test_files_are_named_for_what_they_do() -> None:
    found = [path for path in files_below(*CODE) if CATCH_ALL_NAMES & set(path.stem.split("_"))]
    assert not found, found


def test_nothing_is_left_unfinished() -> None:
    folders = [*CODE, ROOT / "docs", ROOT / "examples", ROOT / ".ci", ROOT / ".github"]
    top = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT_SUFFIXES]
    found = [said for path in [*top, *files_below(*folders, suffixes=TEXT_SUFFIXES)] for said in unfinished(path)]
    assert not found, "\n" + "\n".join(found)


def test_vendors_are_named_in_backends_only() -> None:
    outside = [path for path in files_below(PACKAGE) if not path.is_relative_to(PACKAGE / "backends")]
    assert outside
    found = [
        said for path in outside for said in vendor_names(path, strings=not path.is_relative_to(PACKAGE / "frontend"))
    ]
    assert not found, "\n" + "\n".join(found)


def seeded(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "seeded.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "if target == 'cuda': pass",
        "cuda_stream = 1",
        "class RocmDevice: ...",
        "x = 1  # as on Nvidia's chips",
        '"""For AMD\nand others."""',
        "y = f'a triton kernel {x}'",
        "OPENCL = 1",
        "device = 'npu:ascend-910b'",
    ],
)
def test_a_seeded_vendor_name_is_found(tmp_path: Path, text: str) -> None:
    assert len(vendor_names(seeded(tmp_path, text))) == 1


def test_what_only_looks_like_a_vendor_is_left_alone(tmp_path: Path) -> None:
    text = "machine = 'amd64'\nascending = [opencloud]\ndescend = ascends = 'Tritonal, barracuda'"
    assert vendor_names(seeded(tmp_path, text)) == []


def test_a_frontend_may_quote_an_external_package_but_not_speak_of_vendors_itself(tmp_path: Path) -> None:
    text = '"""For cuda."""\nbackend = cuda\ndevice = "cuda"\n'
    found = vendor_names(seeded(tmp_path, text), strings=False)
    assert [re.sub(r"^.*\.py:", "", said) for said in found] == ["1: cuda", "2: cuda"]


@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME", "X" + "XX"])
def test_a_seeded_unfinished_line_is_found(tmp_path: Path, word: str) -> None:
    path = seeded(tmp_path, f"x = 1\ny = 2  # {word}: later\nz = '{word.lower()}s'\n")
    assert unfinished(path) == [f"{path}:2: {word}"]


@pytest.mark.parametrize(("lines", "said"), [(LINE_BUDGET, False), (LINE_BUDGET + 1, True)])
def test_a_file_over_the_budget_is_found(tmp_path: Path, lines: int, said: bool) -> None:
    assert bool(too_long(seeded(tmp_path, "x = 1\n" * lines))) is said


def test_importing_tilewright_is_light() -> None:
    source = (
        "import json, sys, time; before = time.process_time(); import tilewright; after = time.process_time();"
        "print(json.dumps([after - before, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    runs = [json.loads(python(source)) for _ in range(5)]
    assert not set(runs[0][1]) & set(HEAVY)
    assert "tilewright" in runs[0][1]
    assert statistics.median(seconds for seconds, _ in runs) <= 0.2


def test_the_runtime_imports_with_numpy_safetensors_and_llvmlite_alone() -> None:
    source = """
import importlib, pkgutil, sys
needs = set(sys.argv[1].split(","))

class OnlyWhatTheRuntimeNeeds:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in needs or root in sys.stdlib_module_names or root == "tilewright":
            return None
        if root in third_party:
            raise ModuleNotFoundError(f"{name} is not installed where programs only run")
        return None

from importlib.metadata import packages_distributions
third_party = set(packages_distributions())
sys.meta_path.insert(0, OnlyWhatTheRuntimeNeeds())
import tilewright.runtime
found = ["tilewright.runtime"]
for module in pkgutil.walk_packages(tilewright.runtime.__path__, "tilewright.runtime."):
    importlib.import_module(module.name)
    found.append(module.name)
print(len(found))
"""
    assert int(python(source, ",".join(sorted(RUNTIME_NEEDS)))) >= 1


def normal(name: str) -> str:
    """A distribution's name in the one form that package indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_declared_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + [need for extra in project["optional-dependencies"].values() for need in extra]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    names = {normal(re.split(r"[^\w.-]", need)[0]) for need in declared}
    assert names <= {normal(name) for name in pins}
    assert pins["torch"] == "2.13.0"
