"""A capture is held against its model while its kernels compile, and nothing comes of a graph that is another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.frontend.test_dims import Apply, floats
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.errors import SpecialisationError


def kinds(cache: Path) -> set[str]:
    return set(tw.runtime.cache.Cache(cache).stats()["kinds"])


def test_a_graph_that_is_not_the_models_is_refused_and_not_kept(rng: np.random.Generator, tmp_path: Path) -> None:
    # tracers give sizes that are no integers
    model = Apply(lambda x: x * 2 if isinstance(x.shape[0], int) else x * 3).eval()
    with pytest.raises(SpecialisationError, match="isinstance"):
        tw.compile(model, (floats(rng, 5),), dims={"x": {0: tw.Dim("t", 1, 9)}}, cache=tmp_path)
    assert kinds(tmp_path) == set()


def test_sizes_that_the_proof_refuses_are_refused_by_the_program(rng: np.random.Generator, tmp_path: Path) -> None:
    model = Apply(lambda x: (y := x.T, y.contiguous(), x * 2 if y.is_contiguous() else x * 3)[2]).eval()
    for _ in range(2):
        program = tw.compile(model, (floats(rng, 5, 6),), dims={"x": {0: tw.Dim("t", 0, 12)}}, cache=tmp_path)
        for t in (2, 5, 12):
            x = floats(rng, t, 6)
            torch.testing.assert_close(program(x), model(x))
        with pytest.raises(tw.TilewrightError) as refused:
            program(floats(rng, 1, 6))
        assert refused.value.code == "TW005"


def test_a_stage_inside_another_is_no_part_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, now = Stopwatch(), [100.0]
    monkeypatch.setattr("tilewright.compiler.stopwatch.time.perf_counter", lambda: now[0])
    with watch.stage("outer"):
        now[0] += 1
        with watch.stage("inner"):
            now[0] += 2
        now[0] += 4
        with watch.stage("inner"):
            now[0] += 8
    assert watch.seconds == {"inner": 10.0, "outer": 5.0}
