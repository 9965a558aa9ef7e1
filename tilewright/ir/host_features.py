"""Features that a CPU has but a process may use only with the operating system's leave.

Registers for matrices are large, so Linux saves them for processes that asked, and for no others: a process without
leave dies by its first matrix instruction. Leave is for the whole process, all its threads, and lasts until it ends.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterable
from functools import cache
from typing import Final

_ON_LEAVE: Final = "amx-"
"""How LLVM's names of such features begin."""

# arch_prctl(2) of Linux on x86-64: ask for the state component that holds the matrices' data.
_ARCH_PRCTL: Final = 158
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XTILEDATA: Final = 18


def usable(features: Iterable[str]) -> frozenset[str]:
    """The features, by LLVM's names, without those that the operating system refuses; asks it at most once."""
    found = frozenset(features)
    on_leave = {name for name in found if name.startswith(_ON_LEAVE)}
    return found if not on_leave or _granted() else found - on_leave


@cache
def _granted() -> bool:
    """Asks for leave to use matrix registers; False where the system knows no such thing or says no."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA)) == 0
