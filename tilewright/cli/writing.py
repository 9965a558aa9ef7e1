"""Files that a verb writes where its options say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilewright.errors import OptionError


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Around what writes an option's file: OptionError, naming both, where the system refuses."""
    try:
        yield
    except OSError as fault:
        raise OptionError(
            f"{option} {path} cannot be written: {fault.strerror}", step="give a path you can write to"
        ) from fault
