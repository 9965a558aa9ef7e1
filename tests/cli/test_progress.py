"""Who watches a compilation is told every stage; a person sees it on a terminal and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from tilewright.cli.progress import watching
from tilewright.compiler.entry import compile_model


def test_stages_come_in_order_and_kernels_are_counted() -> None:
    told: list[tuple[str, int, int]] = []
    compile_model(
        torch.nn.Linear(7, 3).eval(), (torch.ones(2, 7),), progress=lambda *news: told.append(news), cache=False
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:2] == ["identity", "capture"]
    assert stages.index("capture") < stages.index("passes") < stages.index("kernels") < stages.index("weights")
    counted = [(done, total) for stage, done, total in told if stage == "kernels" and total]
    assert [done for done, _ in counted] == list(range(1, counted[-1][1] + 1))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with watching() as nobody:
        assert nobody is None
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with watching() as show:
        assert show is not None
        show("capture", 0, 0)
        show("kernels", 2, 5)
    assert "kernels" in terminal.getvalue()
    assert "2/5" in terminal.getvalue()
    assert capsys.readouterr().out == ""
