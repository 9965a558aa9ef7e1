"""Why a cache had nothing: the nearest entry of the same thing, and on a line what differs from it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.runtime.test_cache import entry_folder, writing
from tilewright.runtime.cache import Cache
from tilewright.runtime.cache_entry import FACTORS
from tilewright.runtime.cache_miss import share_alike


def test_a_miss_names_the_nearest_entry_and_the_differing_factors(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    wanted = {"kind": "program", "machine": {"name": "avx2", "features": ["fma", "avx2"]}, "pipeline": "a,b", "seed": 1}
    miss = cache.explain_miss(wanted)
    assert str(miss) == "no program like it is cached"
    near = {**wanted, "machine": {"name": "avx512", "features": ["fma", "avx2", "avx512f"]}, "toolchain": "18"}
    far = {**near, "pipeline": "c", "seed": 2, "dims": []}
    cache.get_or_build({"kind": "other", **{k: v for k, v in wanted.items() if k != "kind"}}, writing(b"x")).close()
    for built in (far, near):
        cache.get_or_build(built, writing(b"x")).close()
    miss = cache.explain_miss(wanted)
    assert miss is not None
    assert miss.key is not None
    assert str(miss) == (
        f"differs from {miss.key[:12]}, used just now, in "
        'machine.name: "avx512" -> "avx2"; toolchain: "18" -> (absent); machine.features.2: "avx512f" -> (absent)'
    )
    assert cache.explain_miss(near) is None
    # what is of another thing is not compared with, and every difference from the rest is there
    miss = cache.explain_miss(wanted, lambda other: other["pipeline"] == "c")
    assert miss is not None
    assert {d.path for d in miss.differences} >= {"dims", "seed", "pipeline"}
    assert str(cache.explain_miss(wanted, lambda other: other["seed"] == 7)) == "no program like it is cached"


def test_the_share_alike_counts_leaves_of_both() -> None:
    one = {"a": {"x": 1, "y": [2, 3]}, "b": {}}
    assert share_alike(one, one) == 1
    assert share_alike(one, {"a": {"x": 1, "y": [2, 4]}, "b": {}}) == 3 / 4
    assert share_alike(one, {"a": {"x": 1, "y": [2, 3, 4]}, "b": {}}) == 4 / 5
    assert share_alike(one, None) == 0
    assert share_alike({}, {}) == 1


def test_a_miss_with_many_differences_is_cut(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.get_or_build({"kind": "k", **{f"f{i:02}": i for i in range(20)}}, writing(b"x")).close()
    folder = entry_folder(cache)
    os.utime(folder / FACTORS, (time.time() - 7300,) * 2)
    miss = cache.explain_miss({"kind": "k", "text": "y" * 100})
    assert miss is not None
    assert len(miss.differences) == 21
    assert str(miss).startswith(f"differs from {folder.name[:12]}, used 2 hours ago, in f00: 0 -> (absent); ")
    assert len(str(miss)) < 200
    named = str(miss).count("(absent)")
    assert 1 < named < 10
    assert str(miss).endswith(f"; and {21 - named} more")
    assert str(miss.differences[-1]) == f'text: (absent) -> "{"y" * 56}...'
    # one that is long itself is cut as well
    miss = cache.explain_miss({"kind": "k", **{f"f{i:02}": i for i in range(20)}, "p" * 200: 1})
    assert len(str(miss)) < 200
