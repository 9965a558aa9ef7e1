"""How many cores there are for kernels, and for compiling them."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))
