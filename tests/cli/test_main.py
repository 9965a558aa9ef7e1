"""The command line answers at once, and its exit code tells whose fault something is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import tilewright
from tilewright.cli import app as verbs
from tilewright.cli import command_line

HEAVY = [
    "torch",
    "numpy",
    "xdsl",
    "llvmlite",
    "torch_mlir",
    "transformers",
    "rich",
    "tilewright.ir",
    "tilewright.compiler",
]


def python(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)


def test_help_is_there_within_half_a_second_of_processor_time() -> None:
    times = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "tilewright", "--help"], capture_output=True, text=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.returncode == 0
        assert all(f"  {verb} " in done.stdout for verb in ("compile", "run", "check", "opt", "cache", "explain"))
    assert min(times) < 0.5, times


def test_help_imports_nothing_heavy() -> None:
    done = python(f"import sys, tilewright.cli.app; print([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_no_line_of_the_overview_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.replace("[OPTIONS] COMMAND [ARGS]...", "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["--version"]) == 0
    assert capsys.readouterr().out == f"tilewright {tilewright.__version__}\n"


@pytest.mark.parametrize(
    "line", [["nosuch"], ["compile"], ["opt", "--nosuch"], ["run"], ["check", "m:f", "-n", "many"]]
)
def test_what_is_no_command_line_exits_with_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(line) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "tilewright" in shown.err
    assert "Traceback" not in shown.err


def test_a_users_error_exits_with_1_and_shows_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["ops", "graph.matmull"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "TW008 wrong option: no op or dialect is called 'graph.matmull'\n  next: did you mean 'graph.matmul'?\n"
    )


def test_our_own_fault_exits_with_3_and_shows_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(dialect: str | None = None) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("tilewright.ir.catalogue.catalogue", broken)
    assert command_line(["ops"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "KeyError: 'lost'" in err
    assert err.endswith(
        "This is a fault of Tilewright. Please report it with the lines above and the output of `tilewright env`.\n"
    )


def test_without_typer_the_command_line_says_what_to_install() -> None:
    done = python(
        "import sys; sys.modules['typer'] = None; from tilewright import cli; sys.exit(cli.command_line(['env']))"
    )
    assert done.returncode == 1
    assert done.stderr == (
        "TW032 a dependency is missing: the command line needs typer, which is not installed\n"
        "  next: pip install typer rich\n"
    )


def test_a_closed_pipe_is_no_fault() -> None:
    line = f"{sys.executable} -m tilewright ops | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stdout.startswith("op ")
    assert "Traceback" not in done.stderr


def test_every_verb_has_a_line_of_help() -> None:
    commands = verbs.app.registered_commands
    assert len(commands) == len({c.name for c in commands}) > 10
    for command in commands:
        assert command.callback is not None
        assert (command.callback.__doc__ or "").strip().endswith("."), command.name
