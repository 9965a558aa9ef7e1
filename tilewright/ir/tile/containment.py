"""Whether kernels stay inside their buffers: every view, for the dims of every launch.

Loads and stores clip to their view, so a kernel touches its buffers' elements and no others if every `tile.view` lies
inside its buffer: with extents e, strides s and an offset o, the elements from o + sum of (e - 1) * s over negative
strides up to o + the same sum over the others. A view with an extent of 0 has no elements, so each extent is taken to
be 1 or more in the proof; so is each of the grid's, without which no program runs.

Windows, rows, pages and segments end in plain views, and their lowering checks each coordinate against the extents of
the view below at run time: whatever an index in memory says, an access lies inside the plain view or does not happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tilewright.errors import Problem
from tilewright.ir.attributes import Dims
from tilewright.ir.dims import Expr, ExprLike, product
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.intervals import Interval
from tilewright.ir.module import dim_space, functions
from tilewright.ir.proofs import Assumptions
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.memory import ViewOp
from tilewright.ir.tile.ranges import MOST, divisors, overflowing
from tilewright.ir.tile.structure import KernelOp, LaunchOp


def unproved(module: ModuleOp, facts: Sequence[Expr] = ()) -> list[Problem]:
    """What is not proved of the accesses of the module's kernels; its launches must be verified.

    facts: expressions of the program's dims that are 0 or more in every call, beyond the dims' bounds.
    """
    kernels = {op.sym_name.data: op for op in module.walk() if isinstance(op, KernelOp)}
    program = Assumptions.of(dim_space(module).bounds, facts)
    launched: dict[str, dict[tuple[Expr, ...], None]] = {}
    problems = []
    for function in functions(module).values():
        for op in function.block.ops:
            problems += [Problem(text, op=op.name) for text in _values(op, program)]
            if isinstance(op, LaunchOp):
                for name in op.callees.data:
                    launched.setdefault(name, {})[op.dims.data] = None
    for name, found in launched.items():
        problems += _kernel(kernels[name], list(found), program)
    return problems


def _values(op: Operation, program: Assumptions) -> Iterator[str]:
    """What is not proved of the memory that one op of a function names: sizes, and that reshapes keep them."""
    sizes = [d for result in op.results for d in tensor(result).dims]
    if isinstance(op, LaunchOp):
        sizes += op.dims.data
        yield from (f"the guard divides by {d}" for d in divisors(op.guard.data) if (d.constant or 0) < 1)
    for d in dict.fromkeys(sizes):
        # quotients and remainders have a value for divisors of 1 or more alone
        if not program.nonnegative(d) or not all(program.at_least(by, 1) for by in divisors([d])):
            yield f"its size {d} may be negative"
        if (program.interval(d)[1] or 0) > MOST:
            yield f"its size {d} may be larger than any memory"
    if isinstance(op, ReshapeOp):
        gap = product(tensor(op.out).dims) - product(tensor(op.x).dims)
        if not (program.nonnegative(gap) and program.nonnegative(-gap)):
            yield f"{op.out.type} is not proved to have the elements of {op.x.type}"


def _kernel(kernel: KernelOp, launched: Sequence[tuple[Expr, ...]], program: Assumptions) -> Iterator[Problem]:
    names = kernel.dims.data
    views = {_Region.of(op): op for op in kernel.walk() if isinstance(op, ViewOp)}
    # most views are inside for any sizes; what is not proved so is tried for each launch
    anyhow: Mapping[str, Interval] = dict.fromkeys(names, (0, None))
    left = [region for region in views if not region.inside({}, kernel, anyhow, ())]
    for region in left:
        for dims in launched if names else ():
            actual = _actual(kernel, dims)
            if not region.inside(actual, kernel, program.bounds, program.facts):
                with_dims = " with " + ", ".join(f"{n} = {e}" for n, e in actual.items())
                yield _outside(region, views[region], kernel, with_dims)
                break
        if not names:
            yield _outside(region, views[region], kernel, "")
    bounds = {n: _joined([program.interval(dims[i]) for dims in launched]) for i, n in enumerate(names)}
    yield from overflowing(kernel, bounds)
    for op in kernel.walk():
        stated = [e for a in op.properties.values() if isinstance(a, Dims) for e in a.data]
        for by in divisors(stated):
            # operands of an index expression are no sizes: nothing is known of them
            sizes = not by.symbols - set(names)
            if not sizes or not all(program.at_least(by.substitute(_actual(kernel, d)), 1) for d in launched):
                yield Problem(f"divides by {by}, which may be 0 or less", op=f"{op.name} in @{kernel.sym_name.data}")


def _actual(kernel: KernelOp, dims: Sequence[Expr]) -> dict[str, ExprLike]:
    """What a kernel's dims are in a launch."""
    return dict(zip(kernel.dims.data, dims, strict=True))


def _outside(region: _Region, op: ViewOp, kernel: KernelOp, with_dims: str) -> Problem:
    return Problem(
        f"{region} is not proved to lie inside {buffer(op.source)}{with_dims}",
        op=f"{op.name} in @{kernel.sym_name.data}",
        where=op.loc,
    )


def _joined(intervals: Sequence[Interval]) -> Interval:
    lows, highs = [low for low, _ in intervals], [high for _, high in intervals]
    low = min((x for x in lows if x is not None), default=None) if None not in lows else None
    return low, (max(x for x in highs if x is not None) if None not in highs else None)


@dataclass(frozen=True, slots=True)
class _Region:
    """What a view covers of a buffer of `size` elements."""

    extents: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    offset: Expr
    size: Expr

    @staticmethod
    def of(op: ViewOp) -> _Region:
        return _Region(op.extents.data, op.strides.data, op.offset.data[0], product(buffer(op.source).dims))

    def __str__(self) -> str:
        def listed(values: Sequence[Expr]) -> str:
            return "[" + ", ".join(map(str, values)) + "]"

        return f"{listed(self.extents)} with strides {listed(self.strides)} from {self.offset}"

    def inside(
        self, actual: Mapping[str, ExprLike], kernel: KernelOp, bounds: Mapping[str, Interval], facts: Sequence[Expr]
    ) -> bool:
        """Whether the first element is proved to be 0 or more and the last below the size.

        actual: what the kernel's dims are; bounds, facts: of the symbols left.
        """
        extents, strides = ([e.substitute(actual) for e in side] for side in (self.extents, self.strides))
        grid = [e.substitute(actual) - 1 for e in kernel.extents.data]
        known = Assumptions.of(bounds, [*facts, *grid, *(e - 1 for e in extents)])
        first = last = self.offset.substitute(actual)
        for extent, stride in zip(extents, strides, strict=True):
            reach = (extent - 1) * stride
            if extent.constant == 1:
                continue
            if known.nonnegative(stride):
                last = last + reach
            elif known.nonnegative(-stride):
                first = first + reach
            else:
                return False
        return known.nonnegative(first) and known.at_least(self.size.substitute(actual) - last, 1)
