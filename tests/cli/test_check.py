"""check: agreement is shown, and a planted fault is found where it was planted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import DIMS
from tests.cli.test_models import bert
from tilewright.cli.check import Case, draw_sizes
from tilewright.compiler.checking import distance, tolerance
from tilewright.ir.dims import Dim
from tilewright.passes.fold import Fold

Call = Callable[..., tuple[int, str, str]]


def rows(out: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[1:-1]]


def test_a_right_model_agrees_at_every_tuple_of_sizes(tw: Call) -> None:
    code, out, err = tw("check", "sample_models:make", "-n", "4", "--seed", "9", *DIMS)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "4 of 4 agree"
    found = rows(out)
    assert [row[0] for row in found[:2]] == ["batch=1, tokens=1", "batch=8, tokens=64"]
    assert len({row[0] for row in found}) == 4
    assert all(float(row[1]) <= float(row[2]) and row[3] == "ok" for row in found)
    assert out == tw("check", "sample_models:make", "-n", "4", "--seed", "9", *DIMS)[1]


def test_a_model_without_dims_is_checked_once(tw: Call) -> None:
    code, out, _ = tw("check", "sample_models:counter")
    assert code == 0
    assert out.splitlines()[1].startswith("the only sizes")
    assert out.splitlines()[-1] == "1 of 1 agree"


def test_a_program_file_is_compared_with_itself(tw: Call) -> None:
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(
        torch.nn.Linear(5, 3), (torch.randn(2, 5),), dynamic_shapes=({0: batch},), strict=False
    )
    torch.export.save(program, "linear.pt2")
    code, out, err = tw("check", "linear.pt2", "-n", "2")
    assert code == 0, err
    assert out.splitlines()[-1] == "2 of 2 agree"


def test_a_model_directory_is_checked_with_masked_tokens(tw: Call, tmp_path: Path) -> None:
    bert(tmp_path)
    code, out, err = tw("check", str(tmp_path), "-n", "2", "--cache", "off")
    assert code == 0, err
    assert err == "inputs from config.json: input_ids below 23 and attention_mask; batch: 1..64; tokens: 1..40\n"
    assert out.splitlines()[-1] == "2 of 2 agree"


def test_a_wrong_pass_is_found_and_named(tw: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Fold, module: object, ctx: object) -> None:
        for op in module.walk():  # type: ignore[attr-defined]
            if op.name == "graph.map" and op.fn.data == "mul" and ctx.apply([op], "adds instead"):  # type: ignore[attr-defined]
                op.properties["fn"] = type(op.fn)("add")

    monkeypatch.setattr(Fold, "run", wrong)
    code, out, err = tw("check", "sample_models:make", "-n", "2", "--cache", "off", *DIMS)
    assert code == 1
    assert "DIFFERS" in out
    assert re.search(
        r"^TW024 results differ: at batch=1, tokens=1, output y differs by [0-9.]+, rounding explains [0-9.e-]+; "
        r"first in pass fold: output 0 after graph\.map: adds instead; off by [0-9.]+, rounding explains [0-9.e-]+  "
        r"\(at sample_models\.py:20\)\n  next: report it with the model$",
        err,
        re.MULTILINE,
    ), err


def test_sizes_start_with_the_least_and_repeat_none() -> None:
    rng = np.random.default_rng(0)
    dims = [Dim("a", 0, 3), Dim("b", 2), Dim("hits", 0, 9, "runtime")]
    found = list(draw_sizes(dims, 9, rng))
    assert found[:2] == [{"a": 0, "b": 2}, {"a": 3, "b": 128}]
    far = [Dim("a", 1, 64), Dim("b", 2, 10**6)]
    assert list(draw_sizes(far, 3, rng)) == [{"a": 1, "b": 2}, {"a": 64, "b": 2}, {"a": 1, "b": 4096}]
    assert len(found) == len({tuple(f.values()) for f in found}) > 4
    assert all(0 <= f["a"] <= 3 and 2 <= f["b"] <= 128 for f in found)
    assert list(draw_sizes([], 5, rng)) == [{}]
    assert len(list(draw_sizes([Dim("a", 1, 2)], 9, rng))) == 2


def test_distance_counts_what_is_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    a = torch.tensor([1.0, nan, inf, -inf])
    assert distance(a, a.clone()) == 0.0
    assert distance(a, torch.tensor([1.5, nan, inf, -inf])) == 0.5
    for wrong in ([nan, nan, inf, -inf], [1.0, 0.0, inf, -inf], [1.0, nan, -inf, -inf], [1.0, nan, 3.0, -inf]):
        assert distance(a, torch.tensor(wrong)) == inf, wrong
    assert distance(a, a[:2]) == inf
    assert distance(torch.empty(0), torch.empty(0)) == 0.0


def test_the_worst_output_is_kept_and_a_wrong_one_stays() -> None:
    one = torch.ones(3)
    case = Case({}, [], [])
    bound = tolerance(one, "model")
    case.hold("fine", one, one, "model")
    assert (case.right, case.output) == (True, "fine")
    case.hold("near", one, one + bound / 2, "model")
    assert (case.right, case.output) == (True, "near")
    case.hold("wrong", one, one + bound * 3, "model")
    case.hold("fine again", one, one, "model")
    assert (case.right, case.output) == (False, "wrong")
    whole = torch.tensor([1, 2])
    exact = Case({}, [], [])
    exact.hold("integers", whole, whole + 1, "model")
    assert not exact.right


def test_bounds_follow_what_products_round_to() -> None:
    one = torch.ones(3)
    assert tolerance(one, "model") == 512 * 2.0**-23
    assert tolerance(one, "bf16") == tolerance(one.bfloat16(), "model") == 16 * 2.0**-7
    assert tolerance(2 * one.half(), "model") == 2 * 16 * 2.0**-10
    assert tolerance(torch.tensor([1, 2]), "bf16") == 0.0
