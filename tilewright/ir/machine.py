"""A machine as data: what passes may know about hardware, and all that they may know.

A CPU's machine is a *class* (vector features, cache sizes, cores, rates of a nominal clock), never a measurement.
Passes choose by predicted times: what times are predicted from decides code and is part of the cache key, and the same
inputs give the same artifact anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from math import lcm
from typing import Any, Literal

from tilewright.errors import BackendManifestError
from tilewright.ir.cost import Work


@dataclass(frozen=True, slots=True)
class Unit:
    """What computes: a matrix unit, a vector unit; units work at the same time.

    rates: FLOP/s of one core by dtype of the factors; a dtype that is not listed runs at the rate of f32. reaches: the
    levels it takes operands from.
    """

    name: str
    rates: Mapping[str, float]
    reaches: tuple[str, ...]

    def rate(self, dtype: str) -> float:
        """FLOP/s of one core on factors of a dtype."""
        return self.rates.get(dtype, self.rates["f32"])


_FIRST_LEVEL = 32 << 10  # bytes, where a machine does not tell


@dataclass(frozen=True, slots=True)
class Level:
    """One level of memory, from the largest (main memory) to the smallest.

    size: bytes (None: as much as the host has). bandwidth: bytes a second between it and the levels and units that it
    feeds. shared: whether all cores have one, whose size and bandwidth are the whole device's; otherwise each has its
    own, and both figures are one core's (of main memory, the bandwidth). kind: "cached" fills itself, "explicit" is
    filled by named transfers (a scratchpad), "registers" holds what a program computes with. alignment: bytes that a
    row in it is padded to. source: the level it is filled from; None: the one before it.
    """

    name: str
    size: int | None
    bandwidth: float
    kind: Literal["cached", "explicit", "registers"] = "cached"
    alignment: int = 1
    shared: bool = False
    source: str | None = None

    def takes(self, rows: int, row: int) -> int:
        """Bytes that rows of `row` bytes each take in it."""
        return rows * (row + -row % self.alignment)


@dataclass(frozen=True, slots=True)
class MatrixUnit:
    """Registers of matrices and the instruction that multiplies them: sum [rows, columns] += left [rows, depth] times
    right [depth, columns], the right one in pairs of k, [depth/2, columns, 2].

    dtype: of the factors, by name; sums are f32. rows, columns, depth: the largest a register takes; one may be told to
    have fewer rows. registers: how many there are. keys: of a segment of an attention whose products it takes.
    packing: FLOPs of the vector unit whose time an element takes to be brought into pairs. idle: vectors that
    may be handled between two products before the unit falls asleep; None: it does not.
    """

    dtype: str
    rows: int
    columns: int
    depth: int
    registers: int
    keys: int = 64
    packing: float = 0.0
    idle: int | None = None

    @property
    def band(self) -> int:
        """Rows that go through an attention's products and softmax together: a block of two registers by two.

        With twice as many, logits and weights no longer stay in the first-level cache: 2.98 ms instead of 2.64 where
        four heads of 2048 queries meet as many keys of 64 features.
        """
        return 2 * self.rows


@dataclass(frozen=True, slots=True)
class TileRules:
    """What shapes tiles may take on a machine, and which ops it has natively.

    lanes: f32 elements of one vector. registers: vectors a program may hold. dot: (rows, vectors) register tiles by the
    number of rows a kernel has, ascending: ((4, 4, 2), (16, 8, 2), (None, 14, 2)) reads "up to 4 rows: 4 by 2 vectors;
    up to 16: 8 by 2; more: 14 by 2". panel: columns of a packed matrix operand. reduction_chunk: k elements accumulated
    before a chunk's sum joins the total. logit_chain: the most features that are one chain of multiply-adds in a
    logit of attention. block: rows that a stretch of a panel meets while the next one comes from
    memory, sums kept in the cache between stretches (0: the register tile's rows meet all of k at once). near: bytes of
    the cache that blocks are made for, from which products gain (None: all). key_segment: keys of one attention
    segment. key_part: keys of a part, whose segments continue one sum before parts are merged. query_block: query rows
    of one attention program. rows, columns: extents of elementwise and row-reduction tiles. extent: "any", or
    "power-of-two" where the machine prints every tile as large as the next power of two, so that K is walked in steps
    of the chunk itself. dot_least: the fewest rows a dot multiplies; smaller variants of a kernel would do the same
    work. matrix: the unit that multiplies matrices whole, where there is one; its products take tiles of 1,
    `matrix.rows` and two or four times as many rows, and their packed operands lie in panels of `matrix.columns`, of
    which a tile takes as many as `panel` has room for. scratch: bytes of private memory that a program may have (None:
    no such limit). f32_only: functions of the scalar table that the machine does not compute in f64.
    streaming: bytes of results from which a kernel that passes over its data once writes past the caches; None where it
    never does. ahead: how many bytes before it reads them such a kernel asks for the elements that its results are made
    of; 0 where the machine looks ahead far enough by itself. together: programs of a row reduction that a thread runs
    side by side where the first cache has room for their rows: one's chain of sums waits under the others' arithmetic.
    """

    lanes: int
    registers: int
    dot: tuple[tuple[int | None, int, int], ...]
    panel: int
    reduction_chunk: int = 4096
    logit_chain: int = 32
    block: int = 0
    near: int | None = None
    key_segment: int = 64
    key_part: int = 1024
    query_block: int = 64
    rows: int = 1
    columns: int = 64
    extent: Literal["any", "power-of-two"] = "any"
    dot_least: int = 1
    f32_only: frozenset[str] = frozenset()
    scratch: int | None = None
    matrix: MatrixUnit | None = None
    streaming: int | None = None
    ahead: int = 0
    together: int = 1

    def attention_unit(
        self, features: int | None, value_features: int | None, dtype: str, keys: int | None = None
    ) -> MatrixUnit | None:
        """The unit that takes both products of an attention in a dtype, whose sides are whole steps of it; None where
        vectors do. keys: of a segment; None: as many as the unit's own has.
        """
        unit = self.matrix
        if unit is None or unit.dtype != dtype or not features or not value_features:
            return None
        whole = not (features % unit.depth or (keys or unit.keys) % unit.depth or value_features % unit.columns)
        return unit if whole else None

    def segment(self, features: int | None, value_features: int | None, dtype: str) -> int:
        """Keys of a segment of such an attention."""
        unit = self.attention_unit(features, value_features, dtype)
        return self.key_segment if unit is None else unit.keys

    @property
    def common_segment(self) -> int:
        """Keys after which a segment begins in every attention."""
        return lcm(self.key_segment, 1 if self.matrix is None else self.matrix.keys)


@dataclass(frozen=True, slots=True)
class Machine:
    """Frozen facts about a target: units, levels, costs and tile rules.

    levels: main memory first, each after the one it is filled from. launch: seconds that a kernel's start and the
    barrier before it take. family: machines of one family share reduction orders, but for products on a matrix unit,
    which have the unit's. features: what the code generator may assume.
    """

    name: str
    family: str
    cores: int
    units: tuple[Unit, ...]
    levels: tuple[Level, ...]
    rules: TileRules
    launch: float
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = []
        if self.cores < 1:
            faults.append(f"cores: {self.cores} is not positive")
        if not self.levels:
            faults.append("levels: at least main memory must be described")
        before: list[str] = []
        for level in self.levels:
            at = f"levels[{level.name}]"
            if level.bandwidth <= 0:
                faults.append(f"{at}.bandwidth: {level.bandwidth} is not positive")
            if level.size is None and before:
                faults.append(f"{at}.size: only main memory may be as large as the host's")
            if level.alignment < 1:
                faults.append(f"{at}.alignment: {level.alignment} is not positive")
            if level.name in before:
                faults.append(f"{at}: two levels have this name")
            if level.source is not None and level.source not in before:
                faults.append(f"{at}.source: {level.source} is no level before it")
            before.append(level.name)
        for unit in self.units:
            if "f32" not in unit.rates or min(unit.rates.values()) <= 0:
                faults.append(f"units[{unit.name}].rates: one for f32 is needed, and all are positive")
            faults += [f"units[{unit.name}].reaches: {name} is no level" for name in unit.reaches if name not in before]
        if {unit.name for unit in self.units} != {"matrix", "vector"}:
            faults.append("units: one called matrix and one called vector are needed")
        if self.rules.lanes < 1 or self.rules.panel % self.rules.lanes:
            faults.append(f"rules.panel: {self.rules.panel} is not a multiple of rules.lanes ({self.rules.lanes})")
        bounds = [limit for limit, _, _ in self.rules.dot]
        if not bounds or bounds[-1] is not None or any(b is None for b in bounds[:-1]):
            faults.append("rules.dot: exactly the last entry must be unbounded (None)")
        matrix = self.rules.matrix
        if matrix is not None and matrix.keys % matrix.depth:
            faults.append(f"rules.matrix.keys: {matrix.keys} is not a multiple of its depth ({matrix.depth})")
        if faults:
            raise BackendManifestError(
                [f"machine {self.name}: {f}" for f in faults], step="correct the machine's description"
            )

    @property
    def memory(self) -> Level:
        """Main memory."""
        return self.levels[0]

    def unit(self, name: str) -> Unit:
        """The unit with that name."""
        return next(unit for unit in self.units if unit.name == name)

    def way(self, level: Level) -> tuple[Level, ...]:
        """The levels that bytes pass from main memory to a level, both ends included."""
        found = [level]
        while found[-1] is not self.memory:
            at = found[-1]
            named = [other for other in self.levels if other.name == at.source]
            found.append(named[0] if named else self.levels[self.levels.index(at) - 1])
        return tuple(reversed(found))

    @property
    def caches(self) -> tuple[Level, ...]:
        """The levels below main memory that fill themselves, in the order that bytes pass them."""
        cached = [level for level in self.levels[1:] if level.kind == "cached"]
        return tuple(level for level in self.way(cached[-1])[1:] if level.kind == "cached") if cached else ()

    def nearest(self, unit: str, *, kind: Literal["cached", "explicit", "registers"]) -> Level | None:
        """The last level of a kind on the way to a unit; None where it reaches none."""
        reached = [level for level in self.levels if level.name in self.unit(unit).reaches and level.kind == kind]
        return reached[-1] if reached else None

    def blocking_level(self) -> Level | None:
        """The level that a kernel's order is blocked for: of those that fill themselves the one with the most room for
        a core. A core has all of its own, and a shared one holds one block for all cores, which walk it together.
        """
        return max(self.caches, key=lambda level: level.size or 0, default=None)

    def block_bytes(self) -> int:
        """Bytes that blocks of products count on: of the level they are made for, as much as they gain from."""
        level = self.blocking_level()
        size = (level.size if level is not None else None) or 1 << 20
        return size if self.rules.near is None else min(size, self.rules.near)

    def seconds(self, work: Work, *, imbalance: float = 1.0, in_turn: bool = False) -> float:
        """Predicted time of work spread over all cores: that of the unit or level that is busy longest.

        imbalance: the largest share of a core, as a multiple of the mean share; 1 where it is not known. in_turn: each
        unit waits for what the other computes.
        """
        busy: dict[str, float] = {}
        for (name, dtype), flops in work.flops.items():
            unit = "units" if in_turn else name
            busy[unit] = busy.get(unit, 0.0) + flops / (self.unit(name).rate(dtype) * self.cores)
        for level in self.levels:
            moved = work.moved.get(level.name, 0.0)
            busy[f"level {level.name}"] = moved / (level.bandwidth * (1 if level.shared else self.cores))
        return max(busy.values()) * imbalance

    def imbalance(self, programs: int) -> float:
        """The largest share of a core when equal programs are dealt out, as a multiple of the mean share."""
        return -(-programs // self.cores) * self.cores / programs if programs else 1.0

    def resident_depth(self, unit: MatrixUnit) -> int:
        """The k, whole steps of a matrix unit, whose pairs for two registers of columns take half of the first-level
        cache.
        """
        cache = self.caches[-1].size if self.caches and self.caches[-1].size else _FIRST_LEVEL
        return max(1, cache // 2 // (2 * unit.columns * unit.depth * 2)) * unit.depth

    def key(self) -> dict[str, Any]:
        """The facts that decide code, for the cache key: of the class, nothing measured."""
        return {
            "name": self.name,
            "family": self.family,
            "features": list(self.features),
            "units": [[unit.name, dict(sorted(unit.rates.items())), list(unit.reaches)] for unit in self.units],
            "levels": [list(astuple(level)) for level in self.levels],
            "rules": {name: _plain(getattr(self.rules, name)) for name in self.rules.__dataclass_fields__},
            "cores": self.cores,
            "launch": self.launch,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, MatrixUnit):
        return list(astuple(value))
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
