"""docs/cli.md is true: its lines run, and it names every verb and option."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from tests.models.language_models import build
from tests.runtime.generation.sample_tokenizers import save_tokenizer
from tilewright.cli import command_line
from tilewright.cli.app import app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_line_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    Path("mymodel.py").write_text(blocks("python")[0])
    Path("small.mlir").write_text(blocks("mlir")[0])
    Path("story.txt").write_text("There was a compiler that counted every byte. " * 8)
    build("Llama", 0, vocab_size=258, num_hidden_layers=1).save_pretrained("a-model")
    save_tokenizer(Path("a-model"))
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) > 15
    try:
        for line in lines:
            verb, *rest = shlex.split(line)[1:]
            assert command_line([verb, *rest]) == 0, f"{line}\n{capsys.readouterr().err}"
    finally:
        sys.modules.pop("mymodel", None)
    for written in ("ffn.tilewright", "out.npz", "report.html", "trace.json"):
        assert Path(written).stat().st_size > 0


def test_every_verb_and_option_is_named() -> None:
    top = typer.main.get_command(app)
    missing = []
    for name, verb in top.commands.items():  # type: ignore[attr-defined]
        for path, command in [(name, verb), *((f"{name} {n}", c) for n, c in getattr(verb, "commands", {}).items())]:
            if path not in PAGE:
                missing.append(path)
            for parameter in command.params:
                long = [o for o in parameter.opts if o.startswith("--")]
                if long and not any(o in PAGE for o in long) and long != ["--help"]:
                    missing.append(f"{path} {long[0]}")
    assert not missing, missing
