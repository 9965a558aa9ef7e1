"""Files that a verb writes where its options say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilewright.errors import OptionError


def require_place(option: str, path: Path | None, name: str) -> None:
    """Before anything runs: OptionError, naming both, where an option's file has no folder, or is one.

    name: what such a file is called where nobody has named it.
    """
    if path is not None and path.is_dir():
        raise OptionError(f"{option} {path}: it is a folder", step=f"name a file in it: {option} {path / name}")
    if path is not None and not path.parent.is_dir():
        raise OptionError(f"{option} {path}: there is no folder {path.parent}", step=f"mkdir -p {path.parent}")


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Around what writes an option's file: OptionError, naming both, where the system refuses."""
    try:
        yield
    except OSError as fault:
        raise OptionError(
            f"{option} {path} cannot be written: {fault.strerror}", step="give a path you can write to"
        ) from fault
