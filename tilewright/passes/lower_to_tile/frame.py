"""What every skeleton starts with: a kernel's buffers and merged axes; and the finished launch's parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import DimSpace, Expr, product
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import Space
from tilewright.passes.lower_to_tile.layout import Strides, strides_of


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel and the largest value of the launch's guard it serves (None: any)."""

    kernel: KernelOp
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Lowered:
    """A group's kernels: variants in order, the dims they take, and the quantity that picks one.

    changed: the numbers of the group's arguments that the kernels change in place, one for each output that they do so
    to; the other arguments are the kernels' inputs, in order. first: what runs before, with the same arguments; its
    results follow them as inputs of these kernels.
    """

    variants: tuple[Variant, ...]
    dims: tuple[str, ...]
    guard: Expr
    changed: tuple[int, ...] = ()
    first: Lowered | None = None


def by_size(
    group: GroupOp, machine: Machine, dims: DimSpace, name: str, build: Callable[[str, bool], KernelOp]
) -> Lowered:
    """A kernel, and one that writes past the caches where the group's results can be as large as the machine asks for
    that. build: makes one of a name, and whether it streams.
    """
    size = sum((product(tensor(v).dims) * tensor(v).dtype.bytes for v in group.yielded), Expr.of(0))
    low, high = dims.interval(size)
    least = machine.rules.streaming
    variants = []
    if least is None or low is None or low < least:
        variants.append(Variant(build(name, False)))
    if least is not None and (high is None or high >= least):
        if variants:
            variants = [Variant(variants[0].kernel, least - 1)]
        variants.append(Variant(build(f"{name}_streamed", True)))
    return Lowered(tuple(variants), tuple(variants[0].kernel.dims.data), size if len(variants) > 1 else Expr.of(0))


def dims_of(group: GroupOp) -> tuple[str, ...]:
    """The symbols a group's types and ops speak of, sorted: the kernel's formal dims."""
    from tilewright.ir.attributes import Dims

    found: set[str] = set()
    for value in (*group.block.args, *(r for op in group.block.ops for r in op.results)):
        found |= {s for d in tensor(value).dims for s in d.symbols}
    for op in group.block.ops:
        for attribute in op.properties.values():
            if isinstance(attribute, Dims):
                found |= {s for e in attribute.data for s in e.symbols}
    return tuple(sorted(found))


def begin(
    group: GroupOp, name: str, more: Callable[[KernelBuilder], None] | None = None
) -> tuple[KernelBuilder, dict[SSAValue, SSAValue], list[SSAValue]]:
    """A builder with the group's arguments as buffers and its results as outputs. more: declares further inputs."""
    b = KernelBuilder(name, dims_of(group), like=group)
    buffers: dict[SSAValue, SSAValue] = {arg: b.buffer(tensor(arg).dims, tensor(arg).dtype) for arg in group.block.args}
    if more is not None:
        more(b)
    outputs = [b.output(tensor(v).dims, tensor(v).dtype) for v in group.yielded]
    return b, buffers, outputs


def all_strides(space: Space, group: GroupOp) -> dict[SSAValue, Strides]:
    """Strides of every argument and result of a group."""
    return {v: strides_of(space, v) for v in (*group.block.args, *group.yielded)}


def padded(extent: int, lanes: int) -> int:
    """The extent rounded up to whole vectors."""
    return -(-extent // lanes) * lanes
