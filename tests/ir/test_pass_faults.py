"""A pass that goes wrong is named: by its class, its line, and whether it is Tilewright's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import tilewright as tw
from tilewright.cli import command_line
from tilewright.errors import CapacityError, IRError, PassError
from tilewright.ir.passing import Context
from tilewright.passes.fuse import Fuse

TEXT = """
builtin.module attributes {tw.dims = #tw.dim_space<["n: 1..9"]>} {
  graph.func() {sym_name="main", arg_names=["x"], result_names=["y"]} {
  ^bb(%x: !graph.tensor<["n",3],f32>):
    %w = graph.weight() {name="w"} : !graph.tensor<[3,2],f32>
    %y = graph.matmul(%x, %w) : !graph.tensor<["n",2],f32>
    graph.return(values=[%y])
  }
}
"""
STEP = "\n  next: mend the pass, or compile with passes=tw.pipeline().without('wrong')"


@dataclass(frozen=True)
class Wrong(tw.Pass):
    """Goes wrong in the way asked for."""

    name: ClassVar[str] = "wrong"
    how: str = ""

    def run(self, module: Any, ctx: Context) -> None:
        (product,) = [op for op in module.walk() if op.name == "graph.matmul"]
        if self.how == "malformed":
            product.properties["transpose_b"] = type(product.transpose_b)(1)
        if self.how == "construction":
            type(product).make(product.a, product.a)
        if self.how == "erased":
            product.erase()
        if self.how == "raised":
            raise ValueError("two lines\n  of text")
        if self.how == "silent":
            raise StopIteration
        if self.how == "coded":
            raise CapacityError("too large", step="take less")


def refusal(how: str) -> PassError:
    with pytest.raises(PassError) as raised:
        tw.testing.transform(TEXT, Wrong(how))
    return raised.value


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def test_an_exception_is_told_with_the_pass_its_line_and_its_cause() -> None:
    error = refusal("raised")
    line = line_of("raise ValueError")
    assert str(error) == (
        f"TW036 a pass is at fault: wrong ({__name__}.Wrong) raised ValueError: two lines of text  "
        f"(at test_pass_faults.py:{line}){STEP}"
    )
    assert isinstance(error.__cause__, ValueError)
    line = line_of("raise StopIteration")
    assert str(refusal("silent")) == (
        f"TW036 a pass is at fault: wrong ({__name__}.Wrong) raised StopIteration  "
        f"(at test_pass_faults.py:{line}){STEP}"
    )


def test_what_another_library_refuses_is_told_with_the_line_of_the_pass_that_called_it() -> None:
    error = refusal("erased")
    assert str(error) == (
        f"TW036 a pass is at fault: wrong ({__name__}.Wrong) raised AssertionError: Operation with parents should "
        f"first be detached before erasure.  (at test_pass_faults.py:{line_of('product.erase()')}){STEP}"
    )


def test_ir_that_a_pass_makes_or_leaves_malformed_is_told_with_the_pass() -> None:
    for how, rule in (
        ("malformed", "the contracted dims differ: f32[n, 3] has 3, f32[3, 2] has 2"),
        ("construction", "the contracted dims differ: f32[n, 3] has 3, f32[n, 3] has n"),
    ):
        error = refusal(how)
        assert str(error) == (f"TW036 a pass is at fault: graph.matmul: by wrong ({__name__}.Wrong): {rule}{STEP}")
        assert isinstance(error.__cause__, IRError)


def test_a_coded_error_about_the_program_stays_what_it_is() -> None:
    with pytest.raises(CapacityError) as raised:
        tw.testing.transform(TEXT, Wrong("coded"))
    assert str(raised.value) == "TW028 does not fit in memory: too large\n  next: take less"


def test_a_pass_of_our_own_is_ours_to_mend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(self: Fuse, module: Any, ctx: Context) -> None:
        raise KeyError("group")

    monkeypatch.setattr(Fuse, "run", broken)
    with pytest.raises(PassError) as raised:
        tw.testing.transform(TEXT, Fuse())
    line = line_of('raise KeyError("group")')
    assert str(raised.value) == (
        "TW036 a pass is at fault: fuse (tilewright.passes.fuse.Fuse) raised KeyError: 'group'  "
        f"(at test_pass_faults.py:{line})\n"
        "  next: report this fault of Tilewright with the model"
    ), "no model compiles without it"


def test_the_command_line_calls_a_fault_of_its_own_by_that_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(self: Fuse, module: Any, ctx: Context) -> None:
        raise KeyError("group")

    monkeypatch.setattr(Fuse, "run", broken)
    file = tmp_path / "small.mlir"
    file.write_text(TEXT)
    assert command_line(["opt", str(file), "-p", "fuse"]) == 3
    shown = capsys.readouterr().err
    assert "KeyError: 'group'" in shown
    assert shown.rstrip().endswith("Please report it with the lines above and the output of `tilewright env`.")


def test_opt_says_how_to_find_the_pass_where_it_did_not_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def spoils(self: Fuse, module: Any, ctx: Context) -> None:
        Wrong("malformed").run(module, ctx)

    monkeypatch.setattr(Fuse, "run", spoils)
    file = tmp_path / "small.mlir"
    file.write_text(TEXT)
    rule = "the contracted dims differ: f32[n, 3] has 3, f32[3, 2] has 2"
    assert command_line(["opt", str(file), "-p", "fuse"]) == 1
    assert capsys.readouterr().err == (
        f"TW020 malformed IR: graph.matmul: {rule}\n  next: run it again with --verify-each, which names the pass\n"
    )
    assert command_line(["opt", str(file), "-p", "fuse", "--verify-each"]) == 3
    assert f"graph.matmul: by fuse (tilewright.passes.fuse.Fuse): {rule}" in capsys.readouterr().err


def test_compiling_names_the_pass_too() -> None:
    @dataclass(frozen=True)
    class Absent(tw.Pass):
        name: ClassVar[str] = "wrong"

        def run(self, module: Any, ctx: Context) -> None:
            raise LookupError

    x = torch.randn(2, 3)
    for verify_each in (None, "numeric"):
        with pytest.raises(PassError) as raised:
            tw.compile(
                torch.nn.Linear(3, 2).eval(), args=(x,), passes=tw.pipeline().after("recognize", Absent()),
                verify_each=verify_each,
            )  # fmt: skip
        assert str(raised.value).startswith(f"TW036 a pass is at fault: wrong ({__name__}.test_compiling_names")
