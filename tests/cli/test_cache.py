"""cache ls, stats, why, verify and clear, on a folder of its own."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tilewright.runtime.cache import Cache

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Two entries of code that differ in one factor, and one of weights; each holds 1000 bytes."""
    cache = Cache(tmp_path)
    for kind, name, age in (("code", "avx2", 0), ("code", "avx512", 7200), ("weights", "avx2", 172800)):
        factors = {
            "kind": kind,
            "backend": "cpu",
            "machine": {"name": name, "cores": 2},
            "dims": [["b", 1, 8, "declared"]],
        }
        with cache.get_or_build(factors, lambda at: (at / "data").write_bytes(bytes(1000)) and None) as entry:
            then = time.time() - age
            os.utime(entry.folder / "factors.json", (then, then))
    return str(tmp_path)


def keys(folder: str) -> dict[tuple[str, str], str]:
    return {(i.kind, i.factors["machine"]["name"]): i.key for i in Cache(folder).entries()}


def test_ls_shows_the_last_used_first(tw: Call, folder: str) -> None:
    code, out, _ = tw("cache", "ls", "--cache", folder)
    assert code == 0
    rows = [re.split(r"\s{2,}", line) for line in out.splitlines()[1:]]
    known = keys(folder)
    assert [row[0] for row in rows] == [
        known[k][:12] for k in (("code", "avx2"), ("code", "avx512"), ("weights", "avx2"))
    ]
    assert [row[3] for row in rows] == ["just now", "2 h ago", "2 d ago"]
    assert rows[0][4] == "cpu:avx2, b: 1..8"


def test_ls_names_the_models(tw: Call, tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert tw("compile", "sample_models:make", "-o", "again.tilewright", "--cache", folder)[0] == 0
    rows = [re.split(r"\s{2,}", line) for line in tw("cache", "ls", "--cache", folder)[1].splitlines()[1:]]
    assert {(row[1], row[4]) for row in rows} == {("capture", "Net"), ("code", "Net"), ("weights", "Net")}


def test_a_folder_that_cannot_be_read_is_no_empty_cache(tw: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for verb in ("ls", "stats", "verify", "clear"):
        assert tw("cache", verb, "--cache", str(tmp_path / "file")) == (
            1,
            "",
            f"TW041 cache is not usable: the cache in {tmp_path / 'file'} cannot be read: Not a directory\n"
            "  next: export TILEWRIGHT_CACHE=/a/folder/you/can/write, or compile with cache=False (--cache off)\n",
        )


def test_a_folder_that_is_no_cache_is_no_empty_cache(tw: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none, other = tmp_path / "none", tmp_path / "other"
    other.mkdir()
    for line in (["ls"], ["stats"], ["why", "abc"], ["verify"], ["clear"]):
        # an empty folder may become one
        assert tw("cache", *line, "--cache", str(other))[0] == (1 if line[0] == "why" else 0)
    (other / "notes.txt").write_text("kept")
    for line in (["ls"], ["stats"], ["why", "abc"], ["verify"], ["clear"]):
        for folder, what in ((none, "is not there"), (other, "holds no cache")):
            assert tw("cache", *line, "--cache", str(folder)) == (
                1,
                "",
                f"TW008 wrong option: --cache {folder}: the folder {what}\n"
                "  next: give a cache's folder; without --cache it is the user's\n",
            )
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(none))
    assert tw("cache", "verify") == (0, "0 entries, 0 damaged\n", "")


def test_stats(tw: Call, folder: str) -> None:
    code, out, _ = tw("cache", "stats", "--cache", folder)
    assert code == 0
    assert re.match(rf"{re.escape(folder)}: 3 entries, [0-9.]+ KiB of at most 20\.0 GiB\n", out)
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [["code", "2"], ["weights", "1"]]


def test_why_names_the_factor_that_differs(tw: Call, folder: str) -> None:
    known = keys(folder)
    key, other = known["code", "avx2"], known["code", "avx512"]
    code, out, _ = tw("cache", "why", key[:10], "--cache", folder)
    assert code == 0
    assert out.startswith(f"code {key}, used just now\n")
    assert '"cores": 2' in out
    assert out.endswith(
        f'It was built anew because the nearest code ({other[:12]}) differs in:\n  machine.name: "avx512" -> "avx2"\n'
    )
    assert tw("cache", "why", known["weights", "avx2"], "--cache", folder)[1].endswith(
        "It is the only weights entry.\n"
    )


def test_a_key_that_is_none_or_several(tw: Call, folder: str) -> None:
    assert tw("cache", "why", "xyz", "--cache", folder) == (
        1,
        "",
        "TW008 wrong option: no entry's key starts with 'xyz'\n  next: tilewright cache ls lists them\n",
    )
    code, _, err = tw("cache", "why", "", "--cache", folder)
    assert code == 1
    assert err.startswith("TW008 wrong option: 3 entries have keys that start with ''\n  next: give more digits: ")


def test_verify_removes_what_is_damaged_and_says_so(tw: Call, folder: str) -> None:
    key = keys(folder)["code", "avx2"]
    (next(Path(folder).rglob(key)) / "data").write_bytes(bytes(999) + b"x")
    assert tw("cache", "verify", "--cache", folder) == (
        0,
        f"removed {key}: data was altered\n3 entries, 1 damaged\n",
        "",
    )
    assert tw("cache", "verify", "--cache", folder)[1] == "2 entries, 0 damaged\n"


def test_clear_leaves_what_is_in_use(tw: Call, folder: str) -> None:
    factors = next(i.factors for i in Cache(folder).entries() if i.kind == "weights")
    held = Cache(folder).get(factors)
    assert held is not None
    with held:
        assert tw("cache", "clear", "--cache", folder)[1] == "removed 2 entries, kept 1 that are in use\n"
    assert tw("cache", "clear", "--cache", folder)[1] == "removed 1 entries\n"
    assert tw("cache", "ls", "--cache", folder)[1].splitlines() == ["key  kind  size  used  model  what"]
