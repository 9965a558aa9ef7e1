"""The devices that printed Triton kernels run on, and whether there is one here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tilewright.ir.device import DeviceKind

_DEV: Final = Path("/dev")


def cuda_missing() -> str | None:
    """By the driver's device files: asking the driver itself would start it, which a fork does not survive."""
    return None if any(_DEV.glob("nvidia[0-9]*")) else f"there is no {_DEV}/nvidia0"


def rocm_missing() -> str | None:
    """By the driver's device files, one for all devices and one for each."""
    missing = [name for name in ("kfd", "dri/renderD*") if not any(_DEV.glob(name))]
    return f"there is no {_DEV}/{missing[0]}" if missing else None


CUDA: Final = DeviceKind("cuda", "grid", cuda_missing)
ROCM: Final = DeviceKind("rocm", "grid", rocm_missing)
