"""One cache, many processes: code is compiled once, and what dies in the middle leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.compiler.models import close, compile_mlp, mlp
from tilewright.runtime.cache import Cache

ROOT = Path(__file__).resolve().parents[2]

COMPILING = """
import sys
import torch
from tests.compiler.models import compile_mlp, mlp
print(compile_mlp(mlp(7), cache=sys.argv[1]).report.to_dict()["cache"].split()[0], flush=True)
"""

# Children wait for each other after they have captured, so that all ask the cache at once.
TOGETHER = """
import os, sys, time
from pathlib import Path
import torch
from tests.compiler.models import compile_mlp, mlp
from tilewright.compiler import entry

root, ready, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
captured = entry.capture_unproved

def capture(*args, **kwargs):
    found = captured(*args, **kwargs)
    Path(ready, str(os.getpid())).touch()
    while len(list(ready.iterdir())) < count:
        time.sleep(0.01)
    return found

def child():
    entry.capture_unproved = capture
    model = mlp(7)
    compiled = compile_mlp(model, cache=root)
    x = torch.randn(5, 24)
    assert (compiled(x) - model(x)).abs().max() < 1e-4
    os.write(1, (compiled.report.to_dict()["cache"].split()[0] + "\\n").encode())

children = []
for _ in range(count):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)
    children.append(pid)
sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_that_race_compile_one_model_once(count: int, tmp_path: Path) -> None:
    (tmp_path / "ready").mkdir()
    racing = start(TOGETHER, tmp_path / "cache", tmp_path / "ready", count)
    said = racing.communicate(timeout=300)[0].split()
    assert racing.returncode == 0
    assert sorted(said) == ["hit"] * (count - 1) + ["miss"]
    cache = Cache(tmp_path / "cache")
    assert sorted(item.kind for item in cache.entries()) == ["capture", "code", "weights"]
    assert not cache.verify()


def test_a_compilation_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    killed = start(COMPILING, root)
    building = root / "v1" / "building"
    deadline = time.monotonic() + 120
    # it has begun to build an entry
    while not (building.exists() and any(p.is_dir() for p in building.iterdir())):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    if killed.stdout is not None:
        killed.stdout.close()
    assert not Cache(root).entries()

    model = mlp(7)
    compiled = compile_mlp(model, cache=root)
    assert compiled.report.to_dict()["cache"].startswith("miss")
    close(compiled(model.basis[:3, :24].contiguous()), model(model.basis[:3, :24]).detach())
    assert compile_mlp(model, cache=root).report.to_dict()["cache"] == "hit"
    assert not Cache(root).verify()
    assert not [p for p in building.iterdir() if p.is_dir()]
