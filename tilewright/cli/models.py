"""What the command line accepts as MODEL: a .pt2 file, a transformers model directory, or `module:callable`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tilewright.errors import MissingDependencyError, ModelInputError

_KINDS: Final = "a .pt2 file, a directory with config.json and safetensors, or module:callable"
# The longest sequence that is declared for a model directory when the user declares nothing.
_TOKENS: Final = 256


@dataclass(frozen=True)
class Model:
    """A model with example inputs, ready for compile(). dims: what to declare where the user declares nothing.

    note: what was assumed, for the user to see.
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


def open_model(text: str, *, seed: int = 0) -> Model:
    """The model that a command line names. ModelInputError says what the text is instead."""
    path = Path(text)
    if path.is_dir():
        return _directory(path, seed)
    module, colon, name = text.partition(":")
    if colon and module and name and not path.exists():
        return _called(module, name)
    if path.suffix == ".pt2":
        return Model(path)
    if path.exists():
        raise ModelInputError(f"{text} is neither a .pt2 file nor a model directory", step=f"give {_KINDS}")
    raise ModelInputError(f"there is no {text}", step=f"give {_KINDS}")


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
        shown = f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"
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


def _directory(folder: Path, seed: int) -> Model:
    """A transformers model from its own folder, with random tokens as example; nothing is downloaded or executed."""
    config = _config(folder)
    if not list(folder.glob("*.safetensors")):
        raise ModelInputError(
            f"{folder} has no .safetensors file",
            step="save it with model.save_pretrained(folder): safetensors is its default",
        )
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependencyError("a model directory is read by transformers", step="pip install 'tilewright[hf]'")
    import torch

    with _silence():
        import transformers

        architecture = next(iter(config.get("architectures") or []), None)
        build = getattr(transformers, architecture, None) if architecture else transformers.AutoModel
        if build is None:
            raise ModelInputError(
                f"{folder}/config.json names the architecture {architecture}, which transformers "
                f"{transformers.__version__} does not have",
                step="install the transformers release that the model was saved with, or write module:callable",
            )
        try:
            model = build.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        except Exception as fault:
            reason = " ".join(str(fault).split())[:300]
            raise ModelInputError(
                f"{folder}: {reason}", step="save the model again with model.save_pretrained(folder)"
            ) from fault
    vocabulary, positions = _sizes(model)
    if vocabulary is None or getattr(model.config, "is_encoder_decoder", False):
        raise ModelInputError(
            f"{type(model).__name__} does not take input_ids and attention_mask alone",
            step="write a function that returns (model, args, kwargs) and give module:function",
        )
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (2, 8), generator=generator)
    from tilewright.ir.dims import Dim

    dims = (Dim("batch", 1, 64), Dim("tokens", 1, min(_TOKENS, positions or _TOKENS)))
    names = ("input_ids", "attention_mask")
    note = f"inputs from config.json: {names[0]} below {vocabulary} and {names[1]}; {'; '.join(map(str, dims))}"
    return Model(model, (), {names[0]: ids, names[1]: torch.ones_like(ids)}, dict.fromkeys(names, dims), note)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelInputError(f"{folder} has no config.json", step=f"give {_KINDS}") from None
    except (OSError, ValueError) as fault:
        raise ModelInputError(
            f"{path} cannot be read: {fault}", step="save the model again with save_pretrained"
        ) from fault
    if not isinstance(found, dict):
        raise ModelInputError(f"{path} does not hold a config", step="save the model again with save_pretrained")
    return found


def _sizes(model: Any) -> tuple[int | None, int | None]:
    """Vocabulary and positions of a text model; no vocabulary for one that takes no tokens."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the progress bars and advice that loading a model prints."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    before, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shown:
            logging.enable_progress_bar()
