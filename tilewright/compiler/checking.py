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
        listed = ", ".join(f"{n}: {c}" for n, c in found.items()) or "none"
        raise ExpectationError(faults, step=f"patterns matched: {listed}")


@dataclass
class FirstCall:
    """Compares the first call of a compiled program with the original model, then lets the model go."""

    model: Any

    def __call__(self, compiled: Compiled, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raises NumericMismatchError when results differ by more than f32 rounding of their magnitude explains."""
        import torch
        from torch.utils import _pytree as pytree

        copied = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (args, dict(kwargs)))
        with torch.inference_mode():
            expected = pytree.tree_leaves(self.model(*copied[0], **copied[1]))
        actual = pytree.tree_leaves(compiled.executable(*args, **kwargs))
        faults = []
        for i, (want, got) in enumerate(zip(expected, actual, strict=False)):
            if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
                continue
            bound = tolerance(want)
            worst = (want.double() - got.double()).abs().max().item() if want.numel() else 0.0
            if not worst <= bound and not torch.equal(want.isnan(), got.isnan() & want.isnan()):
                faults.append(f"output {i}: largest difference {worst:.3g}, bound {bound:.3g}")
        if faults:
            raise NumericMismatchError(
                faults, step="tilewright check names the first op that differs; report the model"
            )


def tolerance(expected: Any) -> float:
    """The largest difference that rounding explains: 4096 units in the last place of the largest magnitude."""
    import torch

    if not expected.is_floating_point():
        return 0.0
    finite = expected[expected.isfinite()]
    size = finite.abs().max().item() if finite.numel() else 0.0
    return (
        4096 * torch.finfo(expected.dtype if expected.dtype != torch.float64 else torch.float32).eps * max(size, 1e-30)
    )
