"""verify_each="numeric": the module is run before and after every pass on the same random values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.checking import empty_rows
from tilewright.errors import NumericMismatchError, Problem
from tilewright.ir.equivalence import compare, depth, draw_values, narrowest, outcome, size_list, unit_of, width
from tilewright.ir.passing import Context, Pass

if TYPE_CHECKING:
    import torch


class NumericCheck:
    """Compares what a module computes before and after each pass, at the least sizes and at drawn ones.

    The runs are compared in float64 and in the declared dtypes. The bound is rounding: unit of the narrowest float *
    ops * longest reduction of the module as it was first seen.
    Raises NumericMismatchError naming the pass, the result and the sizes.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._values: list[tuple[Mapping[str, int], dict[str, dict[str, torch.Tensor]], int]] = []
        self._before: list[dict[bool, dict[str, torch.Tensor]]] = []
        self._unit = 0.0

    @contextmanager
    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> Iterator[None]:
        """Runs the module after a pass, and before the first one."""
        if not self._values:
            rng = np.random.default_rng(self.seed)
            for sizes in size_list(module, None, rng)[:2]:
                terms = depth(module) * width(module, sizes)
                self._values.append((sizes, draw_values(module, sizes, rng), terms))
            self._before = self._outcomes(module)
            self._unit = unit_of(narrowest(module))
        yield
        # what a pass left malformed has no outcome: the verifier says it better
        module.verify()
        after = self._outcomes(module)
        self._unit = max(self._unit, unit_of(narrowest(module)))
        for (sizes, _, terms), old, new in zip(self._values, self._before, after, strict=True):
            for wide in old.keys() & new.keys():
                unit = 2.0**-52 if wide else self._unit
                for name, wanted in old[wide].items():
                    self._compare(p, ctx, name, wanted, new[wide][name], terms * unit, sizes)
        self._before = after

    def _outcomes(self, module: ModuleOp) -> list[dict[bool, dict[str, torch.Tensor]]]:
        return [{wide: outcome(module, given, wide) for wide in (True, False)} for _, given, _ in self._values]

    def _compare(
        self,
        p: Pass,
        ctx: Context,
        name: str,
        wanted: torch.Tensor,
        found: torch.Tensor,
        slack: float,
        sizes: Mapping[str, int],
    ) -> None:
        try:
            compare(name, wanted, found, slack, False, f"sizes {dict(sizes)}, seed {self.seed}")
        except NumericMismatchError as fault:
            raise NumericMismatchError(
                [Problem(problem.text, op=f"after {p.name}") for problem in fault.problems],
                step=empty_rows(p.name, [a.what for a in ctx.applied if a.pass_name == p.name])
                + f"tilewright opt FILE -p '{p}' --verify-each=numeric --remarks, on the IR before this pass",
            ) from fault
