"""Makes the exporter treat every size alike: 0 and 1 are sizes like any other, and no relation to them goes unrecorded.

By default the exporter takes every varying size to be 2 or more and answers whatever follows from that without a word,
so that a model's own branch on 1 is lost. Three things are changed while a capture runs:

- Sizes start at 0 (torch's `backed_size_oblivious`), so a branch on 1 is recorded as a guard.
- Where a declared dim admits 0, torch's symbols are no longer positive by nature, which would decide `n != 0`.
- What an operator's own shape function asks about 0 and 1 is answered as for any other size and not recorded. It asks
  for strides and contiguity, which the graph dialect does not have: the operator is one node of the graph whatever the
  answer. The one operator whose rank depends on a size, squeeze, is held to it when it is lowered. Recorded, such a
  question would also answer the model's own later one. Questions of layout that the model itself asks
  (`x.is_contiguous()`) are recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tilewright.frontend import conversions, varying_lengths
from tilewright.frontend.lean_tracing import torch_folder

# Where torch works out in Python the shape and strides of one operator's results.
_SHAPE_FUNCTIONS: Final = (
    "/torch/_ops.py",
    "/torch/_subclasses/",
    "/torch/_refs/",
    "/torch/_prims/",
    "/torch/_prims_common/",
    "/torch/_decomp/",
    "/torch/_meta_registrations.py",
)


# What a model may ask about how a tensor lies in memory.
_QUESTIONS: Final = ("is_contiguous", "stride", "storage_offset")


@dataclass
class Asked:
    """What the model asked while it was traced. layout: whether it asked for the layout of a tensor."""

    layout: bool = False


@contextmanager
def generic_sizes(*, zero: bool) -> Iterator[Asked]:
    """zero: some declared dim admits the size 0. Process-wide while it lasts, as the exporter itself is."""
    import torch
    import torch.fx.experimental._config as config
    from torch.fx.experimental import symbolic_shapes

    shapes: Any = symbolic_shapes
    environment: Any = shapes.ShapeEnv
    tensors: Any = torch.Tensor
    make_symbol, evaluate, uninteresting = shapes.make_symbol, environment.evaluate_expr, shapes.uninteresting_files

    def may_be_zero(prefix: Any, index: int, **assumptions: Any) -> Any:
        if assumptions.get("integer") and assumptions.pop("positive", None):
            assumptions["nonnegative"] = True
        return make_symbol(prefix, index, **assumptions)

    def evaluated(env: Any, asked: Any, *args: Any, **options: Any) -> Any:
        if not asking and _is_answered(env, asked) and _is_an_operators(asked, uninteresting(), torch.__file__):
            with env.suppress_guards():
                return evaluate(env, asked, *args, **options)
        return evaluate(env, asked, *args, **options)

    # the model's own questions of layout that are going on
    asking: list[None] = []
    found = Asked()

    def question(name: str) -> Any:
        answer: Any = getattr(torch._C.TensorBase, name)

        def asked_of(tensor: Any, *args: Any, **options: Any) -> Any:
            if _is_torchs(sys._getframe(1)):
                return answer(tensor, *args, **options)
            asking.append(None)
            # a layout is worked out once for a tensor: who asks later is told without a record
            found.layout = True
            try:
                return answer(tensor, *args, **options)
            finally:
                asking.pop()

        return asked_of

    # a guard belongs to the line that asked, not to what stands between it and torch
    files = _Between({*uninteresting(), __file__, conversions.__file__, varying_lengths.__file__})

    def uninteresting_files() -> _Between:
        # asked once for every frame of every node
        return files

    saved = {"make_symbol": make_symbol, "uninteresting_files": uninteresting}
    try:
        with config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            if zero:
                shapes.make_symbol = may_be_zero
            shapes.uninteresting_files = uninteresting_files
            environment.evaluate_expr = evaluated
            # C++ does not ask by this name, only Python does
            for name in _QUESTIONS:
                setattr(tensors, name, question(name))
            yield found
    finally:
        for name in _QUESTIONS:
            if name in vars(tensors):
                delattr(tensors, name)
        environment.evaluate_expr = evaluate
        for name, function in saved.items():
            setattr(shapes, name, function)


def _is_torchs(frame: Any) -> bool:
    """Whether a frame runs torch's own code below its modules and their functions."""
    file = frame.f_code.co_filename.replace("\\", "/")
    return "/torch/" in file and "/torch/nn/" not in file


class _Between:
    """The files that stand between torch and the line that asked: those named, and torch's own but for its modules."""

    def __init__(self, named: set[str]) -> None:
        self._known = dict.fromkeys(named, True)

    def __contains__(self, file: str) -> bool:
        found = self._known.get(file)
        if found is None:
            found = self._known[file] = file.startswith(torch_folder()) and "/nn/modules/" not in file.replace(
                "\\", "/"
            )
        return found


def _is_answered(env: Any, asked: Any) -> bool:
    """Whether the question is if a size is 0 or 1, or a stride as large as if it were, and the trace says no."""
    kind = type(asked).__name__
    if kind not in ("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"):
        return False
    left, right = asked.args
    if left.is_zero or right.is_zero:
        size = left + right
    else:
        top, bottom = (left / right).as_numer_denom()
        if (top.is_Integer and int(top) != 1) or not (top.is_Integer or bottom == 1):
            return False
        size = bottom if top.is_Integer else top
    value = size.xreplace(env.backed_var_to_val)
    return bool(value.is_Integer) and int(value) > 1


def _is_an_operators(asked: Any, uninteresting: set[str], torch_file: str) -> bool:
    """Whether an operator asks: C++, or Python that works out shapes. Comparing sizes in Python takes their truth
    value, in a method of torch's own top file; C++ asks without it. An inequality is left to its answer only where
    C++ chooses among its implementations of convolution: elsewhere it is a bound that the operator needs.
    """
    in_python = False
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename in uninteresting:
        in_python = in_python or (frame.f_code.co_filename == torch_file and frame.f_code.co_name == "__bool__")
        frame = frame.f_back
    if frame is None:
        return False
    file = frame.f_code.co_filename.replace("\\", "/")
    if type(asked).__name__ not in ("Equality", "Unequality"):
        return not in_python and file.endswith("/torch/_subclasses/fake_impls.py") and frame.f_code.co_name == "conv"
    return not in_python or any(place in file for place in _SHAPE_FUNCTIONS)
