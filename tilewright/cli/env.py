"""`tilewright env`: versions, the CPU, and every setting with where it comes from; what a fault's report needs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from tilewright.errors import TilewrightError

_LIBRARIES: Final = (
    "torch",
    "torch-mlir",
    "llvmlite",
    "xdsl",
    "numpy",
    "ml_dtypes",
    "safetensors",
    "transformers",
    "onnx",
    "typer",
    "rich",
)


def env() -> None:
    """Prints versions, the CPU, and every setting with its origin."""
    from tilewright import __version__
    from tilewright.cli.tables import show

    rows = [
        ("tilewright", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        *((name, _version(name)) for name in _LIBRARIES),
        ("CPU class", _cpu_class()),
        ("CPU features", _features()),
        ("cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}"),
    ]
    show(("what", "value"), rows)
    print()
    show(("setting", "value", "origin", "what it does"), [_setting(name, *knob) for name, knob in settings().items()])


def settings() -> dict[str, tuple[Callable[[], str], str]]:
    """Every environment variable that Tilewright reads: how to ask for the value in force, and what it does."""
    from tilewright.runtime import cache, threads

    return {
        cache.ENVIRONMENT: (lambda: str(cache.default_root()), "the cache's folder"),
        threads.ENVIRONMENT: (lambda: str(threads.available_cores()), "cores that calls use, over all threads"),
    }


def _setting(name: str, in_force: Callable[[], str], what: str) -> tuple[str, str, str, str]:
    try:
        value = in_force()
    except TilewrightError as fault:
        # what is wrong with a setting is what this verb is for
        value = f"wrong: {fault.problems[0]}"
    return name, value, "environment" if os.environ.get(name, "").strip() else "default", what


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu_class() -> str:
    from tilewright.ir.backend import backends

    found = backends().get("cpu")
    missing = "no cpu backend is registered" if found is None else found.probe()
    return f"not ready: {missing}" if found is None or missing else found.default_machine()


def _features() -> str:
    from tilewright.runtime.native import cpu_features

    # those that tell the classes apart, of more than a hundred
    telling = (
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512vnni",
        "avx512bf16",
        "amx-tile",
        "amx-bf16",
        "neon",
        "dotprod",
        "bf16",
        "sve",
    )
    found = cpu_features()
    return ", ".join(name for name in telling if name in found) or "none of those known"
