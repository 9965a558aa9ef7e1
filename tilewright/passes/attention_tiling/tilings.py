"""What an attention moves and computes by a tiling: closed forms that hold for every size and mask.

Three loop orders. Query-outer: a tile of queries stays while keys and values stream past. Key-outer: a tile of keys and
values stays, and every query's running sum is read and written again for it. Split-kv: keys are cut into parts, each a
query-outer kernel of its own, and a second kernel merges what they leave. Sums over tiles are exact: causal, sliding
and chunked masks leave out the tiles that a query tile cannot see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from tilewright.ir.cost import Work
from tilewright.ir.graph.reduction import SOFTMAX_FLOPS
from tilewright.ir.machine import Level, Machine, MatrixUnit, TileRules
from tilewright.ir.schedules import Schedule
from tilewright.passes.attention_tiling.bounds import compulsory, lse_bytes
from tilewright.passes.attention_tiling.sizes import Sizes, Visited
from tilewright.passes.attention_tiling.variants import (
    Block,
    Tile,
    block_for,
    own_block,
    scratch_tiles,
)

_STATE = 4  # bytes of a running sum, maximum or denominator: f32


@dataclass(frozen=True)
class Tiling:
    """An order and its tiles, on an attention of given sizes.

    block_q, block_k: rows of a tile of queries and of keys. heads: query heads of one key head that share a tile. part:
    keys of a part, where they are split. stages: tiles of keys and values that are near at once. variant: what runs at
    these sizes instead of block_q rows and so many heads. pairs: whether keys and values are brought into a matrix
    unit's pairs once, by a launch before, where there is more than one tile of queries.
    """

    sizes: Sizes
    order: str
    block_q: int
    block_k: int
    heads: int = 1
    part: int = 0
    stages: int = 1
    variant: Block | None = None
    pairs: bool = False

    @property
    def rows(self) -> int:
        """Rows of a tile of queries at these sizes."""
        return self.variant.rows if self.variant else self.block_q

    @property
    def packed(self) -> int:
        """Query heads of a tile at these sizes."""
        return self.variant.heads if self.variant else self.heads

    @property
    def schedule(self) -> Schedule:
        """The choices as a group states them; those that are 1 are left out."""
        named = {"heads": self.heads, "part": self.part, "stages": self.stages}
        more = {name: n for name, n in named.items() if n > 1} | ({"pairs": 1} if self.pairs else {})
        return Schedule.of({"order": self.order, "block_q": self.block_q, "block_k": self.block_k, **more})

    @cached_property
    def visited(self) -> Visited:
        return self.sizes.visited(self.rows, self.block_k, self.packed)

    @property
    def repeats(self) -> int:
        """How often the tiles of queries of one (packed) head occur."""
        return self.sizes.batch * (self.sizes.heads // self.packed)

    @property
    def launches(self) -> int:
        return 2 if self.order == "split-kv" or self.paired else 1

    @property
    def paired(self) -> bool:
        """Whether keys and values are brought into pairs before, at these sizes."""
        alone = self.sizes.queries <= self.block_q if self.variant is None else not self.variant.paired
        return self.pairs and self.order == "query-outer" and not alone

    @property
    def _whole_keys(self) -> int:
        """Keys of all key heads, whole tiles of them."""
        return self.sizes.batch * self.sizes.key_heads * -(-self.sizes.keys // self.block_k) * self.block_k

    @property
    def splits(self) -> int:
        """Parts of the keys that programs of their own visit."""
        return -(-self.sizes.keys // self.part) if self.order == "split-kv" and self.part else 1

    @property
    def programs(self) -> int:
        """Programs of the kernel that visits keys."""
        if self.order == "key-outer":
            return self.sizes.batch * self.sizes.key_heads * -(-self.sizes.keys // self.block_k)
        return self.repeats * len(self.visited.rows) * self.splits

    @property
    def matrix(self) -> int:
        """FLOPs of the two products as kernels count them: on whole tiles."""
        return self._products(self.rows * self.block_k * int(self.visited.steps.sum()) * self.repeats)

    def _products(self, logits: int) -> int:
        return 2 * logits * (self.sizes.features + self.sizes.value_features)

    def logits(self, rules: TileRules) -> int:
        """Logits that are computed: of whole tiles where every tile is printed whole, else without the rows and keys
        past the end of an axis, which loops leave out."""
        if rules.extent == "power-of-two":
            return self.rows * self.block_k * int(self.visited.steps.sum()) * self.repeats
        return int((self.visited.rows * self.visited.keys).sum()) * self.repeats

    # --- bytes --------------------------------------------------------------------------------------------------------

    @property
    def streams(self) -> dict[str, int]:
        """Bytes that loads and stores name, by what they are of: q, keys (k and v, and their pairs), out (lse included)
        and state, the running sums that pass through memory."""
        match self.order:
            case "query-outer":
                return {"q": self._q(1), "keys": self._keys(), "out": self._out(), "state": 0}
            case "key-outer":
                again = np.maximum(self.visited.steps - 1, 0)
                rows = int((self.visited.rows * again).sum()) * self.repeats
                keys = self.sizes.batch * self.sizes.key_heads * self.visited.touched * self._pair
                q = int((self.visited.rows * self.visited.steps).sum()) * self.repeats * self._query
                return {"q": q, "keys": keys, "out": self._out(), "state": 2 * rows * self._partial}
            case _:
                # parts that a mask hides have queries and sums like others
                visits = int(self.visited.rows.sum()) * self.repeats * self.splits
                return {
                    "q": visits * self._query, "keys": self._keys(), "out": self._out(),
                    "state": 2 * visits * self._partial,
                }  # fmt: skip

    @property
    def named(self) -> int:
        """Bytes that loads and stores of q, k, v and the results name."""
        return sum(self.streams.values())

    @property
    def _query(self) -> int:
        return self.sizes.features * self.sizes.width

    @property
    def _pair(self) -> int:
        """Bytes of a key and its value."""
        return (self.sizes.features + self.sizes.value_features) * self.sizes.width

    @property
    def _partial(self) -> int:
        """Bytes of a row's running sum, maximum and denominator."""
        return (self.sizes.value_features + 2) * _STATE

    def _q(self, times: int) -> int:
        return self.sizes.rows * self._query * times

    def _keys(self) -> int:
        return self._walked() + self._made()

    def _walked(self) -> int:
        """Bytes of keys and values, or of their pairs, that tiles of queries read. Pairs fill whole tiles."""
        keys = self.visited.steps * self.block_k if self.paired else self.visited.keys
        return int(keys.sum()) * self.repeats * self._pair

    def _made(self) -> int:
        """Bytes that the launch which makes pairs reads and writes."""
        if not self.paired:
            return 0
        return (self.sizes.batch * self.sizes.key_heads * self.sizes.keys + self._whole_keys) * self._pair

    def _out(self) -> int:
        return self.sizes.rows * self.sizes.value_features * self.sizes.width + lse_bytes(self.sizes)

    # --- a machine ----------------------------------------------------------------------------------------------------

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """What a program of the largest variant keeps near while it walks."""
        s = self.sizes
        return (
            Tile("queries", self.block_q, s.features * s.width),
            Tile("keys", self.block_k * self.stages, s.features * s.width),
            Tile("values", self.block_k * self.stages, s.value_features * s.width),
            Tile("logits", self.block_q, self.block_k * _STATE),
            Tile("sums", self.block_q, (s.value_features + 2) * _STATE),
        )

    def near(self, level: Level) -> Iterator[tuple[Tile, int]]:
        """The tiles that must lie in a level, with the bytes each takes there: all of them in one that fills itself, in
        one that transfers fill those that are loaded."""
        for tile in self.tiles:
            if level.kind != "explicit" or tile.name not in ("logits", "sums"):
                yield tile, level.takes(tile.rows, tile.row)

    def private(self, rules: TileRules) -> list[tuple[Tile, int]]:
        """The tiles of private memory that a program needs at most, with the bytes of each."""
        s, rows = self.sizes, max(self.block_q, self.heads)
        tiles = scratch_tiles(rules, rows, self.block_k, s.features, s.value_features, s.dtype)
        return [(tile, tile.rows * tile.row) for tile in tiles]

    def work(self, machine: Machine) -> Work:
        """FLOPs computed, and bytes by level: what is named comes from the last level that fills itself; what passes a
        level beyond follows from how much of the attention it keeps."""
        moved: dict[str, float] = {}
        caches = machine.caches
        for level in caches:
            source = machine.way(level)[-2].name
            moved[source] = moved.get(source, 0.0) + self.passing(level.size or 0)
        last = caches[-1] if caches else machine.memory
        moved[last.name] = moved.get(last.name, 0.0) + self.named
        explicit = machine.nearest("matrix", kind="explicit")
        if explicit is not None:
            moved[explicit.name] = self.named
        logits = self.logits(machine.rules)
        vector = float(SOFTMAX_FLOPS * logits)
        unit = self.unit(machine)
        if unit is not None:
            elements = self._whole_keys * self._pair if self.paired else self._walked()
            vector += unit.packing * elements / self.sizes.width
        return Work({("matrix", self.sizes.dtype.name): self._products(logits), ("vector", "f32"): vector}, moved)

    def unit(self, machine: Machine) -> MatrixUnit | None:
        """The machine's matrix unit where it takes the products, from pairs and in scratch."""
        s = self.sizes
        return machine.rules.attention_unit(s.features, s.value_features, s.dtype.name, self.block_k)

    def passing(self, room: int) -> float:
        """Bytes that pass a cache of `room` bytes.

        It keeps everything; or the keys and values of a head while its tiles of queries pass, all query heads of it one
        after the other; or the tiles of one program; or not even these, so that each visit brings its queries and sums
        again.
        """
        least = compulsory(self.sizes)
        tiles = sum(tile.rows * tile.row for tile in self.tiles)
        if max(least, tiles) <= room:
            return float(min(least, self.named))
        head = self.visited.touched * self._pair
        if self.order != "key-outer" and head + tiles <= room:
            keys = self.sizes.batch * self.sizes.key_heads * head
            return float(self.named - self._walked() + min(keys, self._walked()))
        if tiles <= room:
            return float(self.named)
        visits = int((self.visited.rows * self.visited.steps).sum()) * self.repeats
        return float(self.named + visits * (self._query + 2 * self._partial))

    def seconds(self, machine: Machine) -> float:
        """Predicted time."""
        imbalance, unit = self.imbalance(machine), self.unit(machine)
        busy = machine.seconds(self.work(machine), imbalance=imbalance, in_turn=unit is not None)
        return self.launches * machine.launch + busy

    def imbalance(self, machine: Machine) -> float:
        """The largest share of a core as a multiple of the mean share, where each takes a contiguous part of the
        programs: head after head, and in each the tiles of queries, which masks make unequal: those of a causal mask
        from both ends in turn, others in order."""
        if self.order == "key-outer" or self.splits > 1:
            return machine.imbalance(self.programs)
        each = self.visited.rows * self.visited.keys
        tiles = len(each)
        if self.sizes.mask == "causal" and self.sizes.shift is not None:
            turn = np.arange(tiles)
            each = each[np.where(turn % 2 == 0, turn // 2, tiles - 1 - turn // 2)]
        done = np.concatenate(([0], np.cumsum(each)))
        whole = int(done[-1]) * self.repeats
        if not whole:
            return 1.0
        ends = [self.programs * core // machine.cores for core in range(machine.cores + 1)]
        before = [int(done[-1]) * (end // tiles) + int(done[end % tiles]) for end in ends]
        return max(b - a for a, b in pairwise(before)) * machine.cores / whole


def scheduled(sizes: Sizes, schedule: Schedule, rules: TileRules) -> Tiling:
    """The tiling that a group's schedule states, or the lowering's own where it states none."""
    stated = schedule.to_dict()
    own = own_block(rules, sizes.features, sizes.value_features, sizes.dtype)
    segment = rules.segment(sizes.features, sizes.value_features, sizes.dtype.name)
    block, heads = schedule.number("block_q", own), schedule.number("heads", 1)
    pairs = schedule.number("pairs", 0) > 0
    part = schedule.number("part", rules.key_part) if stated.get("order") == "split-kv" else 0
    return Tiling(
        sizes, str(stated.get("order", "query-outer")), block, schedule.number("block_k", segment), heads, part,
        schedule.number("stages", 1), block_for(rules, block, heads, sizes.queries, paired=pairs), pairs,
    )  # fmt: skip
