"""The pages of docs/ that show Python are true: their examples run, a page's one after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.compiler.test_torch_backend import fresh  # noqa: F401  (a fixture: the backend is registered)

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "count", "said"),
    [
        ("torch", 2, "swiglu_kernel"),
        ("kernels", 5, "product"),
        pytest.param("generation", 1, "4 pages of 16 hold what is left of 200 tokens", marks=pytest.mark.slow),
    ],
)
def test_the_examples_run(
    page: str,
    count: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    names: dict[str, Any] = {"__name__": page}
    for number, text in enumerate(blocks):
        # a kernel's source is read from its file
        path = tmp_path / f"example_{number}.py"
        path.write_text(text, encoding="utf-8")
        exec(compile(text, str(path), "exec"), names)
    assert said in capsys.readouterr().out
