"""Checks a user can ask for: pattern counts that must hold, and the first call against the original model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.errors import ExpectationError, NumericMismatchError, OptionError, Problem
from tilewright.ir.compile_options import CompileOptions
from tilewright.runtime.facts import Facts

if TYPE_CHECKING:
    from tilewright.compiler.compiled import Compiled
    from tilewright.compiler.target import Target
    from tilewright.frontend.captured import Captured


def empty_rows(pass_name: str, applied: Iterable[str]) -> str:
    """What a difference after a pass may be by design: attention defines rows that see no key, models do not.

    applied: what the pass did, by the names of its rewrites. Empty where that cannot be it.
    """
    if pass_name != "recognize" or "attention" not in applied:
        return ""
    return (
        "if these rows see no key: recognized attention gives 0 there, eager NaN or an average over hidden keys; to "
        'keep those, compile with passes=tw.pipeline().without("recognize"). If not: '
    )


def check_names(expected: Mapping[str, int] | None) -> None:
    """OptionError for patterns in `expect` that do not exist, and counts that are no whole numbers."""
    from tilewright.compiler.compilation import STRUCTURED
    from tilewright.passes.recognize import pattern_names

    known = sorted({*pattern_names(), *STRUCTURED})
    unknown = [name for name in expected or {} if name not in known]
    faults = [f"expect names {name!r}, which is no pattern" for name in unknown]
    faults += [
        f"expect[{name!r}] is {count!r}, not a count"
        for name, count in (expected or {}).items()
        if type(count) is not int or count < 0
    ]
    if faults:
        near = [match for name in unknown for match in difflib.get_close_matches(str(name), known, n=1)]
        hint = f"did you mean {', '.join(map(repr, near))}? " if near else ""
        raise OptionError(faults, step=f"{hint}the patterns are {', '.join(known)}")


def check_expected(expected: Mapping[str, int] | None, facts: Facts) -> None:
    """Raises ExpectationError unless every pattern was matched as often as `expect` says."""
    found = facts.patterns
    faults: list[str | Problem] = []
    for name, count in (expected or {}).items():
        if found.get(name, 0) == count:
            continue
        misses = [declined for declined in facts.refused if declined.by == "recognize"]
        near = f"; nearest miss: {misses[0].op}: {misses[0].reason} (at {misses[0].where})" if misses else ""
        faults.append(f"{name}: expected {count}, matched {found.get(name, 0)}{near}")
    if faults:
        asked = ", ".join(f'"{name}": {found.get(name, 0)}' for name in expected or {})
        raise ExpectationError(faults, step=f"if the model is meant so, write expect={{{asked}}}")


@dataclass
class FirstCall:
    """Compares the first call of a compiled program with the original model, then lets the model go.

    capture: captures the model again, for the search after a mismatch. options: as passes see them.
    """

    model: Any
    capture: Callable[[], Captured]
    target: Target
    options: CompileOptions

    def __repr__(self) -> str:
        return "<the first call will be compared with the model>"

    def __call__(self, compiled: Compiled, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        """The call's output, and a line on how far it is from the model's.

        Raises NumericMismatchError when results differ by more than rounding explains, naming the first stage, pass or
        kernel that does.
        """
        import torch
        from torch.utils import _pytree as pytree

        from tilewright.compiler.divergence import Case, first_difference
        from tilewright.compiler.reference_check import wrong_references
        from tilewright.frontend.fast_path import layer_by_layer
        from tilewright.frontend.huggingface import cacheless

        model = self.model.module() if isinstance(self.model, torch.export.ExportedProgram) else self.model
        # a model may write to its arguments and its buffers; the call that counts is the compiled one
        given, named = pytree.tree_map(_copied, (args, dict(kwargs)))
        tensors = [torch.as_tensor(t).clone() for t in compiled.code.program.signature.flatten(args, kwargs)]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        # what a compiled program leaves out, the model leaves out, too
        with torch.inference_mode(), cacheless(model, named), layer_by_layer():
            expected = pytree.tree_leaves(model(*given, **named))
            for buffer, value in buffers:
                buffer.copy_(value)
        output = compiled.executable(*args, **kwargs)
        faults: list[Problem] = []
        worst = bound = 0.0
        for i, (want, got) in enumerate(zip(expected, pytree.tree_leaves(output), strict=True)):
            if not isinstance(want, torch.Tensor):
                continue
            found, allowed = torch.as_tensor(got), self._bound(want)
            if fault := differs(want, found, allowed):
                faults.append(Problem(f"output {i}: {fault}"))
            elif (off := distance(want, found)) >= worst:
                worst, bound = off, allowed
        if faults:
            wanted = [value for value in expected if isinstance(value, torch.Tensor)]
            case = Case(self.capture, tensors, wanted, self.target, self.options)
            first = first_difference(case, self._bound)
            design = empty_rows(first.name, first.applied) if first else ""
            wrong = []
            if first is not None and first.stage == "capture":
                with torch.inference_mode(), cacheless(model, named):
                    given, named = pytree.tree_map(_copied, (args, dict(kwargs)))
                    wrong = wrong_references(model, given, named, self._apart)
                    for buffer, value in buffers:
                        buffer.copy_(value)
            if wrong:
                raise NumericMismatchError([*faults, *map(Problem, wrong)], step="correct it where it is registered")
            raise NumericMismatchError(
                [*faults, Problem(f"first in {first}" if first else "no step differs by itself")],
                step=f"{design}report it with the lines above"
                if first
                else "compile with cache=False: what was cached, or the weights, may not be this model's",
            )
        return output, f"the first call agrees with the model: off by {worst:.3g}, rounding explains {bound:.3g}"

    def _apart(self, wanted: Any, found: Any) -> str | None:
        return differs(wanted, found, self._bound(wanted))

    def _bound(self, expected: Any) -> float:
        return tolerance(expected, self.options.precision)


def tolerance(expected: Any, precision: str) -> float:
    """The largest difference that rounding explains: 512 units in the last place of f32 at the largest magnitude.

    Where operands are rounded to fewer digits, by precision or in the result itself, 16 units of those.
    """
    import torch

    if not expected.is_floating_point():
        return 0.0
    finite = expected[expected.isfinite()].double()
    size = finite.abs().max().item() if finite.numel() else 0.0
    narrow = torch.bfloat16 if precision == "bf16" else expected.dtype
    unit = 16 * torch.finfo(narrow).eps if narrow in (torch.bfloat16, torch.float16) else 0.0
    return max(512 * torch.finfo(torch.float32).eps, unit) * max(size, 1e-30)


def distance(wanted: Any, found: Any) -> float:
    """The largest absolute difference; NaN equals NaN, and infinite where shapes differ or one side is not finite."""
    import torch

    if tuple(wanted.shape) != tuple(found.shape):
        return math.inf
    if not wanted.numel():
        return 0.0
    a, b = wanted.detach().double(), found.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0.0, (a - b).abs().nan_to_num(math.inf, math.inf)).max())


def differs(wanted: Any, found: Any, bound: float) -> str | None:
    """How far two tensors are apart, where it is more than the bound; NaN equals NaN."""
    if wanted.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(wanted.shape)}"
    a, b = wanted.double(), found.double()
    unlike = ~((a - b).abs() <= bound) & (a != b) & ~(a.isnan() & b.isnan())
    if not unlike.any():
        return None
    odd = int((unlike & ~(a.isfinite() & b.isfinite())).sum())
    if odd:
        return f"{odd} elements are NaN or infinite on one side only"
    return f"largest difference {(a - b)[unlike].abs().max().item():.3g}, rounding explains {bound:.3g}"


def _copied(value: Any) -> Any:
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.clone() if isinstance(value, torch.Tensor) else value
