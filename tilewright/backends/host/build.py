"""What backends of the host's device share: the driver's object code, the toolchain behind it, the number of cores."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version

from tilewright.backends.host.driver import driver_text
from tilewright.backends.host.mlir import TARGETS
from tilewright.backends.host.workers import shared_pool

_LIBRARIES = ("torch-mlir", "llvmlite")


def driver_objects(triple: str | None = None) -> Mapping[str, bytes]:
    """The native driver, for the baseline of an architecture: it runs wherever an artifact is opened.

    triple: LLVM's, of a CPU class; None for the architecture of this machine.
    """
    wanted = triple or f"{platform.machine()}-unknown-linux-gnu"
    return {"driver": _driver(next(t.name for t in TARGETS.values() if t.triple == wanted))}


@cache
def _driver(name: str) -> bytes:
    return shared_pool().submit(driver_text(TARGETS[name]), TARGETS[name]).result()


def toolchain() -> Mapping[str, str]:
    """Versions that decide object code."""
    return {name: version(name) for name in _LIBRARIES}


def warm() -> None:
    """Starts the workers; importing their code generator overlaps with capture."""
    shared_pool()


def probe() -> str | None:
    """What is missing to compile for the host."""
    from importlib.util import find_spec

    missing = [name for name in _LIBRARIES if find_spec(name.replace("-", "_")) is None]
    return f"pip install {' '.join(missing)}" if missing else None
