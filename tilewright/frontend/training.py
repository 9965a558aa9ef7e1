"""Operators that compute otherwise in training than in inference, as one coded error: the module, and the way out."""

from __future__ import annotations

from typing import Any, Final

from tilewright.errors import Problem, TrainingModeError
from tilewright.frontend.locations import innermost_module, of_node

_MODE: Final = "call model.eval() before compiling"


def in_training(node: Any, does: str, argument: str | None = None) -> TrainingModeError:
    """The error for a node that computes as in training. does: what it does, "drops elements with p=0.5".

    argument: what a call in a forward must be given so that model.eval() reaches it; torch's own modules give it.
    """
    path, kind = innermost_module(node) or ("", "")
    of_torch = kind.startswith("torch.nn.modules.")
    name = kind.rpartition(".")[2]
    label = f"{path} ({name})" if path and of_torch else path or (f"the model ({name})" if of_torch else "the model")
    step = _MODE if of_torch or argument is None else f"pass {argument} to that call; where it has that, {_MODE}"
    return TrainingModeError(Problem(f"{label} {does}", where=of_node(node)), step=step)
