"""A folder to work in where the sample models can be named, and one compiled artifact."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tilewright.cli import command_line

DIMS = ["--dims", "ids=batch:1..8,tokens:1..64", "--dims", "mask=batch,tokens", "--dims", "extra.x=batch,tokens,_"]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    shutil.copy(Path(__file__).with_name("sample_models.py"), folder)
    return folder


@pytest.fixture(autouse=True)
def inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in the workplace; what they add to the module path is taken back."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("sample_models", None)


@pytest.fixture(scope="session")
def artifact(workplace: Path) -> Path:
    """The sample net, compiled by the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr(sys, "path", list(sys.path))
        assert command_line(["compile", "sample_models:make", "-o", "net.tilewright", *DIMS]) == 0
    return workplace / "net.tilewright"


@pytest.fixture
def tw(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs one command line: (exit code, stdout, stderr)."""

    def call(*line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command_line(list(line))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call
