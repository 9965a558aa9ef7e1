"""docs/torch.md is true: its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.compiler.test_torch_backend import fresh  # noqa: F401  (a fixture: the backend is registered)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "torch.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for number, text in enumerate(blocks):
        # a kernel's source is read from its file
        path = tmp_path / f"example_{number}.py"
        path.write_text(text, encoding="utf-8")
        exec(compile(text, str(path), "exec"), {"__name__": f"example_{number}"})
    assert "swiglu_kernel" in capsys.readouterr().out
