"""Pages of the cache: who holds which, what may be shared, what goes when room is needed.

A page is in one of three conditions. *Free*: it holds nothing. *Held*: requests refer to it, `references` counts them.
*Kept*: nobody refers to it, but it is full and published under the hash of all that it depends on, so the next request
with that prefix takes it up again. Kept pages are evicted in order of last use. Nothing here depends on time or on
hashes of Python objects: the same calls give the same pages.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.errors import EngineError
from tilewright.runtime.generation.step import StepLayout, StepProgram


class PagePool:
    """The pages of one cache group. A kept page's stamp says when it was last released: lower is older."""

    def __init__(self, pages: int) -> None:
        self.references = [0] * pages
        self.free = deque(range(pages))
        self.kept: OrderedDict[int, int] = OrderedDict()
        self._keys: list[bytes | None] = [None] * pages
        self._published: dict[bytes, int] = {}

    @property
    def held(self) -> int:
        """How many pages requests refer to."""
        return len(self.references) - len(self.free) - len(self.kept)

    @property
    def available(self) -> int:
        """How many pages can be taken, by eviction where need be."""
        return len(self.free) + len(self.kept)

    def take(self) -> int:
        """A free page, held once."""
        page = self.free.popleft()
        self.references[page] = 1
        return page

    def evict(self) -> int:
        """Frees the page that has been kept longest, and gives it."""
        page, _ = self.kept.popitem(last=False)
        self.unpublish(page)
        self.free.append(page)
        return page

    def retain(self, page: int) -> None:
        """One more request refers to a held or kept page."""
        self.kept.pop(page, None)
        self.references[page] += 1

    def release(self, page: int, stamp: int) -> None:
        """One request less refers to a page; the last one leaves it kept if it is published, else free."""
        self.references[page] -= 1
        if self.references[page]:
            return
        if self._keys[page] is None:
            self.free.append(page)
        else:
            self.kept[page] = stamp

    def publish(self, page: int, key: bytes) -> None:
        """Makes a full page findable. Of two pages with equal contents the first one published is found."""
        if self._keys[page] is None and key not in self._published:
            self._keys[page] = key
            self._published[key] = page

    def unpublish(self, page: int) -> None:
        """A page whose contents will change is no longer found."""
        key = self._keys[page]
        if key is not None:
            del self._published[key]
            self._keys[page] = None

    def find(self, key: bytes) -> int | None:
        """The page published under a key."""
        return self._published.get(key)


@dataclass
class Account:
    """What has happened since the book was opened; the same requests in the same order give the same numbers.

    computed: tokens that went through a step. reused: prompt tokens whose pages were found. copied, evicted: pages.
    preempted: requests that gave their pages back and were recomputed.
    """

    computed: int = 0
    reused: int = 0
    copied: int = 0
    evicted: int = 0
    preempted: int = 0


class PageBook:
    """The pages of all groups and the rows of per-request states, under one budget in bytes.

    budget: bytes that held and kept pages and rows may take together; None for all that the program has. Raises
    EngineError where not a single page of each group fits.
    """

    def __init__(self, program: StepProgram, budget: int | None = None) -> None:
        self.program = program
        self.layout: StepLayout = program.layout
        self.pools = [PagePool(group.pages) for group in self.layout.groups]
        self.rows = deque(range(self.layout.state_rows if self.layout.has_rows else 0))
        whole = self._bytes([group.pages for group in self.layout.groups]) + len(self.rows) * self.layout.row_bytes
        self.budget = whole if budget is None else min(budget, whole)
        self.account = Account()
        self._clock = 0
        if self.budget < (least := self.layout.bytes_for(1)):
            raise EngineError(
                f"a cache budget of {budget} B does not hold one page a group, {least} B",
                step=f"give a budget of {self.layout.bytes_for(self.layout.max_tokens)} B: one request of full length",
            )

    def _bytes(self, counts: Sequence[int]) -> int:
        return sum(count * self.layout.page_bytes(g) for g, count in enumerate(counts))

    @property
    def held_bytes(self) -> int:
        """Bytes that requests hold."""
        rows = (self.layout.state_rows if self.layout.has_rows else 0) - len(self.rows)
        return self._bytes([pool.held for pool in self.pools]) + rows * self.layout.row_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of pages that are kept for prefixes to come."""
        return self._bytes([len(pool.kept) for pool in self.pools])

    def fits(self, length: int) -> bool:
        """Whether a request of so many tokens would fit if it had the cache to itself."""
        layout = self.layout
        enough = all(layout.pages_for(g, length) <= group.pages for g, group in enumerate(layout.groups))
        return enough and layout.bytes_for(length) <= self.budget

    def longest(self) -> int:
        """The most tokens of a request that fit if it has the cache to itself."""
        low, high = 0, self.layout.max_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(middle) else (low, middle - 1)
        return low

    def room_for(self, counts: Sequence[int], row: bool = False) -> bool:
        """Whether so many pages a group (and a row) can be had now, kept pages given up."""
        if any(count > pool.available for count, pool in zip(counts, self.pools, strict=True)):
            return False
        if row and not self.rows:
            return False
        return self.held_bytes + self._bytes(counts) + row * self.layout.row_bytes <= self.budget

    def take(self, counts: Sequence[int]) -> list[list[int]] | None:
        """So many pages of each group, or None and nothing at all."""
        if not self.room_for(counts):
            return None
        for pool, count in zip(self.pools, counts, strict=True):
            for _ in range(count - len(pool.free)):
                pool.evict()
                self.account.evicted += 1
        self._make_room(self._bytes(counts))
        return [[pool.take() for _ in range(count)] for pool, count in zip(self.pools, counts, strict=True)]

    def take_row(self) -> int | None:
        """A row of per-request states, or None where there is none or no room."""
        if not self.room_for([0] * len(self.pools), row=True):
            return None
        self._make_room(self.layout.row_bytes)
        return self.rows.popleft()

    def release_row(self, row: int) -> None:
        self.rows.append(row)

    def release(self, group: int, page: int) -> None:
        """One holder less."""
        self._clock += 1
        self.pools[group].release(page, self._clock)

    def copy(self, group: int, source: int, target: int) -> None:
        """A page's contents into another one that the caller holds."""
        self.program.copy_page(group, source, target)
        self.account.copied += 1

    def _make_room(self, wanted: int) -> None:
        """Evicts kept pages, the oldest of all groups first, until `wanted` bytes fit into the budget."""
        while self.held_bytes + self.kept_bytes + wanted > self.budget:
            oldest = min((pool for pool in self.pools if pool.kept), key=lambda pool: next(iter(pool.kept.values())))
            oldest.evict()
            self.account.evicted += 1
