"""A machine as data: what passes may know about hardware, and all that they may know.

A CPU's machine is a *class* (vector features, cache sizes, cores, bandwidth class), never a measurement: measured
figures scale predicted times and must not decide code or cache keys, so that the same inputs give the same artifact
anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Literal

from tilewright.errors import BackendManifestError


@dataclass(frozen=True, slots=True)
class Level:
    """One level of memory, from the largest (main memory) to the smallest (registers).

    size: bytes reachable by one core or unit (None: as much as the host has). bandwidth: bytes a second per core.
    explicit: filled by named transfers (a scratchpad), not by a cache. alignment: bytes of a transfer's start.
    """

    name: str
    size: int | None
    bandwidth: float
    explicit: bool = False
    alignment: int = 1
    shared: bool = False


@dataclass(frozen=True, slots=True)
class MatrixUnit:
    """Registers of matrices and the instruction that multiplies them: sum [rows, columns] += left [rows, depth] times
    right [depth, columns], the right one in pairs of k, [depth/2, columns, 2].

    dtype: of the factors, by name; sums are f32. rows, columns, depth: the largest a register takes; one may be told to
    have fewer rows. registers: how many there are.
    """

    dtype: str
    rows: int
    columns: int
    depth: int
    registers: int


@dataclass(frozen=True, slots=True)
class TileRules:
    """What shapes tiles may take on a machine, and which ops it has natively.

    lanes: f32 elements of one vector. registers: vectors a program may hold. dot:
    (rows, vectors) register tiles by the number of rows a kernel has, ascending: ((4, 4, 2), (16, 8, 2), (None, 14, 2))
    reads "up to 4 rows: 4 by 2 vectors; up to 16: 8 by 2; more: 14 by 2". panel: columns of a packed matrix operand.
    reduction_chunk: k elements accumulated before a chunk's sum joins the total. block: rows that a stretch of a panel
    meets while the next one comes from memory, sums kept in the cache between stretches (0: the register tile's rows
    meet all of k at once). key_segment: keys of one attention
    segment. query_block: query rows of one attention program. rows, columns: extents of elementwise and row-reduction
    tiles. extent: "any", or "power-of-two" where the machine prints every tile as large as the next power of two, so
    that K is walked in steps of the chunk itself. dot_least: the fewest rows a dot multiplies; smaller variants of a
    kernel would do the same work. matrix: the unit that multiplies matrices whole, where there is one; its products
    take tiles of 1, `matrix.rows` and twice as many rows. f32_only: functions of the scalar table that the machine does
    not compute in f64.
    """

    lanes: int
    registers: int
    dot: tuple[tuple[int | None, int, int], ...]
    panel: int
    reduction_chunk: int = 4096
    block: int = 0
    key_segment: int = 64
    query_block: int = 64
    rows: int = 1
    columns: int = 64
    extent: Literal["any", "power-of-two"] = "any"
    dot_least: int = 1
    native: frozenset[str] = frozenset()
    f32_only: frozenset[str] = frozenset()
    matrix: MatrixUnit | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Frozen facts about a target: units, levels, costs and tile rules.

    peak: FLOP/s by unit and dtype of one core, {("matrix", "f32"): 1.2e11}. launch and sync: seconds a kernel start and
    a barrier take. family: machines of one family share reduction orders, but for products on a matrix unit, which have
    the unit's. features: what the code generator may assume.
    """

    name: str
    family: str
    cores: int
    peak: Mapping[tuple[str, str], float]
    levels: tuple[Level, ...]
    rules: TileRules
    launch: float
    sync: float
    features: tuple[str, ...] = ()
    links: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = []
        if self.cores < 1:
            faults.append(f"cores: {self.cores} is not positive")
        if not self.levels:
            faults.append("levels: at least main memory must be described")
        for level in self.levels:
            if level.bandwidth <= 0:
                faults.append(f"levels[{level.name}].bandwidth: {level.bandwidth} is not positive")
        if self.rules.lanes < 1 or self.rules.panel % self.rules.lanes:
            faults.append(f"rules.panel: {self.rules.panel} is not a multiple of rules.lanes ({self.rules.lanes})")
        bounds = [limit for limit, _, _ in self.rules.dot]
        if not bounds or bounds[-1] is not None or any(b is None for b in bounds[:-1]):
            faults.append("rules.dot: exactly the last entry must be unbounded (None)")
        if faults:
            raise BackendManifestError(
                [f"machine {self.name}: {f}" for f in faults], step="correct the machine's description"
            )

    @property
    def memory(self) -> Level:
        """Main memory."""
        return self.levels[0]

    def level(self, name: str) -> Level:
        """The level with that name."""
        return next(level for level in self.levels if level.name == name)

    def key(self) -> dict[str, Any]:
        """The facts that decide code, for the cache key: nothing measured, nothing about speed."""
        return {
            "name": self.name,
            "family": self.family,
            "features": list(self.features),
            "levels": [[level.name, level.size, level.explicit, level.alignment] for level in self.levels],
            "rules": {name: _plain(getattr(self.rules, name)) for name in self.rules.__dataclass_fields__},
            "cores": self.cores,
        }

    def seconds(self, *, matrix: float = 0.0, vector: float = 0.0, moved: float = 0.0, dtype: str = "f32") -> float:
        """Predicted time of work spread over all cores: max of the compute floors and the memory floor."""
        per_core = max(
            matrix / self.peak.get(("matrix", dtype), self.peak["matrix", "f32"]) if matrix else 0.0,
            vector / self.peak["vector", "f32"] if vector else 0.0,
        )
        bandwidth = self.memory.bandwidth if self.memory.shared else self.memory.bandwidth * self.cores
        return max(per_core / self.cores, moved / bandwidth)


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, MatrixUnit):
        return list(astuple(value))
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
