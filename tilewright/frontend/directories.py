"""Model directories as transformers writes them: config.json beside safetensors, read from disk alone."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tilewright.errors import MissingDependencyError, ModelInputError
from tilewright.ir.dims import Dim

# The longest sequence that is declared where the user declares nothing.
_TOKENS: Final = 256


@dataclass(frozen=True)
class Directory:
    """A model from a directory, with example inputs and the dims they are declared with. note: where they are from."""

    model: Any
    kwargs: Mapping[str, Any]
    dims: Mapping[str, Any]
    note: str


def open_directory(folder: Path, *, seed: int = 0) -> Directory:
    """A transformers model from its own folder, with random tokens as example. Raises as `load_directory`, and
    ModelInputError for a model that takes other inputs.
    """
    model = load_directory(folder)
    import torch

    vocabulary, positions = _sizes(model)
    if vocabulary is None or getattr(model.config, "is_encoder_decoder", False):
        raise ModelInputError(
            f"{type(model).__name__} does not take input_ids and attention_mask alone",
            step="load it in Python and compile it with its own example inputs (on the command line: module:callable)",
        )
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (2, 8), generator=generator)
    dims = (Dim("batch", 1, 64), Dim("tokens", 1, min(_TOKENS, positions or _TOKENS)))
    names = ("input_ids", "attention_mask")
    note = f"inputs from config.json: {names[0]} below {vocabulary} and {names[1]}"
    return Directory(model, {names[0]: ids, names[1]: torch.ones_like(ids)}, dict.fromkeys(names, dims), note)


def load_directory(folder: Path) -> Any:
    """A transformers model from its own folder; nothing is downloaded or executed.

    Raises ModelInputError saying what the folder lacks, and MissingDependencyError without transformers.
    """
    config = read_config(folder)
    if not list(folder.glob("*.safetensors")):
        raise ModelInputError(
            f"{folder} has no .safetensors file",
            step="save it with model.save_pretrained(folder): safetensors is its default",
        )
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependencyError("a model directory is read by transformers", step="pip install 'tilewright[hf]'")
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
            return build.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        except Exception as fault:
            reason = " ".join(str(fault).split())[:300]
            raise ModelInputError(
                f"{folder}: {reason}", step="save the model again with model.save_pretrained(folder)"
            ) from fault


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json. Raises ModelInputError where there is none."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        lacking = f"{folder} has no config.json" if folder.is_dir() else f"there is no directory {folder}"
        raise ModelInputError(lacking, step="give a directory that save_pretrained wrote") from None
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
