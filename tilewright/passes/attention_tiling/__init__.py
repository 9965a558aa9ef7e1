"""attention-tiling: how each attention is tiled, chosen by what the tilings move and how long that takes.

Every loop order with every tile that the machine could hold is counted in closed form (`tilings.py`) at one set of
sizes, and the report has them all beside the lower bound. What a machine cannot run, or what would change the order of
sums that determinism promises, is refused with its reason and its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Final

from xdsl.dialects.builtin import ModuleOp

from tilewright.errors import CapacityError, PassOptionError, Problem
from tilewright.ir.choices import Candidate
from tilewright.ir.compile_options import OBJECTIVES
from tilewright.ir.dims import DimSpace
from tilewright.ir.dtypes import F64
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import FuncOp, GroupOp
from tilewright.ir.machine import Level, Machine
from tilewright.ir.passing import Context, Pass
from tilewright.ir.schedules import ORDERS
from tilewright.passes.attention_tiling.bounds import bounds_of, compulsory
from tilewright.passes.attention_tiling.sizes import Sizes, shared_by_queries
from tilewright.passes.attention_tiling.tilings import Tiling
from tilewright.passes.attention_tiling.variants import Tile, block_for

# the size that a dim without an upper bound is judged at
OPEN: Final = 2048

AUTO: Final = "auto"

_PAIRS: Final = ("once", "each")
_BLOCKS: Final = (16, 256)  # the fewest and the most rows of a tile of queries that is considered
_BANDS: Final = 4  # the most that a tile has on a matrix unit: they are unrolled, and eight take seconds to compile


@dataclass(frozen=True)
class AttentionTiling(Pass):
    """Loop order and tiles of every attention, by predicted time or by bytes moved.

    order, block_q, block_k, heads, part, pairs: stated instead of chosen, where they are not "auto" or 0. pairs: "once"
    or "each", whether keys and values are brought into a matrix unit's pairs before, or by each tile of queries.
    objective: "time" or "io", "auto" for the compilation's.
    """

    name: ClassVar[str] = "attention-tiling"
    requires: ClassVar[tuple[str, ...]] = ("fuse|materialise",)
    least: ClassVar[Mapping[str, int]] = {"block_q": 0, "block_k": 0, "heads": 0, "part": 0}
    order: str = AUTO
    block_q: int = 0
    block_k: int = 0
    heads: int = 0
    part: int = 0
    pairs: str = AUTO
    objective: str = AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, allowed in (("order", ORDERS), ("objective", OBJECTIVES), ("pairs", _PAIRS)):
            value = getattr(self, option)
            if value != AUTO and value not in allowed:
                raise PassOptionError(
                    f"{self.name}: {option}={value} is not one of {', '.join(allowed)}",
                    step=f"write {option}={allowed[0]}",
                )

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in [op for op in module.body.block.ops if isinstance(op, FuncOp)]:
            for group in [op for op in function.block.ops if isinstance(op, GroupOp)]:
                anchor = next((op for op in group.block.ops if isinstance(op, AttentionOp)), None)
                if anchor is not None and group.kind.data == "attention" and _countable(anchor):
                    self._choose(group, anchor, ctx)

    def _choose(self, group: GroupOp, op: AttentionOp, ctx: Context) -> None:
        dims = judged_at(op, ctx.dims)
        sizes = [Sizes.of(op, chosen) for chosen in dims]
        pairs = self._pairs(op, sizes[0], ctx.machine)
        tilings = list(zip(*(self._tilings(s, sizes[0], ctx.machine, pairs) for s in sizes), strict=True))
        candidates = [_candidate(at, ctx, asked=self.order != AUTO) for at in tilings]
        chosen = ctx.choose(
            op, candidates, sizes=dims, objective=None if self.objective == AUTO else self.objective,
            facts=_facts(sizes[0], ctx.machine),
        )  # fmt: skip
        if chosen is not None:
            told = ", ".join(f"{name} {value}" for name, value in chosen.schedule.data)
            if ctx.apply([op], f"tiled: {told}"):
                group.properties["schedule"] = chosen.schedule
            return
        self._complain(op, [at[0] for at in tilings], candidates, ctx.machine)
        ctx.refuse(op, "no tiling that was counted has a kernel: it is tiled by the lowering's own rule")

    @property
    def _stated(self) -> bool:
        return self.order != AUTO or any((self.block_q, self.block_k, self.heads, self.part))

    def _pairs(self, op: AttentionOp, sizes: Sizes, machine: Machine) -> tuple[bool, ...]:
        """Whether tilings are considered whose pairs are made before, and those whose tiles make them."""
        unit = machine.rules.attention_unit(
            sizes.features, sizes.value_features, sizes.dtype.name, self.block_k or _segment(sizes, machine)
        )
        possible = unit is not None and shared_by_queries(op) and self.order in (AUTO, "query-outer")
        if self.pairs == "once" and not possible:
            why = "no matrix unit takes its products" if unit is None else "its queries do not share keys and values"
            why = why if self.order in (AUTO, "query-outer") else f"order={self.order} reads each key once"
            raise PassOptionError(
                Problem(f"{self}: pairs are not made before: {why}", op=op.name, where=op.loc),
                step=f"write {self.name}{{pairs=each}}",
            )
        return {AUTO: (False, True) if possible else (False,), "once": (True,), "each": (False,)}[self.pairs]

    def _tilings(self, sizes: Sizes, largest: Sizes, machine: Machine, pairs: tuple[bool, ...]) -> Iterator[Tiling]:
        """Every order with every tile, the same for all sizes up to the largest; what is stated is taken as it is.

        Packed heads come first: where no size that is judged has one query, they tie with others, and cost nothing.
        """
        segment = _segment(sizes, machine)
        blocks = (self.block_q,) if self.block_q else _blocks(sizes, machine)
        for order in ORDERS if self.order == AUTO else (self.order,):
            part = 0 if order == "query-outer" else self.part or machine.rules.key_part
            for heads in (self.heads,) if self.heads else sorted({1, largest.group}, reverse=True):
                for block in blocks:
                    for once in pairs if order == "query-outer" else (False,):
                        variant = block_for(machine.rules, block, heads, sizes.queries, paired=once)
                        keys = self.block_k or segment
                        yield Tiling(sizes, order, block, keys, heads, part, variant=variant, pairs=once)

    def _complain(self, op: AttentionOp, tilings: list[Tiling], candidates: list[Candidate], machine: Machine) -> None:
        """An error where what cannot be taken was asked for."""
        if not self._stated:
            return
        for room in rooms(machine):
            if all(room.needs(t) > room.size for t in tilings):
                least = min(tilings, key=room.needs)
                raise self._too_large(op, least, room, _segment(least.sizes, machine))
        reasons = list(dict.fromkeys(c.refused for c in candidates if c.refused is not None))
        raise PassOptionError(
            [Problem(f"{self}: {reason}", op=op.name, where=op.loc) for reason in reasons],
            step="write attention-tiling without options to see what it chooses, and what from, in the report",
        )

    def _too_large(self, op: AttentionOp, least: Tiling, room: Room, segment: int) -> CapacityError:
        """The tiles that were asked for, and the largest that fit."""
        rows = "\n".join(f"    {t.name}: {t.rows} rows of {t.row} bytes, {n} bytes" for t, n in room.tiles(least))
        smaller = (replace(least, block_q=n) for n in range(least.block_q - 1, 0, -1))
        fits = next((t.block_q for t in smaller if room.needs(t) <= room.size), None)
        return CapacityError(
            Problem(
                f"tiles of {self} need {room.needs(least)} bytes; {room.name} holds {room.size}\n{rows}",
                op=op.name,
                where=op.loc,
            ),
            step=f"write block-q={fits} or less" if fits else f"write block-k={segment}",
        )


@dataclass(frozen=True)
class Room:
    """Memory that a program's tiles must fit. tiles: of a tiling there, with the bytes of each."""

    name: str
    size: int
    tiles: Callable[[Tiling], Iterable[tuple[Tile, int]]]

    def needs(self, tiling: Tiling) -> int:
        """Bytes."""
        return sum(size for _, size in self.tiles(tiling))


def rooms(machine: Machine) -> list[Room]:
    """The level that is filled by name, and the memory that a program has for itself, where a machine has them."""
    level, found = holding(machine), []
    if level is not None and level.size is not None:
        found.append(Room(level.name, level.size, partial(Tiling.near, level=level)))
    if machine.rules.scratch is not None:
        found.append(
            Room("a program's own memory", machine.rules.scratch, partial(Tiling.private, rules=machine.rules))
        )
    return found


def judged_at(op: AttentionOp, space: DimSpace) -> list[dict[str, int]]:
    """The sizes that tilings are judged at: the largest that are declared, `OPEN` where there is no bound, then a
    fourth and a sixteenth of them, as far as they are in range. One schedule serves the whole range."""
    names = sorted({s for value in op.operands for d in tensor(value).dims for s in d.symbols})
    bounds = {name: space.interval(name) for name in names}
    found: list[dict[str, int]] = []
    for part in (1, 4, 16):
        sizes = {}
        for name, (low, high) in bounds.items():
            least = max(low or 0, 1)
            sizes[name] = max((max(least, OPEN) if high is None else high) // part, least)
        if sizes not in found:
            found.append(sizes)
    return found


def _candidate(at: tuple[Tiling, ...], ctx: Context, *, asked: bool) -> Candidate:
    """One tiling at each of the sizes. asked: whether its order is stated."""
    first = at[0]
    return Candidate(
        first.schedule,
        tuple(t.work(ctx.machine) for t in at),
        tuple(t.seconds(ctx.machine) for t in at),
        refusal(first, ctx, asked=asked),
        {"named": first.named, **first.streams},
    )


def refusal(tiling: Tiling, ctx: Context, *, asked: bool = False) -> str | None:
    """Why a tiling cannot be taken; None where it can. asked: whether somebody wants its order, whatever it takes."""
    machine, sizes = ctx.machine, tiling.sizes
    if tiling.block_q < machine.rules.dot_least:
        return f"products have {machine.rules.dot_least} rows at least"
    if sizes.group % tiling.heads:
        return f"{tiling.heads} heads do not divide the {sizes.group} of a key head"
    if tiling.heads not in (1, sizes.group):
        return f"a tile has one query head or all {sizes.group} of a key head"
    for room in rooms(machine):
        if room.needs(tiling) > room.size:
            return f"its tiles need {room.needs(tiling)} bytes, {room.name} holds {room.size}"
    batch = ctx.options.determinism in ("batch", "exact")
    segment = _segment(sizes, machine)
    if batch and tiling.block_k != segment:
        return f"determinism={ctx.options.determinism} adds keys in segments of {segment}"
    return _refused_parts(tiling, ctx, asked=asked) if tiling.apart else None


def _refused_parts(tiling: Tiling, ctx: Context, *, asked: bool) -> str | None:
    """Why keys cannot be cut so."""
    part, own = tiling.part, ctx.machine.rules.key_part
    if ctx.options.determinism in ("batch", "exact") and part != own:
        return f"determinism={ctx.options.determinism} merges parts of {own} keys, not of {part}"
    if part % tiling.block_k:
        return f"parts of {part} keys are not whole segments of {tiling.block_k}"
    least = compulsory(tiling.sizes)
    # memory grows with the number of parts, which is no question of time: it is for whoever states the order
    if tiling.sums > least and not asked:
        return f"the sums of all parts take {tiling.sums} bytes of memory, q, k, v and the results {least}"
    return None


def _blocks(sizes: Sizes, machine: Machine) -> list[int]:
    """Rows of tiles of queries to consider, ascending: the machine's own, and what a product keeps in registers times
    powers of two or halved, so that no product of a whole tile leaves a lower rest."""
    rules, (least, most) = machine.rules, _BLOCKS
    if sizes.packed:
        # a tile walks the keys of all sequences that it has queries of: it is no taller than what keys go by
        most = max(least, _segment(sizes, machine))
    unit = rules.attention_unit(sizes.features, sizes.value_features, sizes.dtype.name, _segment(sizes, machine))
    rows = rules.dot[-1][1]
    if unit is not None:
        rows, most = unit.rows, min(most, _BANDS * unit.band)
    while rows % 2 == 0 and rows > least:
        rows //= 2
    multiples = (rows << i for i in range(most.bit_length()))
    found = {n for n in (rules.query_block, *multiples) if max(least, rules.dot_least) <= n <= most}
    return sorted(found)


def _segment(sizes: Sizes, machine: Machine) -> int:
    return machine.rules.segment(sizes.features, sizes.value_features, sizes.dtype.name)


def holding(machine: Machine) -> Level | None:
    """The level that a program's tiles must fit: the last that is filled by name on the way to products. A cache need
    not hold them; that it does not costs time."""
    return machine.nearest("matrix", kind="explicit")


def _countable(op: AttentionOp) -> bool:
    """Whether the op's head dims are numbers and its dtype has a kernel; the lowering says so of others."""
    q, v = tensor(op.q), tensor(op.v)
    return q.dims[-1].constant is not None and v.dims[-1].constant is not None and q.dtype is not F64


def _facts(sizes: Sizes, machine: Machine) -> dict[str, Any]:
    """What no tiling changes: the sizes, and the lower bounds."""
    return {
        "attention": asdict(sizes),
        "pairs": sizes.batch * sizes.heads * sizes.seen,
        "compulsory": compulsory(sizes),
        "bounds": bounds_of(sizes, machine),
    }
