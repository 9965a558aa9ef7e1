"""Compiled code called inside a function that torch.compile traces: a graph break, and the call runs as ever.

torch.compiler.disable does that, too, and imports all of torch's tracer for it; these are the marks that it leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, Final, TypeVar

_Call = TypeVar("_Call", bound=Callable[..., Any])
_UNTRACED: Final[set[CodeType]] = set()


def untraced(call: _Call) -> _Call:
    """A function that torch.compile neither traces into nor looks at the frames of, once `settle` knows torch."""
    marks: Any = call
    marks._torchdynamo_disable = True
    marks._torchdynamo_disable_msg = "it is compiled already"
    _UNTRACED.add(marks.__code__)
    return call


def settle() -> None:
    """Tells torch, where it is loaded, to run the frames of these functions and all below them as Python runs them."""
    if _UNTRACED and hasattr(sys.modules.get("torch"), "compile"):
        from torch._C._dynamo import eval_frame

        skip: Any = eval_frame._FrameAction.SKIP
        while _UNTRACED:
            eval_frame.set_code_exec_strategy(_UNTRACED.pop(), eval_frame._FrameExecStrategy(skip, skip))
