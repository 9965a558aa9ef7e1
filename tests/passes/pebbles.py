"""A red-blue pebble game on attention's own graph of scalars, at small sizes.

A red pebble is a word of fast memory, a blue one a word of slow memory. A value is computed where all that it is made
from is red; a load makes blue red, a store red blue; never are there more than M red ones (Hong and Kung 1981). What
loads and stores number is what a tiling moves, by a count that knows nothing of tiles.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from tilewright.passes.attention_tiling.sizes import Sizes

Node = Hashable


@dataclass
class Game:
    """A game on attention of one head. seen: the pairs (query, key) that count, keys in order for each query. part:
    keys of a part, with which sums begin anew; None where they never do.

    Values: ("q", i, e), ("k", j, e), ("v", j, c) are blue from the start; ("s", i, j, e), a logit's sum up to feature
    e; ("m" or "l", i, j) and ("o", i, j, c), the maximum, denominator and sum of row i after key j of its part;
    ("M" or "L", i, j) and ("O", i, j, c), the same of all parts up to the one whose last key is j; ("out", i, c).
    """

    sizes: Sizes
    seen: dict[int, list[int]]
    capacity: int
    part: int | None = None
    red: set[Node] = field(default_factory=set)
    blue: set[Node] = field(default_factory=set)
    computed: set[Node] = field(default_factory=set)
    loads: int = 0
    stores: int = 0
    most: int = 0

    def made_from(self, node: Node) -> Iterator[Node]:
        """What a value is computed from. Raises KeyError for one that attention does not have."""
        match node:
            case ("s", i, j, e):
                yield from (("q", i, e), ("k", j, e))
                if e:
                    yield "s", i, j, e - 1
            case (("m" | "l" | "o") as kind, i, j, *rest):
                yield "s", i, j, self.sizes.features - 1
                before = self.before(i, j)
                yield from ((kind, i, b, *rest) for b in before)
                if kind != "m":
                    # what was summed is scaled by the old maximum less the new one
                    yield "m", i, j
                    yield from (("m", i, b) for b in before)
                if kind == "o":
                    yield "v", j, *rest
            case (("M" | "L" | "O") as kind, i, j, *rest):
                ends = self.ends(i)
                before = ends[: ends.index(j)][-1:]
                yield kind.lower(), i, j, *rest
                yield from ((kind, i, b, *rest) for b in before)
                if kind != "M":
                    yield from (("m", i, j), ("M", i, j), *(("M", i, b) for b in before))
            case ("out", i, c):
                last = self.seen[i][-1]
                total, denominator = ("o", "l") if self.part is None else ("O", "L")
                yield from ((total, i, last, c), (denominator, i, last))
            case _:
                raise KeyError(node)

    def before(self, i: int, j: int) -> list[int]:
        """The key that row i saw last before j in the same part, if any."""
        begin = 0 if self.part is None else j // self.part * self.part
        return [b for b in self.seen[i] if begin <= b < j][-1:]

    def ends(self, i: int) -> list[int]:
        """The last key that row i sees in each part that it sees any of."""
        assert self.part is not None
        return list({j // self.part: j for j in self.seen[i]}.values())

    def load(self, node: Node) -> None:
        assert node in self.blue or node[0] in "qkv", f"{node} is nowhere to be loaded from"  # type: ignore[index]
        self.loads += 1
        self._place(node)

    def store(self, node: Node) -> None:
        assert node in self.red, f"{node} is not in fast memory"
        self.stores += 1
        self.blue.add(node)

    def compute(self, node: Node) -> None:
        missing = [n for n in self.made_from(node) if n not in self.red]
        assert not missing, f"{node} needs {missing} in fast memory"
        self.computed.add(node)
        self._place(node)

    def free(self, *nodes: Node) -> None:
        self.red.difference_update(nodes)

    def _place(self, node: Node) -> None:
        self.red.add(node)
        self.most = max(self.most, len(self.red))
        assert len(self.red) <= self.capacity, f"{node} is one more than {self.capacity} words hold"

    @property
    def moved(self) -> int:
        return self.loads + self.stores

    def finish(self) -> None:
        """All results are in slow memory, and nothing was left out."""
        for i, keys in self.seen.items():
            assert all(("out", i, c) in self.blue for c in range(self.sizes.value_features)) or not keys


def row(kind: str, index: int, features: int) -> list[Node]:
    return [(kind, index, e) for e in range(features)]


def sums(i: int, j: int, features: int) -> list[Node]:
    """The state of a row after a key."""
    return [("m", i, j), ("l", i, j), *(("o", i, j, c) for c in range(features))]


def visit(game: Game, queries: range, keys: list[int]) -> None:
    """A tile of queries meets a tile of keys; both are red, and so are the sums of queries that saw any key before."""
    s = game.sizes
    for i in queries:
        pairs = [j for j in keys if j in game.seen[i]]
        for j in pairs:
            for e in range(s.features):
                game.compute(("s", i, j, e))
                game.free(*([("s", i, j, e - 1)] if e else []))
        for j in pairs:
            before = game.before(i, j)
            for node in sums(i, j, s.value_features):
                game.compute(node)
                if node[0] == "o":  # type: ignore[index]
                    game.free(*(("o", i, b, node[3]) for b in before))  # type: ignore[index]
            game.free(("s", i, j, s.features - 1), *(n for b in before for n in sums(i, b, 0)))


def results(game: Game, i: int) -> None:
    """The results of a row, stored; its sums are gone."""
    features = game.sizes.value_features
    if game.seen[i]:
        for c in range(features):
            game.compute(("out", i, c))
            game.store(("out", i, c))
            game.free(("out", i, c), ("o", i, game.seen[i][-1], c))
        game.free(*sums(i, game.seen[i][-1], features))


def tiles(sizes: Sizes, queries: range, seen: dict[int, list[int]], block_k: int) -> list[list[int]]:
    """The tiles of keys that any of the queries sees, whole."""
    wanted = sorted({j // block_k for i in queries for j in seen[i]})
    return [list(range(t * block_k, min((t + 1) * block_k, sizes.keys))) for t in wanted]


def query_outer(game: Game, block_q: int, block_k: int) -> None:
    """A tile of queries stays while keys and values stream past."""
    s = game.sizes
    for first in range(0, s.queries, block_q):
        queries = range(first, min(first + block_q, s.queries))
        for i in queries:
            _load(game, row("q", i, s.features))
        for keys in tiles(s, queries, game.seen, block_k):
            _bring(game, keys)
            visit(game, queries, keys)
            _drop(game, keys)
        for i in queries:
            results(game, i)
            game.free(*row("q", i, s.features))


def key_outer(game: Game, block_q: int, block_k: int) -> None:
    """A part of keys and values stays, and every query leaves the sums of it; then they are merged."""
    s, part = game.sizes, block_k
    assert game.part == part
    for keys in tiles(s, range(s.queries), game.seen, part):
        _bring(game, keys)
        for first in range(0, s.queries, block_q):
            queries = range(first, min(first + block_q, s.queries))
            for i in queries:
                _load(game, row("q", i, s.features))
            visit(game, queries, keys)
            for i in queries:
                for node in (n for j in game.ends(i) if j in keys for n in sums(i, j, s.value_features)):
                    game.store(node)
                    game.free(node)
                game.free(*row("q", i, s.features))
        _drop(game, keys)
    for i in range(s.queries):
        ends = game.ends(i)
        for j, before in zip(ends, [None, *ends], strict=False):
            _load(game, sums(i, j, s.value_features))
            for kind, *rest in sums(i, j, s.value_features):  # type: ignore[misc]
                game.compute((kind.upper(), *rest))
                if kind != "m":
                    game.free((kind, *rest), (kind.upper(), i, before, *rest[2:]))
            game.free(("m", i, j), ("M", i, before))
        for c in range(s.value_features):
            game.compute(("out", i, c))
            game.store(("out", i, c))
            game.free(("out", i, c))
        game.free(*(node for kind in "MLO" for node in list(game.red) if node[0] == kind))  # type: ignore[index]


def _load(game: Game, nodes: list[Node]) -> None:
    for node in nodes:
        game.load(node)


def _bring(game: Game, keys: list[int]) -> None:
    for j in keys:
        _load(game, [*row("k", j, game.sizes.features), *row("v", j, game.sizes.value_features)])


def _drop(game: Game, keys: list[int]) -> None:
    for j in keys:
        game.free(*row("k", j, game.sizes.features), *row("v", j, game.sizes.value_features))
