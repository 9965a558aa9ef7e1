"""Object code into this process: links relocatable objects with llvmlite's LLJIT and hands out addresses.

There is one JIT per process and one library per `load`. A library's code stays mapped as long as its handle lives;
code that is still loaded at interpreter exit stays mapped to the end, for threads that may be running it then.
"""

from __future__ import annotations

import functools
import itertools
import os
import platform
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from tilewright.errors import CpuFeatureError, MissingDependencyError, ToolchainError
from tilewright.ir.host_features import usable

# Held around every use of llvmlite, and across fork(): a child never starts with a lock of LLVM's taken for good.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

# ELF's numbers for the machines we generate code for; the JIT itself would link another machine's object unchecked.
_ELF_MACHINE = {"x86_64": 62, "aarch64": 183}

_STEP = "compile it again: `tilewright cache clear`, or tw.load(path, native=False) for an artifact"

_names = itertools.count()


class NativeLibrary:
    """Linked code: `library[symbol]` is an address, valid while this object lives."""

    def __init__(self, tracker: Any, addresses: dict[str, int]) -> None:
        self._tracker = tracker
        self._addresses = addresses
        self._unload = weakref.finalize(self, _unload, tracker)
        self._unload.atexit = False

    def __getitem__(self, symbol: str) -> int:
        return self._addresses[symbol]

    def pin(self) -> None:
        """Keep the code mapped until the process ends, whatever becomes of this object."""
        self._unload.detach()
        self._tracker.detach()


def load(objects: Iterable[bytes], symbols: Sequence[str]) -> NativeLibrary:
    """Link the objects together, and against what this process has mapped (libc, libm), and look the symbols up.

    Raises ToolchainError when an object is damaged or for another machine, or a symbol is missing or defined twice.
    The code is trusted: nothing in it is checked.
    """
    llvm = _llvm()
    with _lock:
        builder = llvm.JITLibraryBuilder().add_current_process()
        for image in objects:
            _check_machine(image)
            builder.add_object_img(image)
        for symbol in symbols:
            builder.export_symbol(symbol)
        try:
            tracker = builder.link(_jit(), f"tilewright.{next(_names)}")
        except RuntimeError as error:
            raise ToolchainError(f"native code does not link: {error}", step=_STEP) from error
        return NativeLibrary(tracker, {symbol: int(tracker[symbol]) for symbol in symbols})


def cpu_features() -> frozenset[str]:
    """What this machine's CPU and kernel can run, by LLVM's names: "avx2", "avx512f", ...

    Where that takes the operating system's leave, this process has it then.
    """
    llvm = _llvm()
    with _lock:
        return usable(name for name, present in llvm.get_host_cpu_features().items() if present)


def require_features(needed: Iterable[str]) -> None:
    """CpuFeatureError unless this machine has every feature that code was compiled for."""
    missing = sorted(set(needed) - cpu_features())
    if missing:
        refused = [name for name in missing if usable([name]) != {name} and _present(name)]
        why = "the operating system keeps from this process" if refused else "this CPU does not have"
        raise CpuFeatureError(
            f"the kernels need {', '.join(refused or missing)}, which {why}", step="compile with target='cpu'"
        )


def _present(name: str) -> bool:
    """Whether the CPU has a feature, leave to use it or not."""
    llvm = _llvm()
    with _lock:
        return bool(llvm.get_host_cpu_features().get(name, False))


@functools.cache
def _jit() -> Any:
    llvm = _llvm()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler(use_jit_link=True)


def _check_machine(image: bytes) -> None:
    machine = int.from_bytes(image[18:20], "little") if image[:4] == b"\x7fELF" else 0
    if machine != _ELF_MACHINE.get(platform.machine()):
        raise ToolchainError(
            f"native code is no object for this machine ({platform.machine()}): "
            + (f"ELF machine {machine}" if machine else "it is not ELF"),
            step=_STEP,
        )


def _unload(tracker: Any) -> None:
    with _lock:
        tracker.close()


def _llvm() -> Any:
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise MissingDependencyError(
            f"running native kernels needs llvmlite ({error})", step="pip install llvmlite"
        ) from error
    return llvm
