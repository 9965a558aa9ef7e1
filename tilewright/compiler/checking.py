"""Checks a user can ask for: pattern counts that must hold, and the first call against the original model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.errors import ExpectationError, NumericMismatchError, Problem

if TYPE_CHECKING:
    from tilewright.compiler.compiled import Compiled


def check_expected(expected: Mapping[str, int] | None, facts: Mapping[str, Any]) -> None:
    """Raises ExpectationError unless every pattern was matched as often as `expect` says."""
    found: Mapping[str, int] = facts.get("patterns", {})
    faults: list[str | Problem] = []
    for name, count in (expected or {}).items():
        if found.get(name, 0) == count:
            continue
        misses = [r for r in facts.get("refused", []) if r["pass"] == "recognize"]
        near = f"; nearest miss: {misses[0]['op']}: {misses[0]['reason']} (at {misses[0]['where']})" if misses else ""
        faults.append(f"{name}: expected {count}, matched {found.get(name, 0)}{near}")
    if faults:
        asked = ", ".join(f'"{name}": {found.get(name, 0)}' for name in expected or {})
        raise ExpectationError(faults, step=f"if the model is meant so, write expect={{{asked}}}")


@dataclass
class FirstCall:
    """Compares the first call of a compiled program with the original model, then lets the model go.

    tensors: the model's own, by the names they were captured under.
    """

    model: Any
    tensors: Mapping[str, Any]

    def __call__(self, compiled: Compiled, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The call's output. Raises NumericMismatchError when results differ by more than rounding of their magnitude
        explains, naming the first op that does.
        """
        import torch
        from torch.utils import _pytree as pytree

        from tilewright.compiler.diverging import differs, first_difference

        model = self.model.module() if isinstance(self.model, torch.export.ExportedProgram) else self.model

        def fresh() -> tuple[tuple[Any, ...], dict[str, Any]]:
            # a model may write to its arguments
            copied: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(_copied, (args, dict(kwargs)))
            return copied

        buffers = [(b, b.clone()) for b in model.buffers()]
        given, named = fresh()
        with torch.inference_mode():
            expected = pytree.tree_leaves(model(*given, **named))
            _restore(buffers)
        given, named = fresh()
        output = compiled.executable(*args, **kwargs)
        faults: list[Problem] = []
        for i, (want, got) in enumerate(zip(expected, pytree.tree_leaves(output), strict=True)):
            if isinstance(want, torch.Tensor) and (fault := differs(want, torch.as_tensor(got))):
                faults.append(Problem(f"output {i}: {fault}"))
        if faults:
            # the kernels are run again from where the first call began
            compiled.reset()
            found = first_difference(compiled, model, self.tensors, given, named)
            with torch.inference_mode():
                _restore(buffers)
            raise NumericMismatchError(
                [*faults, *([found] if found is not None else [])],
                step="compile with verify_each='numeric' to see which pass is at fault, and report the lines above",
            )
        return output


def _copied(value: Any) -> Any:
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.clone() if isinstance(value, torch.Tensor) else value


def _restore(buffers: list[tuple[Any, Any]]) -> None:
    for buffer, value in buffers:
        buffer.copy_(value)
