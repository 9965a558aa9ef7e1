"""What the command line accepts as MODEL: a .pt2 file, a transformers model directory, or `module:callable`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tilewright.errors import ArtifactAccessError, ModelInputError

_KINDS: Final = "a .pt2 file, a directory with config.json and safetensors, or module:callable"


@dataclass(frozen=True)
class Model:
    """A model with example inputs, ready for compile(). dims: what to declare where the user declares nothing.

    note: where the example is from, for the user to see.
    """

    model: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, Any] | None = None
    note: str | None = None


def is_artifact(text: str) -> bool:
    """Whether the user means an artifact rather than a model: any existing file that is not a .pt2."""
    path = Path(text)
    return path.is_file() and path.suffix != ".pt2"


def require_artifact(text: str) -> None:
    """ArtifactAccessError, with the line that makes an artifact of it, where a text names what is not compiled yet."""
    path = Path(text)
    module, _, name = text.partition(":")
    called = bool(module and name) and not path.exists()
    if not (called or path.suffix == ".pt2" or (path / "config.json").is_file()):
        return
    model = f"{_importable(module)}:{name}" if called else text
    made = Path(name if called else path.resolve().stem).with_suffix(".tilewright")
    raise ArtifactAccessError(
        f"{text} is a model, and no artifact of it",
        step=f"compile it first: tilewright compile {model} -o {made}, then tilewright run {made}",
    )


def open_model(text: str, *, seed: int = 0) -> Model:
    """The model that a command line names. ModelInputError says what the text is instead."""
    path = Path(text)
    if not text:
        raise ModelInputError("MODEL is an empty text", step=f"give {_KINDS}")
    if path.is_dir():
        from tilewright.frontend.directories import open_directory

        found = open_directory(path, seed=seed)
        return Model(found.model, (), found.kwargs, found.dims, found.note)
    module, colon, name = text.partition(":")
    if colon and module.endswith(".py"):
        step = f"write {_importable(module)}:{name}"
        raise ModelInputError(f"{module} names a file, and a module goes by its name", step=step)
    if colon and module and name and not path.exists():
        return _called(module, name)
    if path.suffix == ".pt2":
        return Model(path)
    if is_artifact(text) and path.suffix == ".tilewright":
        raise ModelInputError(
            f"{text} is compiled already", step=f"give {_KINDS}; run and report read what is compiled"
        )
    if path.exists():
        raise ModelInputError(f"{text} is neither a .pt2 file nor a model directory", step=f"give {_KINDS}")
    raise ModelInputError(f"there is no {text}", step=f"give {_KINDS}")


def _importable(module: str) -> str:
    """A module by its name where a file's is given."""
    return ".".join(Path(module).with_suffix("").parts) if module.endswith(".py") else module


def _called(module: str, name: str) -> Model:
    """The result of a callable in an importable module; the current folder is searched first, as `python -m` does."""
    text = f"{module}:{name}"
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as fault:
        if fault.name is None or not (module == fault.name or module.startswith(f"{fault.name}.")):
            raise _raised(text, fault) from fault
        raise ModelInputError(
            f"there is no module {fault.name!r} (looked in {folder} and on the module path)",
            step=f"run it where the module can be imported, or export PYTHONPATH=/its/folder; MODEL is {_KINDS}",
        ) from fault
    except Exception as fault:
        raise _raised(text, fault) from fault
    make = getattr(found, name, None)
    if not callable(make):
        listed = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
        raise ModelInputError(
            f"{module} has no callable {name!r}",
            step=f"name one of its callables: {', '.join(listed) or 'it has none'}",
        )
    try:
        given = make()
    except Exception as fault:
        raise _raised(text, fault) from fault
    if not (
        isinstance(given, tuple)
        and len(given) == 3
        and isinstance(given[1], (tuple, list))
        and isinstance(given[2], Mapping)
    ):
        from tilewright.ir.passing import a

        shown = f"a tuple of {len(given)}" if isinstance(given, tuple) else a(type(given).__name__)
        raise ModelInputError(
            f"{text} returned {shown}, not (model, args, kwargs)", step="end it with: return model, (example,), {}"
        )
    return Model(given[0], tuple(given[1]), dict(given[2]))


def _raised(text: str, fault: Exception) -> ModelInputError:
    """What the user's own code raised, with the user's own line: the innermost one outside installed packages."""
    frames = [f for f in traceback.extract_tb(fault.__traceback__) if "importlib" not in f.filename]
    own = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__] or frames
    at = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return ModelInputError(
        f"{text} raised {type(fault).__name__}: {fault}{at}",
        step=f"make this run first: python -c 'import {text.partition(':')[0]} as m; m.{text.partition(':')[2]}()'",
    )
