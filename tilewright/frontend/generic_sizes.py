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
from typing import Any, Final

# Where torch works out the shape and strides of one operator's results, calls into C++ included.
_SHAPE_FUNCTIONS: Final = (
    "torch/_ops.py",
    "torch/_subclasses/",
    "torch/_refs/",
    "torch/_prims/",
    "torch/_prims_common/",
    "torch/_decomp/",
    "torch/_meta_registrations.py",
)
# Which of its implementations of convolution torch would run here: asked with inequalities too.
_CHOOSES_BACKEND: Final = ("torch/_subclasses/fake_impls.py", "conv")


@contextmanager
def generic_sizes(*, zero: bool) -> Iterator[None]:
    """zero: some declared dim admits the size 0. Process-wide while it lasts, as the exporter itself is."""
    import torch.fx.experimental._config as config
    from torch.fx.experimental import symbolic_shapes
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    shapes: Any = symbolic_shapes
    make_symbol, evaluate, uninteresting = shapes.make_symbol, ShapeEnv.evaluate_expr, shapes.uninteresting_files

    def may_be_zero(prefix: Any, index: int, **assumptions: Any) -> Any:
        if assumptions.get("integer") and assumptions.pop("positive", None):
            assumptions["nonnegative"] = True
        return make_symbol(prefix, index, **assumptions)

    def evaluated(env: Any, asked: Any, *args: Any, **options: Any) -> Any:
        if _is_answered(env, asked) and _asks_of_layout(uninteresting(), asked):
            with env.suppress_guards():
                return evaluate(env, asked, *args, **options)
        return evaluate(env, asked, *args, **options)

    def uninteresting_files() -> set[str]:
        # a guard belongs to the line that asked, not to this file
        return {*uninteresting(), __file__}

    saved = {"make_symbol": make_symbol, "uninteresting_files": uninteresting}
    try:
        with config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            if zero:
                shapes.make_symbol = may_be_zero
            shapes.uninteresting_files = uninteresting_files
            ShapeEnv.evaluate_expr = evaluated  # type: ignore[method-assign]
            yield
    finally:
        ShapeEnv.evaluate_expr = evaluate  # type: ignore[method-assign]
        for name, function in saved.items():
            setattr(shapes, name, function)


def _is_answered(env: Any, asked: Any) -> bool:
    """Whether the question is about a size being 0 or 1, and the sizes of the trace answer it as all others would."""
    kind = type(asked).__name__
    if kind not in ("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"):
        return False
    left, right = asked.args
    if not any(side.is_Integer and int(side) in (0, 1) for side in (left, right)):
        return False
    size = (right if left.is_Integer else left).xreplace(env.backed_var_to_val)
    return bool(size.is_Integer) and int(size) > 1


def _asks_of_layout(uninteresting: set[str], asked: Any) -> bool:
    """Whether the innermost frame that asks is part of an operator's shape function."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename in uninteresting:
        frame = frame.f_back
    if frame is None:
        return False
    file = frame.f_code.co_filename.replace("\\", "/")
    if type(asked).__name__ in ("Equality", "Unequality"):
        return any(f"/{place}" in file for place in _SHAPE_FUNCTIONS)
    place, function = _CHOOSES_BACKEND
    return file.endswith(place) and frame.f_code.co_name == function
