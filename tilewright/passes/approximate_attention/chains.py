"""Which blocks of features a kernel keeps the sums of, what the kernels move and compute, and from which length on they
are faster than exact attention.

Where all sums fit (regime A), one kernel reads q, k and v and writes its result: 4 n d words. Where they do not (regime
B), blocks are shared out over a chain of kernels, each of which reads q, k and v and adds to what the one before left.
Where not even one block fits, there is no chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilewright.ir.cost import Work
from tilewright.ir.graph.polynomial_attention import pairs
from tilewright.ir.machine import Machine
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import Tiling
from tilewright.passes.attention_tiling.variants import block_for, own_block

_WORD = 4  # bytes of a sum, in f32


def block_sizes(features: int) -> list[int]:
    """The features of each block."""
    return [features, *((a[1] - a[0]) * (b[1] - b[0]) for a, b in pairs(features))]


def chain_of(machine: Machine, features: int, value_features: int, width: int) -> list[tuple[int, int]]:
    """The blocks [first, last) of each kernel, as many as its private memory holds; nothing where not all fit.

    width: bytes of an element of q, k and v.
    """
    level, sizes = machine.blocking_level(), block_sizes(features)
    rooms = [size for size in (machine.rules.scratch, level.size if level else None) if size is not None]
    wide, values = (n + -n % machine.rules.lanes for n in (features, value_features))
    # beside the sums: features of a chunk, operands and results, and products of queries and keys. Tiles of one size
    # take each other's place; of narrow dtypes one operand lies there twice.
    rows = sum(set(sizes[1:])) + 2 * wide + (2 if wide == values else 3) * values + machine.rules.key_segment + 64
    rows += max(wide, values) if width < _WORD else 0
    # and tiles of odd widths share no place
    rows += 0 if wide == values else machine.rules.key_segment
    room = min(rooms, default=1 << 20) - _WORD * machine.rules.key_segment * rows
    found: list[tuple[int, int]] = []
    first, held = 0, 0
    for block, size in enumerate(sizes):
        needed = _WORD * (size * (values + 2) + values)
        if needed > room:
            return []
        if held + needed > room:
            found.append((first, block))
            first, held = block, 0
        held += needed
    return [*found, (first, len(sizes))]


@dataclass(frozen=True)
class Chain:
    """A chain of kernels on an attention of given sizes."""

    sizes: Sizes
    blocks: tuple[tuple[int, int], ...]
    chunk: int

    @property
    def regime(self) -> str:
        return "A" if len(self.blocks) == 1 else "B"

    @property
    def streams(self) -> dict[str, int]:
        """Bytes that loads and stores of the chain's kernels name, by what they are of."""
        s, times = self.sizes, len(self.blocks)
        keys = s.batch * s.key_heads * s.keys * (s.features + s.value_features) * s.width
        return {
            "q": times * s.rows * s.features * s.width,
            "keys": times * keys,
            "out": s.rows * s.value_features * s.width,
            "state": 2 * (times - 1) * s.rows * (s.value_features + 1) * _WORD,
        }

    @property
    def guard(self) -> int:
        """Bytes that the guard reads and leaves: queries and keys once more, and a norm for each."""
        s = self.sizes
        keys = s.batch * s.key_heads * s.keys
        return (s.rows + keys) * (s.features * s.width + 2 * _WORD)

    @property
    def named(self) -> int:
        """Bytes of the chain and its guard."""
        return sum(self.streams.values()) + self.guard

    def work(self, machine: Machine) -> Work:
        """FLOPs computed, and bytes by level: sums stay near, and everything else passes once a kernel."""
        s = self.sizes
        keys, features = s.batch * s.key_heads * s.keys, sum(block_sizes(s.features))
        products = 2 * features * s.value_features * (s.rows + keys)
        if s.mask == "causal":
            products += 2 * s.rows * self.chunk * (s.features + s.value_features)
        made = 4 * features * (s.rows + keys) * 1.0
        moved = {level.name: float(self.named) for level in (machine.memory, *machine.caches[-1:])}
        return Work({("matrix", "f32"): float(products), ("vector", "f32"): made}, moved)

    def seconds(self, machine: Machine) -> float:
        """Predicted time, the guard's kernels included; a key head is one program."""
        launches = len(self.blocks) + 5
        imbalance = machine.imbalance(self.sizes.batch * self.sizes.key_heads)
        return launches * machine.launch + machine.seconds(self.work(machine), imbalance=imbalance)


def crossover(sizes: Sizes, blocks: Sequence[tuple[int, int]], machine: Machine, most: int) -> int | None:
    """The least number of keys, up to `most`, from which on the chain is predicted to be faster than exact attention;
    None where there is none. Queries are as many as keys where they are so in `sizes`."""

    def faster(keys: int) -> bool:
        queries = keys if sizes.queries == sizes.keys else sizes.queries
        at = replace(sizes, keys=keys, queries=queries, shift=0 if sizes.shift is not None else None)
        chunk = machine.rules.key_segment
        block = own_block(machine.rules, at.features, at.value_features, at.dtype)
        exact = Tiling(at, "query-outer", block, chunk, variant=block_for(machine.rules, block, 1, at.queries))
        return Chain(at, tuple(blocks), chunk).seconds(machine) < exact.seconds(machine)

    if not faster(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if faster(middle) else (middle, high)
    return high
