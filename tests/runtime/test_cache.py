"""The cache: built once however many ask, intact or replaced, in use or removable, explained when it misses."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.errors import CacheError
from tilewright.runtime.cache import ENVIRONMENT, Cache, default_root
from tilewright.runtime.cache_entry import FACTORS, SEAL, hash_file
from tilewright.runtime.canonical import key_of
from tilewright.runtime.pieces import StreamHash


def factors(**more: Any) -> dict[str, Any]:
    return {"kind": "kernel", "text": "a", **more}


def writing(data: bytes) -> Any:
    def build(folder: Path) -> None:
        (folder / "data").write_bytes(data)

    return build


def never(folder: Path) -> None:
    pytest.fail("built again")


def entry_folder(cache: Cache) -> Path:
    (item,) = cache.entries()
    return cache.root / "v1" / item.kind / item.key


def test_built_once_and_found_again(tmp_path: Path) -> None:
    first = Cache(tmp_path)
    assert first.get(factors()) is None
    entry = first.get_or_build(factors(), writing(b"one"))
    assert not entry.hit
    assert entry.read("data") == b"one"
    again = Cache(tmp_path).get_or_build(factors(), never)
    assert again.hit
    assert again.read("data") == b"one"
    other = first.get_or_build(factors(text="b"), writing(b"two"))
    assert other.read("data") == b"two"
    assert first.counts == {"misses": 3}


def test_nothing_is_created_before_the_first_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "sub")
    cache.get(factors())
    assert cache.entries() == []
    assert cache.clear() == (0, 0)
    assert cache.verify() == {}
    assert cache.stats()["entries"] == 0
    assert not (tmp_path / "sub").exists()


def test_keys_depend_on_factors_alone(tmp_path: Path) -> None:
    script = "from tilewright.runtime.canonical import key_of; print(key_of({'b': [1, {'x': 2.5}], 'a': None}))"
    keys = set()
    for home, seed in (("/nowhere", "1"), (str(tmp_path), "2")):
        environment = {"HOME": home, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        keys.add(done.stdout)
    assert len(keys) == 1
    assert len(keys.pop().strip()) == 64


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert default_root() == Path("/home/someone/.cache/tilewright")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_root() == Path("/xdg/tilewright")
    monkeypatch.setenv(ENVIRONMENT, "~/mine")
    assert default_root() == Path("/home/someone/mine")
    assert Cache(tmp_path).root == tmp_path


RACE = """
import sys, time
from pathlib import Path
from tilewright.runtime.cache import Cache
root, log = Path(sys.argv[1]), Path(sys.argv[2])
def build(folder):
    with open(log, "a") as file:
        file.write("built\\n")
    time.sleep(0.3)
    (folder / "data").write_bytes(b"x" * 1000)
entry = Cache(root).get_or_build({"kind": "race", "n": 1}, build)
print(entry.read("data") == b"x" * 1000)
"""


def test_eight_processes_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / "cache"), str(log)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    assert [racer.communicate()[0].strip() for racer in racers] == ["True"] * 8
    assert log.read_text() == "built\n"


def test_threads_of_one_process_build_once(tmp_path: Path) -> None:
    cache, built = Cache(tmp_path), []

    def build(folder: Path) -> None:
        built.append(1)
        time.sleep(0.1)
        (folder / "data").write_bytes(b"x")

    threads = [threading.Thread(target=lambda: cache.get_or_build(factors(), build)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


DYING = """
import os, signal, sys
from pathlib import Path
from tilewright.runtime.cache import Cache
def build(folder):
    (folder / "data").write_bytes(b"half")
    print("building", flush=True)
    signal.pause()
Cache(Path(sys.argv[1])).get_or_build({"kind": "race", "n": 1}, build)
"""


def test_a_builder_that_is_killed_loses_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.get_or_build(factors(), writing(b"kept"))
    builder = subprocess.Popen([sys.executable, "-c", DYING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "building\n"
    found: list[bytes] = []
    waiting = threading.Thread(
        target=lambda: found.append(cache.get_or_build({"kind": "race", "n": 1}, writing(b"whole")).read("data"))
    )
    waiting.start()
    time.sleep(0.2)
    assert not found, "somebody else is building"
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    waiting.join(60)
    assert found == [b"whole"]
    assert cache.get_or_build(factors(), never).read("data") == b"kept"
    assert not any((tmp_path / "v1" / "building").iterdir()), "what the dead builder left is gone"


def test_what_a_dead_builder_left_is_swept_by_others(tmp_path: Path) -> None:
    builder = subprocess.Popen([sys.executable, "-c", DYING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "building\n"
    building = tmp_path / "v1" / "building"
    cache = Cache(tmp_path)
    cache.clear()
    assert any(path.is_dir() for path in building.iterdir()), "a live builder keeps its folder"
    builder.kill()
    builder.wait()
    cache.clear()
    assert not any(building.iterdir())


def test_a_lock_whose_file_was_removed_excludes_nobody(tmp_path: Path) -> None:
    cache, built = Cache(tmp_path), []
    path = tmp_path / "v1" / "building" / f"kernel.{key_of(factors())}.lock"
    path.parent.mkdir(parents=True)
    first = os.open(path, os.O_CREAT)
    fcntl.flock(first, fcntl.LOCK_EX)
    waiting = threading.Thread(target=lambda: cache.get_or_build(factors(), lambda _: built.append(1)))
    waiting.start()
    time.sleep(0.2)
    # The first holder finishes, which removes the file; before the waiter wakes up, another one is building.
    path.unlink()
    second = os.open(path, os.O_CREAT)
    fcntl.flock(second, fcntl.LOCK_EX)
    os.close(first)
    time.sleep(0.2)
    assert not built
    os.close(second)
    waiting.join(60)
    assert built


@pytest.mark.parametrize("replaced", [True, False])
def test_an_entry_removed_or_replaced_while_it_was_waited_for(replaced: bool, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.get_or_build(factors(), writing(b"x")).close()
    folder = entry_folder(cache)
    found: list[Any] = []
    with open(folder / SEAL) as remover:
        fcntl.flock(remover, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: found.append(cache.get(factors())))
        waiting.start()
        time.sleep(0.2)
        assert not found
        folder.rename(tmp_path / "gone")
        if replaced:
            shutil.copytree(tmp_path / "gone", folder)
    waiting.join(60)
    if replaced:
        assert found[0].read("data") == b"x"
        assert cache.clear() == (0, 1), "it holds the new one"
    else:
        assert found == [None]


def test_a_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def build(folder: Path) -> None:
        (folder / "data").write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_build(factors(), build)
    assert cache.entries() == []
    assert not [path for path in (tmp_path / "v1" / "building").iterdir() if path.is_dir()]
    assert cache.get_or_build(factors(), writing(b"whole")).read("data") == b"whole"


def damage(folder: Path, how: str) -> None:
    data = folder / "data"
    match how:
        case "flip":
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
        case "flip in place with old times":
            before = data.stat()
            with open(data, "r+b") as file:
                file.seek(5)
                byte = file.read(1)
                file.seek(5)
                file.write(bytes([byte[0] ^ 1]))
            os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "truncate":
            os.truncate(data, data.stat().st_size - 1)
        case "remove":
            data.unlink()
        case "add":
            (folder / "more").write_bytes(b"")
        case "no seal":
            (folder / SEAL).unlink()
        case "broken seal":
            (folder / SEAL).write_text("{")
        case "other factors":
            (folder / FACTORS).write_text('{"kind":"kernel","text":"b"}')


@pytest.mark.parametrize("size", [100, 5 << 20])
@pytest.mark.parametrize(
    "how",
    ["flip", "flip in place with old times", "truncate", "remove", "add", "no seal", "broken seal", "other factors"],
)
def test_a_damaged_entry_is_replaced_and_counted(how: str, size: int, tmp_path: Path) -> None:
    Cache(tmp_path).get_or_build(factors(), writing(b"a" * size)).close()
    folder = tmp_path / "v1" / "kernel"
    damage(next(folder.iterdir()), how)
    cache = Cache(tmp_path)
    assert cache.get(factors()) is None
    entry = cache.get_or_build(factors(), writing(b"b" * size))
    assert entry.read("data") == b"b" * size
    assert cache.counts["damaged"] == 1
    assert Cache(tmp_path).get_or_build(factors(), never).hit


def test_users_of_a_damaged_entry_do_not_block_its_replacement(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    held = cache.get_or_build(factors(), writing(b"old"))
    with open(held.path("data"), "rb") as mapped:
        damage(held.folder, "flip")
        assert cache.get_or_build(factors(), writing(b"new")).read("data") == b"new"
        assert len(mapped.read()) == 3


def test_a_moved_cache_is_checked_once_and_kept(tmp_path: Path) -> None:
    Cache(tmp_path / "a").get_or_build(factors(), writing(b"a" * (5 << 20))).close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    seal = next((tmp_path / "b").rglob(SEAL))
    before = seal.read_text()
    Cache(tmp_path / "b").get_or_build(factors(), never).close()
    assert seal.read_text() != before, "sealed anew, so that the next start need not hash it"
    Cache(tmp_path / "b").get_or_build(factors(), never).close()


def test_verify_finds_what_times_hide(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.get_or_build(factors(), writing(b"a" * (5 << 20))).close()
    cache.get_or_build(factors(text="b"), writing(b"b")).close()
    assert cache.verify() == {}
    folder = cache.root / "v1" / "kernel" / cache.entries("kernel")[1].key
    assert (folder / "data").stat().st_size == 5 << 20
    # As a failing disk would: other bytes, but a seal that knows the file's times.
    damage(folder, "flip")
    seal = (folder / SEAL).read_text()
    found = (folder / "data").stat()
    times = f'"inode":{found.st_ino},"size"'
    assert times in seal
    import json

    sealed = json.loads(seal)
    sealed["files"]["data"]["times"] = [found.st_mtime_ns, found.st_ctime_ns]
    (folder / SEAL).write_text(json.dumps(sealed))
    assert Cache(tmp_path).get(factors()) is not None
    assert cache.verify() == {folder.name: ["data was altered"]}
    assert not folder.exists()


def test_the_oldest_entries_not_in_use_are_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=8000)
    held = cache.get_or_build(factors(n=0), writing(b"x" * 2000))
    for n in range(1, 6):
        cache.get_or_build(factors(n=n), writing(b"x" * 2000)).close()
        os.utime(cache.root / "v1" / "kernel" / cache.entries()[0].key / FACTORS, (n, n))
    assert cache.stats()["bytes"] <= 8000
    assert cache.counts["evicted"] == 3
    assert [cache.get(factors(n=n)) is not None for n in range(6)] == [True, False, False, False, True, True]
    assert held.read("data") == b"x" * 2000


def test_an_entry_in_use_in_another_process_is_not_evicted(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tilewright.runtime.cache import Cache
entry = Cache(Path(sys.argv[1])).get({"kind": "kernel", "text": "a"})
print("held", flush=True)
sys.stdin.read()
"""
    cache = Cache(tmp_path)
    cache.get_or_build(factors(), writing(b"x")).close()
    user = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert user.stdout is not None
    assert user.stdout.readline() == "held\n"
    assert cache.clear() == (0, 1)
    user.communicate("")
    assert cache.clear() == (1, 0)
    assert cache.entries() == []


def test_opening_an_entry_makes_it_the_youngest(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for n in range(3):
        cache.get_or_build(factors(n=n), writing(b"x")).close()
    for item in cache.entries():
        os.utime(cache.root / "v1" / item.kind / item.key / FACTORS, (1000 + item.factors["n"],) * 2)
    entry = cache.get(factors(n=0))
    assert entry is not None
    assert [item.factors["n"] for item in cache.entries()] == [0, 2, 1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_by_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError):
        Cache(tmp_path).get_or_build(factors(), never)


def test_an_unwritable_folder_in_full(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for root in (blocked, blocked / "below", Path("/proc/nowhere")):
        with pytest.raises(CacheError) as raised:
            Cache(root).get_or_build(factors(), never)
        said = {blocked: "Not a directory", blocked / "below": "Not a directory"}.get(root, "No such file or directory")
        assert str(raised.value) == (
            f"TW041 cache is not usable: the cache in {root} cannot be written: {said}\n"
            "  next: export TILEWRIGHT_CACHE=/a/folder/you/can/write, or compile with cache=False (--cache off)"
        )


def test_a_cache_that_can_only_be_read_still_hits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.get_or_build(factors(), writing(b"x")).close()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("mkdir", "utime"):
        monkeypatch.setattr(os, name, refuse)
    assert Cache(tmp_path).get_or_build(factors(), never).read("data") == b"x"
    with pytest.raises(CacheError, match="cannot be written: Permission denied"):
        Cache(tmp_path).get_or_build(factors(text="new"), never)


def test_a_full_disk_is_a_coded_error(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CacheError, match="cannot be written: No space left on device"):
        Cache(tmp_path).get_or_build(factors(), build)

    def broken(folder: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", "weights")

    with pytest.raises(FileNotFoundError):
        Cache(tmp_path).get_or_build(factors(), broken)


def test_factors_need_a_kind(tmp_path: Path) -> None:
    for bad in ({}, {"kind": 3}, {"kind": "Up"}, {"kind": "../x"}, {"kind": "building"}):
        with pytest.raises(CacheError, match="have no place in the cache"):
            Cache(tmp_path).get(bad)


def test_a_payload_that_is_gone_is_a_coded_error(tmp_path: Path) -> None:
    entry = Cache(tmp_path).get_or_build(factors(), writing(b"x"))
    with pytest.raises(CacheError) as raised:
        entry.read("other")
    assert str(raised.value) == (
        f"TW041 cache is not usable: {entry.path('other')} cannot be read: No such file or directory\n"
        "  next: tilewright cache verify"
    )


def test_stats_count_by_kind(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10**6)
    cache.get_or_build(factors(), writing(b"x" * 100)).close()
    cache.get_or_build({"kind": "weights", "n": 1}, writing(b"x" * 1000)).close()
    cache.get_or_build(factors(), never).close()
    stats = cache.stats()
    assert (stats["entries"], stats["hits"], stats["misses"], stats["damaged"], stats["evicted"]) == (2, 1, 2, 0, 0)
    assert stats["bytes"] == sum(kind["bytes"] for kind in stats["kinds"].values())
    assert stats["kinds"]["weights"]["bytes"] >= 1000
    assert (stats["root"], stats["limit"]) == (str(tmp_path), 10**6)


@pytest.mark.parametrize("size", [0, 1, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, (33 << 20) + 5])
def test_a_file_is_hashed_in_pieces_whose_digests_are_hashed(
    size: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = rng.bytes(size)
    (tmp_path / "f").write_bytes(data)
    pieces = [data[at : at + (16 << 20)] for at in range(0, max(size, 1), 16 << 20)]
    digests = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert hash_file(tmp_path / "f") == hashlib.sha256(digests).hexdigest()
    stream, cuts = StreamHash(), sorted(rng.integers(0, size + 1, 3))
    for first, last in itertools.pairwise([0, *cuts, size]):
        stream.update(data[first:last])
    assert stream.hexdigest() == hash_file(tmp_path / "f")
