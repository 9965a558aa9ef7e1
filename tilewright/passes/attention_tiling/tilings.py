"""What an attention moves and computes by a tiling: closed forms that hold for every size and mask.

Three loop orders. Query-outer: a tile of queries stays while keys and values stream past. The others cut keys into
parts: a program has a tile of queries and a part, whose sums it leaves in memory, and a second kernel merges them.
Split-kv: the parts of one tile of queries follow one another. Key-outer: the tiles of queries that see one part do, so
that its keys and values stay in a cache that holds them. Sums over tiles are exact: causal, sliding and chunked masks
leave out the tiles that a query tile cannot see. Of parts that it cannot see empty sums are left, which are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

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
    keys of a part, where programs share them. stages: tiles of keys and values that are near at once. variant: what
    runs at these sizes instead of block_q rows and so many heads. pairs: whether keys and values are brought into a
    matrix unit's pairs once, by a launch before, where there is more than one tile of queries.
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
        return 2 if self.apart or self.paired else 1

    @property
    def apart(self) -> bool:
        """Whether parts of the keys have programs of their own."""
        return self.order != "query-outer"

    @property
    def paired(self) -> bool:
        """Whether keys and values are brought into pairs before, at these sizes."""
        alone = self.sizes.queries <= self.block_q if self.variant is None else not self.variant.paired
        return self.pairs and not self.apart and not alone

    @property
    def _whole_keys(self) -> int:
        """Keys of all key heads, whole tiles of them."""
        return self.sizes.batch * self.sizes.key_heads * -(-self.sizes.keys // self.block_k) * self.block_k

    @property
    def splits(self) -> int:
        """Parts of the keys that programs of their own visit."""
        return -(-self.sizes.keys // self.part) if self.apart and self.part else 1

    @property
    def programs(self) -> int:
        """Programs of the kernel that visits keys, those that see none included."""
        return self.repeats * len(self.visited.rows) * self.splits

    @cached_property
    def merged(self) -> int:
        """Rows of queries times the parts that they see, whose sums are read."""
        if not self.apart:
            return 0
        return int((self.visited.rows * self.visited.parts(self.part)).sum()) * self.repeats

    @property
    def sums(self) -> int:
        """Bytes that the sums of all parts take, each written once."""
        return self.splits * self.sizes.rows * self._partial if self.apart else 0

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
        q = self.sizes.rows * self.splits * self._query
        state = self.sums + self.merged * self._partial
        return {"q": q, "keys": self._keys(), "out": self._out(), "state": state}

    @property
    def named(self) -> int:
        """Bytes that loads and stores of q, k, v and the results name."""
        return sum(self.streams.values())

    @property
    def once(self) -> int:
        """Bytes that pass a memory where keys and values stay until they have met all queries that follow them: those
        of a head, or where keys are outermost, of a part."""
        keys = self.sizes.batch * self.sizes.key_heads * self.visited.touched * self._pair
        return self.named - self._walked() + min(keys, self._walked())

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
        walking, merging = self.works(machine)
        return walking + merging

    def works(self, machine: Machine) -> tuple[Work, Work]:
        """What visits keys, and what merges the sums of parts once that is done; nothing where there are none."""
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
        # two sums are scaled and added for each part that is merged
        scaled = {("vector", "f32"): 3.0 * self.merged * (self.sizes.value_features + 1)} if self.apart else {}
        read = self.merged * self._partial + self._out() if self.apart else 0
        merged = {name: min(n, float(read)) for name, n in moved.items()}
        flops = {("matrix", self.sizes.dtype.name): float(self._products(logits)), ("vector", "f32"): vector}
        return Work(flops, {name: n - merged[name] for name, n in moved.items()}), Work(scaled, merged)

    def unit(self, machine: Machine) -> MatrixUnit | None:
        """The machine's matrix unit where it takes the products, from pairs and in scratch."""
        s = self.sizes
        return machine.rules.attention_unit(s.features, s.value_features, s.dtype.name, self.block_k)

    def passing(self, room: int) -> float:
        """Bytes that pass a cache of `room` bytes.

        It keeps everything; or the keys and values of a head while its tiles of queries pass, all query heads of it one
        after the other, and where keys are outermost those of a part; or the tiles of one program; or not even these,
        so that each visit brings its queries and sums again.
        """
        least = compulsory(self.sizes)
        tiles = sum(tile.rows * tile.row for tile in self.tiles)
        if max(least + self.sums, tiles) <= room:
            return float(min(least, self.named))
        head = self.visited.touched * self._pair
        if min(head, self.part * self._pair if self.order == "key-outer" else head) + tiles <= room:
            return float(self.once)
        if tiles <= room:
            return float(self.named)
        visits = int((self.visited.rows * self.visited.steps).sum()) * self.repeats
        return float(self.named + visits * (self._query + 2 * self._partial))

    def seconds(self, machine: Machine) -> float:
        """Predicted time."""
        imbalance, unit = self.imbalance(machine), self.unit(machine)
        walking, merging = self.works(machine)
        busy = machine.seconds(walking, imbalance=imbalance, in_turn=unit is not None) + machine.seconds(merging)
        return self.launches * machine.launch + busy

    def imbalance(self, machine: Machine) -> float:
        """The largest share of a core as a multiple of the mean share, where each takes a contiguous part of the
        programs of a key head after those of another."""
        done = np.concatenate(([0], np.cumsum(self._in_order())))
        count, whole = len(done) - 1, int(done[-1])
        if not whole:
            return 1.0
        heads = self.programs // count
        ends = [self.programs * core // machine.cores for core in range(machine.cores + 1)]
        before = [whole * (end // count) + int(done[end % count]) for end in ends]
        return max(b - a for a, b in pairwise(before)) * machine.cores / (whole * heads)

    def _in_order(self) -> np.ndarray[Any, Any]:
        """What each program of one head (of a key head, where keys are outermost) has to do, in the order that they
        run in: what a causal mask makes unequal comes from both ends in turn."""
        seen = self.visited
        if not self.apart:
            return self._turned(seen.rows * seen.keys)
        part = np.arange(self.splits)[:, None] * self.part
        keys = np.minimum(seen.first + seen.keys, part + self.part) - np.maximum(seen.first, part)
        each = seen.rows * np.maximum(keys, 0)
        if self.order == "key-outer":
            return np.tile(self._turned(each), (1, self.sizes.group // self.packed)).ravel()
        return self._turned(each.T).ravel()

    def _turned(self, each: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The first axis as `KernelOp.folded` takes it."""
        if self.sizes.mask != "causal" or self.sizes.shift is None:
            return each
        turn = np.arange(len(each))
        return each[np.where(turn % 2 == 0, turn // 2, len(each) - 1 - turn // 2)]


def scheduled(sizes: Sizes, schedule: Schedule, rules: TileRules) -> Tiling:
    """The tiling that a group's schedule states, or the lowering's own where it states none."""
    stated = schedule.to_dict()
    own = own_block(rules, sizes.features, sizes.value_features, sizes.dtype)
    segment = rules.segment(sizes.features, sizes.value_features, sizes.dtype.name)
    block, heads = schedule.number("block_q", own), schedule.number("heads", 1)
    order, pairs = str(stated.get("order", "query-outer")), schedule.number("pairs", 0) > 0
    part = 0 if order == "query-outer" else schedule.number("part", rules.key_part)
    return Tiling(
        sizes, order, block, schedule.number("block_k", segment), heads, part, schedule.number("stages", 1),
        block_for(rules, block, heads, sizes.queries, paired=pairs), pairs,
    )  # fmt: skip
