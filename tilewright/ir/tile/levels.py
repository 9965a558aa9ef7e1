"""What a kernel asks of a machine: FLOPs by unit and dtype, and the bytes that each level of memory gives and takes.

What loads and stores name is moved by the last level that fills itself. What passes a cache is modelled: it keeps the
data of the largest part of the loop nest that fits in it, walked in the grid's order, and what lies outside that part
is moved again for every step of a loop that moves it. That is what an ideal least-recently-used cache does with tiles
that are small beside it. Caches begin empty; parts of one buffer that windows share, or that two ops name, count twice,
up to the buffer's size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod

from xdsl.ir import Operation

from tilewright.ir.cost import Work
from tilewright.ir.machine import Level, Machine
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.spaces import Enumeration, Loop, Symbols, Term, exprs_of
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.traffic import KernelTraffic, OpTraffic
from tilewright.ir.types import TileType


@dataclass(frozen=True, slots=True)
class _Access:
    """One op's bytes of one buffer.

    path: its loops by name, in the order they run, outermost first. steps: of each, a mean where they vary. moves:
    whether another step of it names other bytes. bytes: of one innermost step.
    """

    buffer: int
    path: tuple[str, ...]
    steps: tuple[float, ...]
    moves: tuple[bool, ...]
    bytes: float

    def inside(self, depth: int) -> float:
        """Distinct bytes while the loops before `depth` stand still."""
        return self.bytes * prod(n for n, moves in zip(self.steps[depth:], self.moves[depth:], strict=True) if moves)

    def passed(self, depth: int) -> float:
        """Bytes that pass a cache which keeps what lies inside `depth`, from one step outside to the next, too."""
        outer = [i for i in range(depth) if self.moves[i]]
        return self.inside(depth) * prod(self.steps[: outer[-1] + 1] if outer else ())


def work_of(traffic: KernelTraffic, dims: Mapping[str, int], machine: Machine) -> Work:
    """The work of one launch at given dims. Raises IRError as `KernelTraffic.at`."""
    ops = list(traffic.kernel.walk())
    flops: defaultdict[tuple[str, str], float] = defaultdict(float)
    moved: defaultdict[str, float] = defaultdict(float)
    named = 0
    for op in traffic.ops:
        amount = op.at(dims)
        if op.quantity.kind in ("matrix", "vector"):
            flops[op.quantity.kind, _dtype(ops[op.quantity.op])] += amount
        elif op.quantity.kind == "stage":
            moved[op.quantity.level] += amount
        else:
            named += amount
    caches = machine.caches
    accesses = _accesses(traffic, ops, dims) if caches else []
    sizes = [buffer(value).bytes.evaluate(dims) for value in traffic.kernel.buffers]
    for level in caches:
        moved[machine.way(level)[-2].name] += min(_misses(accesses, sizes, level), named)
    moved[caches[-1].name if caches else machine.memory.name] += named
    return Work(dict(flops), dict(moved))


def programs_of(kernel: KernelOp, dims: Mapping[str, int]) -> int:
    """How many programs a launch at given dims has."""
    return prod(n.evaluate(dims) for n in kernel.programs)


def _dtype(op: Operation) -> str:
    """The dtype that decides the rate: of a product's factors; f64 where any value is."""
    names = [value.type.dtype.name for value in (*op.operands, *op.results) if isinstance(value.type, TileType)]
    if op.name in ("tile.dot", "tile.dot_scaled"):
        return names[0]
    return "f64" if "f64" in names else "f32"


def _misses(accesses: list[_Access], sizes: list[int], level: Level) -> float:
    """Bytes that pass a cache on their way in or out."""
    held: defaultdict[tuple[str, ...], defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for access in accesses:
        for depth in range(len(access.path) + 1):
            held[access.path[:depth]][access.buffer] += access.inside(depth)
    room = float("inf") if level.size is None else level.size
    fits = {
        path: sum(min(size, sizes[number]) for number, size in by_buffer.items()) <= room
        for path, by_buffer in held.items()
    }
    found = 0.0
    whole: defaultdict[int, float] = defaultdict(float)
    for access in accesses:
        kept = next((n for n in range(len(access.path) + 1) if fits[access.path[:n]]), None)
        if kept == 0:
            whole[access.buffer] += access.inside(0)
        elif kept is not None:
            found += access.passed(kept)
        else:
            # one tile does not fit: nothing of it is there when it is named again
            found += access.bytes * prod(access.steps)
    return found + sum(min(size, sizes[number]) for number, size in whole.items())


def _accesses(traffic: KernelTraffic, ops: list[Operation], dims: Mapping[str, int]) -> list[_Access]:
    found = []
    for op in traffic.ops:
        if op.quantity.buffer is None:
            continue
        # an index from memory may point anywhere: every step takes other bytes
        anywhere = isinstance(ops[op.quantity.op], (LookupOp, UpdateOp))
        for term in op.bounds or ():
            access = _access(traffic.kernel, op, term, dims, anywhere=anywhere)
            if access is not None:
                found.append(access)
    return found


def _access(kernel: KernelOp, op: OpTraffic, term: Term, dims: Mapping[str, int], *, anywhere: bool) -> _Access | None:
    """A term of what an op names in a buffer as an access; None where it moves nothing."""
    symbols, number = op.symbols, op.quantity.buffer
    assert number is not None  # what is read and written lies in a buffer
    counted = Enumeration(symbols, dims)
    total = counted.sum(term)
    if not total:
        return None
    # a term's loops over the grid keep the names they have in the order of axes, which is that of symbols
    names = list(symbols.loops)[: len(kernel.extents.data)]
    axes = {name: axis for axis, name in enumerate(names)}
    moving = _moving(term, symbols)
    path: list[str] = []
    steps: list[float] = []
    moves: list[bool] = []

    def add(name: str, count: float, loop: str) -> None:
        path.append(name)
        steps.append(count)
        moves.append(anywhere or loop in moving)

    present = {loop.name for loop in term.loops}
    programs = zip(names, kernel.programs, strict=True)
    left: list[float] = [n.evaluate(dims) if name in present else 1 for name, n in programs]
    for axis, size in kernel.loops:
        # the steps of a block are a mean: its last one may be short
        count = ceil(left[axis] / size) if size > 1 else left[axis]
        add(f"{names[axis]}:{size}", count, names[axis])
        left[axis] /= count
    points = prod(steps)
    for at, part in enumerate(term.path):
        if isinstance(part, Loop) and part.name not in axes:
            reached = counted.sum(Term(term.path[: at + 1], (), 1))
            add(part.name, reached / points, part.name)
            points = reached
    return _Access(number, tuple(path), tuple(steps), tuple(moves), total / points)


def _moving(term: Term, symbols: Symbols) -> frozenset[str]:
    """The loops whose steps name other bytes: those that a region speaks of, and those where such a loop begins."""
    found = symbols.variables(*(e for factor in term.factors for e in exprs_of(factor)))
    for loop in reversed(term.loops):
        if loop.name in found:
            found |= symbols.variables(loop.lo)
    return found
