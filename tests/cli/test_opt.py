"""opt: IR text in, passes, IR text out; what is wrong is said with line and column."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.passes.encoder_text import ENCODER
from tilewright.testing import ground, ir

Call = Callable[..., tuple[int, str, str]]

SMALL = """builtin.module attributes {tw.dims = #tw.dim_space<["n: 1..9"]>} {
  graph.func() {arg_names = ["x"], result_names = ["y"], sym_name = "main"} {
  ^bb0(%x: !graph.tensor<["n", 4], f32>):
    %one = graph.constant() {values = ["1.0"]} : !graph.tensor<[], f32>
    %a = graph.map(args=[%x, %one]) {fn = "mul"} : !graph.tensor<["n", 4], f32> loc("net.py:3")
    %b = graph.map(args=[%a]) {fn = "exp"} : !graph.tensor<["n", 4], f32> loc("net.py:4")
    %c = graph.map(args=[%b, %b]) {fn = "add"} : !graph.tensor<["n", 4], f32> loc("net.py:5")
    graph.return(values=[%c])
  }
}
"""


@pytest.fixture
def small() -> str:
    Path("small.mlir").write_text(SMALL)
    return "small.mlir"


def test_without_passes_the_text_comes_back_normalised_once(tw: Call, small: str) -> None:
    code, once, err = tw("opt", small)
    assert (code, err) == (0, "")
    Path("once.mlir").write_text(once)
    assert tw("opt", "once.mlir") == (0, once, "")


def test_passes_run_in_order_and_options_are_read(tw: Call) -> None:
    Path("encoder.mlir").write_text(ENCODER)
    code, fused, _ = tw("opt", "encoder.mlir", "-p", "canonicalize,fuse{max-ops=2 pairs=false}", "--verify-each")
    assert code == 0
    wanted = str(ground(ENCODER, "canonicalize,fuse{max-ops=2 pairs=false}"))
    assert fused.replace("^bb0(", "^bb(") == wanted.replace("^bb0(", "^bb(") + "\n"
    assert fused != tw("opt", "encoder.mlir", "-p", "canonicalize,fuse")[1]


def test_a_pass_that_lacks_what_it_works_on_says_so(tw: Call, small: str) -> None:
    plain = tw("opt", small)[1]
    assert tw("opt", small, "-p", "lower-to-tile") == (
        0,
        plain,
        "lower-to-tile changed nothing: it works on what fuse or materialise makes, which did not run\n",
    )
    # passes that ran before, also on the text itself, are what it takes
    assert tw("opt", small, "-p", "fuse,lower-to-tile")[2] == ""
    tw("opt", small, "-p", "fuse", "-o", "fused.mlir")
    code, lowered, err = tw("opt", "fused.mlir", "-p", "lower-to-tile")
    assert (code, err) == (0, "")
    assert "tile.launch" in lowered


def test_stdin_and_an_output_file(tw: Call, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (["opt", "-p", "canonicalize"], ["opt", "-", "-p", "canonicalize"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(SMALL))
        assert tw(*line)[:2] == tw("opt", small, "-p", "canonicalize")[:2]
    code, out, _ = tw("opt", small, "-p", "canonicalize", "-o", "out.mlir")
    assert (code, out) == (0, "")
    assert Path("out.mlir").read_text() == tw("opt", small, "-p", "canonicalize")[1]


def test_print_after_all_changed_or_one(tw: Call, small: str) -> None:
    def titles(which: str) -> list[str]:
        err = tw("opt", small, "-p", "canonicalize,canonicalize,fuse{max-ops=8}", f"--print-after={which}")[2]
        return re.findall(r"// ----- (.*) -----", err)

    assert titles("all") == ["after canonicalize", "after canonicalize", "after fuse{max-ops=8}"]
    assert titles("changed") == ["after canonicalize", "after canonicalize: unchanged", "after fuse{max-ops=8}"]
    assert titles("fuse") == ["after fuse{max-ops=8}"]
    # what is printed is IR that parses
    err = tw("opt", small, "-p", "fuse", "--print-after=fuse")[2]
    assert "graph.group" in str(ir(err.partition("\n")[2]))


def test_time_and_remarks_go_to_stderr(tw: Call, small: str) -> None:
    code, out, err = tw("opt", small, "-p", "canonicalize,fuse", "--time", "--remarks")
    assert code == 0
    assert out == tw("opt", small, "-p", "canonicalize,fuse")[1]
    rows = [line.split() for line in err.splitlines()[:4]]
    assert [row[0] for row in rows] == ["pass", "canonicalize", "fuse", "total"]
    assert float(rows[3][1]) == pytest.approx(float(rows[1][1]) + float(rows[2][1]), abs=0.02)
    assert int(rows[3][-1]) == int(rows[1][-1]) + int(rows[2][-1]) > 0
    assert re.search(r"^net\.py:\d: fuse: graph\.map: .*, saves \d+\*n bytes$", err, re.MULTILINE), err


def test_verify_each_numeric_runs_every_level(tw: Call, small: str) -> None:
    pipeline = "canonicalize,fuse,plan-layout,lower-to-tile,place-levels,plan-memory"
    code, out, err = tw("opt", small, "-p", pipeline, "--verify-each=numeric", "--target", "cpu:avx2")
    assert (code, err) == (0, "")
    assert "tile.launch" in out


def test_verify_each_numeric_names_the_pass_that_is_wrong(
    tw: Call, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilewright.passes.fold import Fold

    def wrong(self: Fold, module: object, ctx: object) -> None:
        for op in module.walk():  # type: ignore[attr-defined]
            if op.name == "graph.map" and op.fn.data == "add":
                op.properties["fn"] = type(op.fn)("mul")

    monkeypatch.setattr(Fold, "run", wrong)
    assert tw("opt", small, "-p", "fold", "--verify-each")[0] == 0
    code, out, err = tw("opt", small, "-p", "canonicalize,fold,fuse", "--verify-each=numeric")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"TW024 results differ: after fold: y is off by [0-9.e+-]+, [0-9.e+-]+ is rounding "
        r"\(sizes \{'n': 1\}, seed 0\)\n"
        r"  next: tilewright opt FILE -p 'fold' --verify-each=numeric --remarks, on the IR before this pass\n",
        err,
    ), err


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            ("graph.map(args=[%a])", "graph.mab(args=[%a])"),
            "TW021 text does not parse: there is no op graph.mab, did you mean graph.map?  (at broken.mlir:6:10)\n"
            "  next: look at line 6, column 10 of broken.mlir\n",
        ),
        (
            ("graph.map(args=[%b, %b])", "graph.map(%b, %b)"),
            "TW021 text does not parse: graph.map is written graph.map(args=[%v, ...]); got 2 operands without a name  "
            "(at broken.mlir:7:19)\n  next: look at line 7, column 19 of broken.mlir\n",
        ),
        (
            ('["n", 4], f32> loc("net.py:5")', '["n", 5], f32> loc("net.py:5")'),
            "TW020 malformed IR: graph.map: operands imply (f32[n, 4]), declared (f32[n, 5])  (at broken.mlir:7:5)\n"
            "  next: correct the text there; tilewright ops graph.map says what it takes\n",
        ),
        (
            ('fn = "exp"', 'fn = "expp"'),
            "TW020 malformed IR: graph.map: no elementwise function is called 'expp'; did you mean 'exp'?  "
            "(at broken.mlir:6:5)\n  next: correct the text there; tilewright ops graph.map says what it takes\n",
        ),
        (
            ("  }\n}\n", "  }\n"),
            "TW021 text does not parse: the text ends too early: 1 '}' missing  (at broken.mlir:10:1)\n"
            "  next: look at line 10, column 1 of broken.mlir\n",
        ),
        (
            ("  }\n}\n", "  }\n}\n,"),
            "TW021 text does not parse: no operation begins here  (at broken.mlir:11:1)\n"
            "  next: look at line 11, column 1 of broken.mlir\n",
        ),
        (
            (SMALL, "\n// nothing but this\n"),
            "TW021 text does not parse: there is no IR: the text is empty  (at broken.mlir)\n"
            "  next: give text as print_module() or compiled.ir() writes it\n",
        ),
    ],
)
def test_text_that_is_wrong_is_pointed_at(tw: Call, edit: tuple[str, str], message: str) -> None:
    Path("broken.mlir").write_text(SMALL.replace(*edit))
    assert tw("opt", "broken.mlir") == (1, "", message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["nofile.mlir"],
            "TW008 wrong option: nofile.mlir cannot be read: No such file or directory\n"
            "  next: give the path of a file with IR text, or - for stdin\n",
        ),
        (
            ["small.mlir", "-p", "canonicalise"],
            "TW022 bad pass or pass option: no pass is called 'canonicalise'\n  next: did you mean 'canonicalize'?\n",
        ),
        (
            ["small.mlir", "-p", "fuse{max-op=2}"],
            "TW022 bad pass or pass option: fuse has no option 'max-op'\n"
            "  next: fuse takes: epilogues, prologues, pairs, max-ops\n",
        ),
        (
            ["small.mlir", "-p", "fuse{max-ops=two}"],
            "TW022 bad pass or pass option: fuse: max-ops=two is not an int\n  next: write max-ops=<int>\n",
        ),
        (
            ["small.mlir", "-p", "fold,fuse{max-ops=8"],
            "TW021 text does not parse: pipeline: '}' is missing at column 20, after 'fold,fuse{max-ops=8'\n"
            "  next: write fold,fuse{max-ops=8}\n",
        ),
        (
            ["small.mlir", "--print-after=fuse", "-p", "fold"],
            "TW022 bad pass or pass option: --print-after=fuse: "
            "the pipeline has fold\n  next: write --print-after=all\n",
        ),
        (
            ["small.mlir", "--verify-each=bits"],
            "TW008 wrong option: --verify-each=bits is not one of ir, numeric\n  next: write --verify-each=numeric\n",
        ),
        (
            ["small.mlir", "-o", "no/out.mlir"],
            "TW008 wrong option: -o no/out.mlir: there is no folder no\n  next: mkdir -p no\n",
        ),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tw: Call, small: str, line: list[str], message: str) -> None:
    assert tw("opt", *line) == (1, "", message)
