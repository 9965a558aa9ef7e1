"""Starts modules of this package as processes that answer requests on their pipes (`frames`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO


def start_module(
    module: str, *arguments: str, environment: Mapping[str, str], stderr: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """`python -m module arguments` with unbuffered pipes at its stdin and stdout.

    It finds packages as this process finds them, but never by accident in the current directory. environment: all its
    variables but PYTHONPATH. Raises OSError where no process can be started.
    """
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([*filter(os.path.isabs, sys.path), root])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        env={**environment, "PYTHONPATH": path},
    )
