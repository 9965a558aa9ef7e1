"""The host's C compiler: where it is, which version, and one source to one object."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from tilewright.errors import MissingDependencyError, ToolchainError

# No contraction: a product and a sum are rounded each. Wrapping integers: the loop IR's. Position-independent: the
# loader maps objects anywhere and reaches the C library through tables.
FLAGS: Final = (
    "-std=c11", "-O2", "-ffp-contract=off", "-fwrapv", "-fno-math-errno", "-fno-strict-aliasing", "-fPIC",
    "-fno-asynchronous-unwind-tables", "-fno-stack-protector", "-w",
)  # fmt: skip

_PATIENCE_SECONDS: Final = 300
_QUOTED_LINES: Final = 6


def find_compiler() -> str | None:
    """The path of $CC, or of the first of cc, gcc and clang that is installed."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    return None


@cache
def version_of(path: str) -> str:
    """The first line a compiler says of itself."""
    asked = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    return asked.stdout.partition("\n")[0] or f"status {asked.returncode}"


def missing() -> str | None:
    """What to install where there is no C compiler, else None."""
    return None if find_compiler() else "install a C compiler (apt-get install gcc), or name one in CC"


def compile_source(source: str, name: str) -> bytes:
    """C text to a relocatable object. MissingDependencyError without a compiler, ToolchainError if it refuses."""
    path = find_compiler()
    if path is None:
        raise MissingDependencyError("the toy backend compiles with the host's C compiler", step=str(missing()))
    with tempfile.TemporaryDirectory(prefix="tilewright-toy-") as folder:
        out = Path(folder, "kernel.o")
        command = [path, *FLAGS, "-x", "c", "-c", "-", "-o", str(out)]
        given = source.encode()
        done = subprocess.run(command, input=given, capture_output=True, timeout=_PATIENCE_SECONDS, check=False)
        if done.returncode:
            said = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line]
            raise ToolchainError(
                f"{path} does not compile kernel {name}: {'; '.join(said[:_QUOTED_LINES]) or done.returncode}",
                step="report it with the kernel's source, or compile with target='cpu'",
            )
        return out.read_bytes()
