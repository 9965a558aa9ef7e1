"""A stranger's file, opened with native=False: it runs inside its own memory or is refused with a code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.ir.tile.launched import mutated
from tests.passes.lower_tile_to_loops.kernels import on_tiles
from tilewright.errors import DimMismatchError, TilewrightError
from tilewright.ir.backend import machine_of
from tilewright.ir.dtypes import F32
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.runtime.artifact_file import Container, NewSection, write_container

ROOT = Path(__file__).resolve().parents[2]
Change = Callable[[str], str]


class Picks(torch.nn.Module):
    """Rows of a table picked by indices, a product with a norm behind it, and a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(19, 8)
        self.up = torch.nn.Linear(8, 16)
        self.norm = torch.nn.LayerNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.nn.functional.gelu(self.up(self.table(ids))))[:, 1:5]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Picks().eval()
    compiled = tw.compile(model, (torch.arange(3),), dims={"ids": (tw.Dim("t", 0, 40),)})
    path = tmp_path_factory.mktemp("strangers") / "picks.tw"
    compiled.save(path)
    return path


def forged(path: Path, into: Path, change: Change, section: str = "ir/tile") -> Path:
    """An artifact whose hashes are right and whose IR is not what compile() wrote."""
    container = Container(path)
    parts = {name: container.read(name) for name in container.sections}
    text = parts[section].decode()
    assert change(text) != text
    parts[section] = change(text).encode()
    write_container(into, container.facts, [NewSection.of(name, data) for name, data in parts.items()])
    return into


def sub(pattern: str, by: str, count: int = 0) -> Change:
    return lambda text: re.sub(pattern, by, text, count=count)


def swap_callee(text: str) -> str:
    """The first launch runs the kernel of another one."""
    names = list(dict.fromkeys(re.findall(r'callees = (\["\w+"(?:, "\w+")*\])', text)))
    return text.replace(names[0], names[-1], 1)


FORGED: dict[str, Change] = {
    "stride of rows": sub(r"strides = \[16, 1\]", "strides = [80000000, 1]"),
    "stride of columns": sub(r"strides = \[16, 1\]", "strides = [16, 900000000]"),
    "negative stride": sub(r"strides = \[16, 1\]", "strides = [-16, 1]"),
    "offset": sub(r"strides = \[16, 1\]", "offset = [16000000], strides = [16, 1]"),
    "one too many": sub(r'dims = \["t"\], guard', 'dims = ["t + 1"], guard'),
    "many too many": sub(r'dims = \["t"\], guard', 'dims = ["1000000*t"], guard'),
    "negative dims": sub(r'dims = \["t"\], guard', 'dims = ["-1000000*t"], guard'),
    "division by a size": sub(r'dims = \["t"\], guard', 'dims = ["floordiv(40, t)"], guard'),
    "another kernel": swap_callee,
    "outputs": sub("outputs = 1", "outputs = 0"),
    "table": sub(r"tensor<\[19, 8\]", "tensor<[19000000, 8]"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_artifact_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(TilewrightError, match=r"TW042 artifact is damaged"):
        tw.load(forged(saved, tmp_path / "forged.tw", FORGED[name]), native=False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"main":{"slots":[', '"main":{"slots":[["0"],'),
        ('["slot",0,"0"]', '["slot",0,"99999999"]'),
        ('"dims":["t"]', '"dims":["1000000*t"]'),
    ],
)
def test_the_step_table_of_a_stranger_is_not_read(saved: Path, tmp_path: Path, old: str, new: str) -> None:
    path = forged(saved, tmp_path / "forged.tw", lambda text: text.replace(old, new), "program")
    ids = torch.randint(0, 19, (7,))
    try:
        loaded = tw.load(path, native=False)
    except TilewrightError:
        return
    assert torch.equal(loaded(ids), tw.load(saved)(ids))


class Odd(torch.nn.Module):
    """Decides by a size, so that every call is held to a guard."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] % 2 else x + 1


def test_calls_are_held_to_the_guards_of_the_ir(tmp_path: Path) -> None:
    compiled = tw.compile(Odd().eval(), (torch.ones(5),), dims={"x": (tw.Dim("t", 1, 40),)})
    path, guard = tmp_path / "odd.tw", '#tw.guards<["mod(t, 2) != 0" at "'
    compiled.save(path)
    for level in ("graph", "tile"):
        assert guard in compiled.ir(level)  # type: ignore[arg-type]
    again = tw.load(path, native=False)
    assert torch.equal(again(torch.ones(7)), torch.full((7,), 2.0))
    with pytest.raises(DimMismatchError):
        again(torch.ones(6))
    for section, change in (
        ("ir/tile", sub(r"mod\(t, 2\) != 0", "mod(t, 2) == 0")),
        ("ir/tile", sub(r", tw\.guards = [^>]*>", "")),
        ("program", sub(r'"guards":\[\[.*?\]\]', '"guards":[]')),
    ):
        with pytest.raises(TilewrightError, match="its step table and its IR hold calls to different guards"):
            tw.load(forged(path, tmp_path / "forged.tw", change, section), native=False)


CALLING = """
import signal
import sys
import torch
import tilewright as tw

for path in sys.argv[1:]:
    print("next", flush=True)
    signal.alarm(20)  # ends the process
    try:
        loaded = tw.load(path, native=False)
        for size in (0, 1, 5, 40):
            ids = torch.randint(0, 19, (size,))
            loaded(ids)
            ids[: size // 2] = 2**62
            loaded(ids)
    except tw.TilewrightError:
        pass
"""


def test_changed_numbers_end_in_an_error_or_a_call(saved: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """In a process of its own: what leaves its memory dies by a signal, and what has no code fails."""
    paths = [forged(saved, tmp_path / f"{i}.tw", changed(rng)) for i in range(12)]
    while paths:
        done = subprocess.run(
            [sys.executable, "-c", CALLING, *map(str, paths)], cwd=ROOT, capture_output=True, text=True
        )
        reached = done.stdout.count("next\n")
        # a change may make a loop very long, which harms nobody's memory: the process that ran it is ended
        slow = done.returncode == -signal.SIGALRM
        assert slow or done.returncode == 0, f"{done.stderr}\n{_changes(saved, paths[reached - 1])}"
        paths = paths[reached:]


def changed(rng: np.random.Generator) -> Change:
    seed = int(rng.integers(2**32))
    return lambda text: mutated(text, np.random.default_rng(seed))


def _changes(saved: Path, path: Path) -> list[str]:
    before, after = (Container(p).read("ir/tile").decode().splitlines() for p in (saved, path))
    return [new for old, new in zip(before, after, strict=False) if old != new]


@tw.kernel("x f32[rows, 500] -> y f32[rows, 500]")
def doubled(b: Any, x: Any, y: Any) -> None:
    (row,) = b.grid(["rows"], [8])
    tile = b.load(b.dense(x), [row, 0], [8, 500])
    b.store(b.map("add", tile, tile), b.dense(y), [row, 0])


without_stores = sub(r"\n *tile\.store[^\n]*", "")


def junk(*shape: int) -> None:
    """Leaves memory behind that the next tensors of this shape are made in."""
    del [torch.full(shape, 7.25) for _ in range(50)][:]


@pytest.mark.parametrize("rows", [1, 19, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_kernel_that_stores_nothing_gives_zeros(
    tmp_path: Path, rows: int, threads: int, rng: np.random.Generator
) -> None:
    doubled.compile().save(tmp_path / "whole.tw")
    path = forged(tmp_path / "whole.tw", tmp_path / "empty.tw", without_stores)
    whole = tw.load(tmp_path / "whole.tw", native=False, threads=threads)
    loaded = tw.load(path, native=False, threads=threads)
    x = rng.standard_normal((rows, 500), np.float32)
    np.testing.assert_array_equal(whole(x), 2 * x)
    for _ in range(20):
        junk(rows, 500)
        np.testing.assert_array_equal(loaded(torch.from_numpy(x)), np.zeros_like(x))
        np.testing.assert_array_equal(loaded(x), np.zeros_like(x))


@pytest.mark.parametrize("timed", [False, True], ids=["alone", "on a team"])
def test_slots_hold_nothing_of_the_call_before(saved: Path, tmp_path: Path, timed: bool) -> None:
    silent = tw.load(forged(saved, tmp_path / "silent.tw", without_stores), native=False).executable
    ids = torch.arange(40) % 19
    run = silent.profile if timed else silent
    run(ids)
    (call,) = silent._calls.values()
    (arena,) = silent._arenas._idle if timed else [frame.arena for frame in call.frames]
    assert arena is not None
    assert call.plan.arena > 0
    arena.view(0, call.plan.arena)[:] = b"\x7f" * call.plan.arena
    run(ids)
    assert not any(arena.view(0, call.plan.arena))


def test_scratch_of_a_rebuilt_kernel_is_zeroed() -> None:
    kernel = on_tiles(
        [((40, 70), F32)], [((70, 40), F32)], lambda b, x: [b.transpose(b.scan("sum", [x], 1)[0], [1, 0])]
    )
    machine = machine_of("cpu:avx2")[1]
    plain, cleared = lower_kernel(kernel, machine), lower_kernel(kernel, machine, cleared=True)
    assert not all(s.zeroed for s in plain.scratch)
    assert all(s.zeroed for s in cleared.scratch)
