from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright
from tests.compiler.models import bert, compile_bert, compile_mlp, mlp, token_inputs
from tilewright.compiler.report_screen import WIDTH, duration, number, reasons
from tilewright.errors import OptionError


@pytest.fixture(scope="module")
def model() -> Any:
    return compile_bert(bert(0))


def test_one_screen_with_every_kernel_and_their_sum(model: Any) -> None:
    report = model.report.at(batch=2, tokens=7)
    lines = str(report).splitlines()
    assert len(lines) <= 45
    assert all(len(line) <= WIDTH for line in lines)
    assert "At batch=2, tokens=7, all launches together, reads and writes in bytes:" in str(report)
    for row in report.rows:
        (line,) = [line for line in lines if line.split()[:2] == [row.kernel, str(row.launches)]]
        assert line.split()[2] == number(row.flops)
    (total,) = [line.split() for line in lines if line.startswith("in all")]
    assert total[2:4] == [str(len(model.code.program.main.steps)), number(sum(row.flops for row in report.rows))]


def test_the_columns_are_explained_and_small_memory_is_not_zero(model: Any) -> None:
    lines = str(model.report.at(batch=1, tokens=1)).splitlines()
    assert (
        "bound: operands and results, each byte once; ratio: moved / bound; "
        "predicted: by the machine's busiest unit or level"
    ) in lines
    assert re.search(r"memory: [1-9][0-9.]* KiB$", lines[1])


def test_without_sizes_it_shows_the_largest_and_gives_formulas_as_data(model: Any) -> None:
    assert "At batch=6, tokens=40, the largest (others: report.at(batch=..., tokens=...)), all" in str(model.report)
    data = json.loads(json.dumps(model.report.to_dict()))
    assert data["at"] is None
    assert any("batch" in str(kernel["read"]) for kernel in data["kernels"])


def test_sentences_are_shown_whole_however_long(model: Any) -> None:
    texts = {kind: " ".join(f"{kind}{n}-of-many" for n in range(40)) for kind in ("cache", "checked", "note")}
    facts = dataclasses.replace(
        model.report.facts, cache=texts["cache"], checked=texts["checked"], notes=(texts["note"],)
    )
    facts = dataclasses.replace(facts, seconds={f"a-stage-{n}": 1.0 for n in range(40)})
    screen = str(dataclasses.replace(model.report, facts=facts))
    assert "…" not in screen
    assert "a-stage-39 1.00" in screen
    assert max(map(len, screen.splitlines())) <= WIDTH
    joined = " ".join(screen.split())
    assert all(f"{kind}: {text}" in joined for kind, text in texts.items())


def test_one_launch_is_not_launches(model: Any) -> None:
    single = tilewright.compile(torch.nn.ReLU(), (torch.randn(3, 4),)).report
    assert str(single).splitlines()[1].startswith("1 launch of 1 kernel; ")
    launches, kernels = sum(row.launches for row in model.report.rows), len(model.report.rows)
    assert str(model.report).splitlines()[1].startswith(f"{launches} launches of {kernels} kernels; ")


def test_a_page_is_written_to_a_file_that_is_named(model: Any, tmp_path: Path) -> None:
    for place, said in (
        (tmp_path, f"the report cannot be written to {tmp_path}: it is a folder\n"
         f"  next: name a file in it: {tmp_path}/report.html"),
        (tmp_path / "no" / "a.html", f"the report cannot be written to {tmp_path}/no/a.html: there is no folder "
         f"{tmp_path}/no\n  next: mkdir -p {tmp_path}/no"),
        (None, "the report's path is None, which names no file\n  next: name a file: \"report.html\""),
        ("", "the report's path is '', which names no file\n  next: name a file: \"report.html\""),
    ):  # fmt: skip
        with pytest.raises(OptionError) as raised:
            model.report.save_html(place)
        assert str(raised.value) == f"TW008 wrong option: {said}"


def test_a_program_without_dims_gives_numbers_as_data() -> None:
    report = tilewright.compile(mlp(3), (torch.randn(3, 24),)).report
    data = report.to_dict()
    assert data["at"] == {}
    assert data["kernels"] == report.at().to_dict()["kernels"]
    for kernel in data["kernels"]:
        assert all(isinstance(kernel[name], int) for name in ("flops", "read", "write", "bound"))
        assert all(isinstance(kernel[name], float) for name in ("ratio", "predicted"))


def test_a_profiled_call_decides_the_sizes_and_adds_its_times() -> None:
    program = compile_mlp(mlp(3))
    assert "measured" not in str(program.report)
    report = program.profile(torch.randn(5, 24))
    assert "At batch=5, the profiled call" in str(report)
    assert "measured" in str(report)
    assert sum(row.measured for row in report.rows) <= report.profile.seconds
    assert "measured" in str(report.at(batch=2))


def test_formulas_and_numbers_count_all_launches(model: Any) -> None:
    once = model.report.counts
    for row in model.report.rows:
        assert row.flops == once[row.kernel].flops * row.launches
    for row in model.report.at(
        **dict(zip(("batch", "tokens"), token_inputs(3, 11)["input_ids"].shape, strict=True))
    ).rows:
        assert row.flops == once[row.kernel].at({"batch": 3, "tokens": 11}).flops * row.launches


def test_equal_reasons_share_a_line_and_the_commonest_comes_first() -> None:
    refused = [
        {"op": "graph.map", "reason": "not joined with graph.cast: others read it"},
        *[{"op": "graph.norm", "reason": "not joined with graph.map: it is stored"}] * 2,
        {"op": "graph.matmul", "reason": "not joined with graph.map: it is stored"},
        {"op": "graph.sort", "reason": "has no such form"},
    ]
    assert reasons(refused) == [
        "it is stored: norm not joined with map (2 times), matmul not joined with map",
        "others read it: map not joined with cast",
        "has no such form: sort",
    ]
    many = [{"op": f"graph.op{n}", "reason": f"reason {n}"} for n in range(9)]
    assert reasons(many)[-1] == "and for 3 more reasons: .to_dict()['refused']"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1.00k"), (99_960, "100k"), (2.5e10, "25.0G"), (7e12, "7.00T")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.00 ns"), (3.2e-9, "3.20 ns"), (2e-6, "2.00 us"), (0.0123, "12.3 ms"), (1.5, "1.50 s")]
)
def test_times_have_three_digits(value: float, text: str) -> None:
    assert duration(value) == text
