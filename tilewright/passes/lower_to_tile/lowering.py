"""The pass: groups to kernels and launches. Equal groups lower once; equal kernels are one kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.errors import LoweringError
from tilewright.ir.backend import content_of, kernels_of
from tilewright.ir.dims import Expr
from tilewright.ir.graph.structure import FuncOp, GroupOp
from tilewright.ir.passing import Context, Pass
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.types import TensorType
from tilewright.passes.lower_to_tile.computed import computed
from tilewright.passes.lower_to_tile.frame import Lowered, Variant
from tilewright.passes.lower_to_tile.skeletons import lower_group
from tilewright.passes.lower_to_tile.states import settle_states
from tilewright.passes.rewriting import erase


@dataclass(frozen=True)
class LowerToTile(Pass):
    """Groups become tile kernels, shaped by the machine's tile rules, and launches of them."""

    name: ClassVar[str] = "lower-to-tile"
    needed: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("fuse|materialise",)

    def run(self, module: ModuleOp, ctx: Context) -> None:
        table = _Kernels(module)
        failed: list[LoweringError] = []
        for function in [op for op in module.body.block.ops if isinstance(op, FuncOp)]:
            settle_states(function, ctx)
            for group in [op for op in function.block.ops if isinstance(op, GroupOp)]:
                try:
                    lowered = table.lower(group, ctx)
                    computed(group, lowered, ctx.machine)
                except LoweringError as error:
                    failed.append(error)
                    continue
                launches: list[LaunchOp] = []
                results = _launched(lowered, group, launches)
                function.block.insert_ops_before(launches, group)
                for old, new in zip(group.outs, results, strict=False):
                    old.replace_all_uses_with(new)
                erase(group)
        if failed:
            problems = dict.fromkeys(problem for error in failed for problem in error.problems)
            raise LoweringError(list(problems), step="; ".join(dict.fromkeys(error.step for error in failed)))


class _Kernels:
    """Kernels made so far, by group and by their own content."""

    def __init__(self, module: ModuleOp) -> None:
        self.module = module
        self.by_group: dict[tuple[object, ...], Lowered] = {}
        self.by_content: dict[str, KernelOp] = {}
        self.names = set(kernels_of(module))

    def lower(self, group: GroupOp, ctx: Context) -> Lowered:
        key = _content(group)
        found = self.by_group.get(key)
        if found is None:
            found = self._kept(lower_group(group, self._name(group), ctx))
            self.by_group[key] = found
        return found

    def _kept(self, made: Lowered) -> Lowered:
        first = None if made.first is None else self._kept(made.first)
        return replace(made, variants=tuple(self._keep(v) for v in made.variants), first=first)

    def _keep(self, variant: Variant) -> Variant:
        content = content_of(variant.kernel)
        kernel = self.by_content.get(content)
        if kernel is None:
            kernel = self.by_content[content] = variant.kernel
            self.module.body.block.add_op(kernel)
        return Variant(kernel, variant.limit)

    def _name(self, group: GroupOp) -> str:
        base = re.sub(r"\W+", "_", group.label.data or group.kind.data).strip("_") or "kernel"
        name, n = base, 2
        while name in self.names:
            name, n = f"{base}_{n}", n + 1
        self.names.add(name)
        return name


def _launched(lowered: Lowered, group: GroupOp, launches: list[LaunchOp]) -> list[SSAValue]:
    """The results of the last of a group's launches, which are added to `launches`."""
    before = [] if lowered.first is None else _launched(lowered.first, group, launches)
    read = [arg for i, arg in enumerate(group.args) if i not in lowered.changed]
    launch = LaunchOp.make(
        [*read, *before, *(group.args[i] for i in lowered.changed)],
        result_types=[_results(lowered)],
        callees=[v.kernel.sym_name.data for v in lowered.variants],
        guard=[lowered.guard],
        limits=[v.limit for v in lowered.variants if v.limit is not None],
        dims=[Expr.of(d) for d in lowered.dims],
        updates=lowered.variants[0].kernel.updates,
        like=group,
    )
    launches.append(launch)
    return list(launch.outputs)


def _results(lowered: Lowered) -> list[TensorType]:
    """What a launch writes: the group's results, and memory that the kernel asked for beside them."""
    kernel = lowered.variants[0].kernel
    written = [buffer(v) for v in kernel.buffers[len(kernel.inputs) :]]
    return [TensorType.of(b.dims, b.dtype) for b in written]


def _content(group: GroupOp) -> tuple[object, ...]:
    """All of a group but names and source locations, values by number: equal content lowers to equal kernels."""
    numbers: dict[SSAValue, int] = {}
    rows: list[object] = []
    for op in group.walk():
        operands = () if op is group else tuple([numbers[value] for value in op.operands])
        kept = sorted(name for name in op.properties if op is not group or name != "name")
        for block in (block for region in op.regions for block in region.blocks):
            for argument in block.args:
                numbers[argument] = len(numbers)
            rows.append(tuple([argument.type for argument in block.args]))
        for result in op.results:
            numbers[result] = len(numbers)
        types = tuple([result.type for result in op.results])
        rows.append((type(op), operands, types, tuple([(name, op.properties[name]) for name in kept])))
    return tuple(rows)
