"""The report's section on attention: its figures are the kernels', at the report's sizes, beside the least."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright
from tests.compiler.counting import check_counts
from tests.compiler.models import compile_mlp, mlp
from tilewright.compiler.instrumented import CountingTwin
from tilewright.passes.attention_tiling import AttentionTiling


class Attention(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        both = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return torch.nn.functional.scaled_dot_product_attention(both, k, v, is_causal=True, enable_gqa=True)


@pytest.fixture(scope="module")
def model() -> Any:
    n = tilewright.Dim("n", 1, 300)
    q, k = torch.randn(1, 4, 9, 16), torch.randn(1, 2, 9, 16)
    return tilewright.compile(Attention().eval(), (q, k, k), dims={name: {2: n} for name in "qkv"})


@pytest.mark.parametrize("n", [1, 7, 66, 300])
def test_what_attention_is_said_to_name_is_what_its_kernels_count(model: Any, n: int) -> None:
    report = model.report.at(n=n)
    (row,) = report.attentions
    kernels = [r for r in report.rows if "attention" in r.kernel]
    assert row.times == 2 == sum(r.launches for r in kernels)
    assert row.tiling.named * row.times == sum(r.read + r.write for r in kernels)
    if n == 300:
        # kernels count whole tiles as work, tilings what is computed: they come together where tiles are nearly full
        assert row.seconds * row.times == pytest.approx(sum(r.predicted for r in kernels), rel=0.5)
    assert all(ratio >= 0.999 for ratio in row.ratios.values())


def test_the_screen_the_data_and_the_page_have_it(model: Any, tmp_path: Path) -> None:
    report = model.report.at(n=66)
    block = report.attentions[0].tiling.block_q
    told = f"attention x2: 1 x 4 heads on 2, 66 by 66, 16 features, mask causal: query-outer {block} by 64"
    assert told in " ".join(str(report).split())
    (data,) = json.loads(json.dumps(report.to_dict()))["attention"]
    assert data["schedule"] == {"order": "query-outer", "block_q": block, "block_k": 64, "heads": 2}
    assert data["choice"]["times"] == 2
    assert data["sizes"]["keys"] == 66
    details = report.attentions[0].details
    assert max(map(len, details.splitlines()[1:])) <= 118
    assert details.count("key-outer") >= 2
    assert details.count("\n*  query-outer") == 1
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    svg = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    lines = xml.etree.ElementTree.fromstring(svg).findall("polyline")
    assert len(lines) == 4


def test_a_program_without_attention_has_no_section() -> None:
    # without a cache: what it holds may be named in the report, and may have any name
    program = compile_mlp(mlp(3), cache=False)
    assert program.report.attentions == []
    assert "attention" not in str(program.report)


@pytest.mark.slow
def test_pairs_made_before_are_counted_and_told() -> None:
    """On a machine without a matrix unit there are none, and the figures agree all the same."""
    n = tilewright.Dim("n", 1, 700)
    q, k = torch.randn(1, 4, 9, 32).bfloat16(), torch.randn(1, 2, 9, 32).bfloat16()
    program = tilewright.compile(
        Attention().eval(), (q, k, k), dims={name: {2: n} for name in "qkv"}, precision="bf16", cache=False
    )
    twin = CountingTwin(program)
    for size in (1, 40, 300, 700):
        inputs = {name: torch.randn(1, heads, size, 32).bfloat16() for name, heads in (("q", 4), ("k", 2), ("v", 2))}
        sums = check_counts(program, twin.run(**inputs), (), inputs)
        (row,) = program.report.at(n=size).attentions
        assert row.tiling.named * row.times == sum(counts.read + counts.write for counts in sums.values())
        assert ("pairs made once" in row.line) == row.tiling.paired
        assert row.tiling.paired == any("paired" in name for name in sums)


class Step(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize(("order", "queries"), [("split-kv", 1), pytest.param("key-outer", 70, marks=pytest.mark.slow)])
def test_keys_in_parts_are_two_kernels_that_count_what_is_told_and_have_the_same_bits(order: str, queries: int) -> None:
    def given(keys: int) -> dict[str, torch.Tensor]:
        shapes = (("q", 4, queries), ("k", 1, keys), ("v", 1, keys))
        return {name: torch.randn(1, heads, n, 16) for name, heads, n in shapes}

    n = tilewright.Dim("n", 1, 1 << 14)

    def compiled(order: str) -> Any:
        passes = tilewright.pipeline().replace("attention-tiling", AttentionTiling(order=order))
        return tilewright.compile(
            Step().eval(), kwargs=given(9), dims={name: {2: n} for name in "kv"}, passes=passes, cache=False
        )

    split, whole = compiled(order), compiled("query-outer")
    twin = CountingTwin(split)
    for keys in (1, 1024, 2500):
        inputs = given(keys)
        assert torch.equal(split(**inputs), whole(**inputs))
        sums = check_counts(split, twin.run(**inputs), (), inputs)
        (row,) = split.report.at(n=keys).attentions
        assert len(sums) == 2
        assert row.tiling.named == sum(counts.read + counts.write for counts in sums.values())


class Packed(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[0])
        seen = (ids[:, None] == ids[None, :]) & (places[None, :] <= places[:, None])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen)


def packed_row(lengths: list[int]) -> dict[str, torch.Tensor]:
    n = sum(lengths)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return {name: torch.randn(1, 2, n, 16) for name in "qkv"} | {"ids": ids}


def compiled_for_packed_rows() -> Any:
    n = tilewright.Dim("n", 17, 2048)
    dims = {name: {2: n} for name in "qkv"} | {"ids": {0: n}}
    return tilewright.compile(Packed().eval(), kwargs=packed_row([9, 12]), dims=dims, cache=False)


@pytest.mark.slow
def test_packed_sequences_walk_their_own_keys_and_the_report_says_at_most() -> None:
    program = compiled_for_packed_rows()
    twin = CountingTwin(program)
    for lengths in ([64, 130, 1, 200], [300, 5]):
        inputs = packed_row(lengths)
        torch.testing.assert_close(program(**inputs), Packed()(**inputs), rtol=1e-4, atol=1e-5)
        sums = check_counts(program, twin.run(**inputs), (), inputs)
        report = program.report.at(n=sum(lengths))
        (row,) = report.attentions
        assert "packed sequences (at most)" in row.title
        (walked,) = (counts for name, counts in sums.items() if name.startswith("attention_q"))
        (said,) = (r for r in report.rows if r.kernel.startswith("attention_q"))
        assert walked.read <= said.read
        if len(lengths) == 4:
            assert walked.read < row.tiling.named, "keys of other sequences are left out"


@pytest.mark.slow
def test_an_artifact_of_packed_sequences_is_proved_and_built_again(tmp_path: Path) -> None:
    program = compiled_for_packed_rows()
    program.save(tmp_path / "packed.tw")
    again = tilewright.load(tmp_path / "packed.tw", native=False)
    inputs = packed_row([40, 90, 3])
    assert torch.equal(again(**inputs), program(**inputs))
