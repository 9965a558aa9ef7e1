"""Triton's machines: tile kernels as readable Triton source, compiled without a device to cubin and hsaco.

Two backends share the printer: `cuda` and `rocm`. Both need the `gpu` extra and are imported when they are used.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("cuda", "rocm"):
        from tilewright.backends.triton import manifest

        return getattr(manifest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
