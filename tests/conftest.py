"""What every test gets: fresh random inputs that can be replayed, an own cache folder, and no network."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from tests.remembered_kernels import RememberingPool
from tilewright.backends.host import workers

SEED_VARIABLE = "TILEWRIGHT_TEST_SEED"

# Set here, not in a fixture: subprocesses inherit them, and libraries read them when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models here are tiny: PyTorch's threads would wait for each other, spinning, on cores that other tests need.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiling inside a property takes as long as it takes; a deadline would only report a busy machine.
# a seed that is given holds for drawn examples, too
hypothesis.settings.register_profile(
    "tilewright", deadline=None, print_blob=True, derandomize="TILEWRIGHT_TEST_SEED" in os.environ
)
hypothesis.settings.load_profile("tilewright")


def pytest_collection_finish() -> None:
    """Libraries, modules and thousands of tests are here to stay: no collection of garbage walks over them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[Path]:
    """A cache folder for this test run: no test passes because of what an earlier run left behind."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="tilewright-tests-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield Path(folder)
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def remembered_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels are compiled once in a test run, whichever test and process needs them first."""
    own = tmp_path_factory.getbasetemp()
    # pytest-xdist puts its processes' folders into one
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "kernels"
    folder.mkdir(exist_ok=True)
    before, workers._shared[:] = list(workers._shared), [RememberingPool(folder)]
    yield
    for pool in workers._shared:
        pool.close()
    workers._shared[:] = before


@pytest.fixture
def seed() -> int:
    """A fresh seed for this test; a failure shows it, and TILEWRIGHT_TEST_SEED=N replays it."""
    chosen = int(os.environ.get(SEED_VARIABLE) or int.from_bytes(os.urandom(4), "little"))
    print(f"replay with {SEED_VARIABLE}={chosen}")
    return chosen


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A NumPy generator from `seed`."""
    return np.random.default_rng(seed)
