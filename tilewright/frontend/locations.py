"""Where in the user's code an op came from: the innermost frame that belongs to neither torch nor this package."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

_FRAME: Final = re.compile(r'File "([^"]+)", line (\d+)')
# Frames of these packages only carry a call on; the line that explains an op is outside them.
_CARRIERS: Final = ("torch/", "tilewright/")
_TRANSFORMERS_CARRIERS: Final = (
    "transformers/utils/",
    "transformers/masking_utils.py",
    "transformers/modeling_layers.py",
    "transformers/integrations/",
    "transformers/activations.py",
)


@cache
def shorten(file: str) -> str:
    """A file's path from its top-level package on, else its bare name: the same in every checkout and environment."""
    path = Path(file)
    parts = path.parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(root) :])
    top = path
    while (top.parent / "__init__.py").exists():
        top = top.parent
    return path.relative_to(top.parent).as_posix() if path.is_absolute() else path.name


def innermost(frames: Iterable[tuple[str, int]]) -> str | None:
    """The last of the frames (outermost first) in the user's or the model's code, as "model.py:12"."""
    found: str | None = None
    inside_transformers: str | None = None
    for file, line in frames:
        short = shorten(file)
        if file.startswith("<") or short.startswith(_CARRIERS):
            continue
        if short.startswith(_TRANSFORMERS_CARRIERS):
            inside_transformers = f"{short}:{line}"
            continue
        found = f"{short}:{line}"
    return found or inside_transformers


def of_node(node: Any) -> str | None:
    """The user's line of an FX node, from the stack trace the exporter keeps."""
    trace = node.meta.get("stack_trace")
    return innermost((file, int(line)) for file, line in _FRAME.findall(trace)) if trace else None


def line_of_frame(frame: FrameType) -> str | None:
    """The line that a frame runs, where that is the user's or a model's; None in torch and in this package."""
    return innermost([(frame.f_code.co_filename, frame.f_lineno)])


def of_traceback(traceback: TracebackType | None) -> str | None:
    """The user's line at which an exception was raised."""
    frames: list[tuple[str, int]] = []
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return innermost(frames)


def innermost_module(node: Any) -> tuple[str, str] | None:
    """For a message: the path of the innermost module a node was traced in ("" of the model itself), and its class.

    torch.compile begins a path with the variable that holds the model: "L['self'].layers.0", "G['model']".
    """
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path, kind = list(stack.values())[-1]
    plain = re.sub(r"^[LG]\['\w+'\]\.?", "", str(path)).replace("[", ".").replace("]", "")
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return plain if re.fullmatch(r"[\w.]+", plain) else "", name


def module_path(node: Any) -> str | None:
    """The path of the innermost module a node was traced in: "encoder.layer.0.attention"."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path, _ = list(stack.values())[-1]
    # a path can be an access expression (L['self'].layers[0]) in graphs exported strictly
    plain = re.sub(r"^L\['self'\]\.?", "", str(path)).replace("[", ".").replace("]", "")
    return plain if plain and re.fullmatch(r"[\w.]+", plain) else None
