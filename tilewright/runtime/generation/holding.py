"""What one request holds of the cache: its pages by place in the sequence, and how far they are filled.

Prefixes are shared by whole pages. A page is known by the hash of everything that its keys and values depend on: the
tenant's salt, the encoder's input, and all tokens up to the page's end, chained page by page. Equal hashes therefore
mean equal bits, and only requests with the same salt meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tilewright.runtime.generation.pages import PageBook
from tilewright.runtime.generation.step import NO_PAGE, Int32, Int64


def chain_root(salt: str | bytes, source: Sequence[int] = ()) -> bytes:
    """The hash that a chain starts from: the tenant's salt and what an encoder has read."""
    salt = salt.encode() if isinstance(salt, str) else salt
    return hashlib.sha256(hashlib.sha256(salt).digest() + np.asarray(source, "<i4").tobytes()).digest()


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of one more full page of tokens after `parent`."""
    return hashlib.sha256(parent + np.asarray(tokens, "<i4").tobytes()).digest()


class Holding:
    """The pages of one request, by group and place, and a row of states. `length` tokens are in the cache.

    Places of a group with a window disappear once no coming query sees them. In a compact group `gone` tokens may have
    been given up, and places are positions less those; such a request's pages are its own and nobody finds them.
    compressed_at: at which length it was last looked at what to give up. `release` gives everything back.
    """

    def __init__(self, book: PageBook, root: bytes) -> None:
        self.book = book
        self.root = root
        self.length = 0
        self.row: int | None = None
        self.gone = [0] * len(book.pools)
        self.compressed_at = 0
        self.pages: list[dict[int, int]] = [{} for _ in book.pools]
        # kept beside `pages`, because a step must not cost as much as a request is long
        self._tables = [np.full(book.layout.columns(g), NO_PAGE, np.int32) for g in range(len(book.pools))]
        self._chain: list[bytes] = []

    def match(self, tokens: Sequence[int]) -> int:
        """Takes up the longest prefix that is published. Returns how many tokens need no computing.

        At least one token is left to compute, because only a computed token has logits.
        """
        book, size = self.book, self.book.layout.page_size
        if not book.layout.rewinds or len(tokens) < 2:
            return 0
        links, found = [], [self.root]
        for end in range(size, len(tokens) + 1, size):
            found.append(chain(found[-1], tokens[end - size : end]))
            links.append([pool.find(found[-1]) for pool in book.pools])
            # a page that every later token sees ends the prefix where it is missing
            held = zip(links[-1], book.layout.groups, strict=True)
            if any(page is None and group.window is None for page, group in held):
                links.pop()
                break
        for count in range(len(links), 0, -1):
            length = min(count * size, len(tokens) - 1)
            needed = [[p for p in range(count) if self._is_needed(g, p, length)] for g in range(len(book.pools))]
            if all(links[p][g] is not None for g, places in enumerate(needed) for p in places):
                for g, places in enumerate(needed):
                    for p in places:
                        page = links[p][g]
                        assert page is not None
                        book.pools[g].retain(page)
                        self._put(g, p, page)
                self.length, self._chain = length, found[1 : length // size + 1]
                book.account.reused += length
                return length
        return 0

    def _is_needed(self, group: int, place: int, length: int) -> bool:
        """Whether the query at position `length` or a later one sees a position of this page before it."""
        of, size = self.book.layout.groups[group], self.book.layout.page_size
        return of.window is None or place * size < of.sinks or (place + 1) * size > length - of.window + 1

    @property
    def is_compressed(self) -> bool:
        """Whether tokens were given up: what is left is not the beginning of any other text."""
        return any(self.gone)

    def wanted(self, length: int) -> list[int]:
        """How many more pages of each group it takes to hold `length` tokens."""
        size, counts = self.book.layout.page_size, []
        for g, held in enumerate(self.pages):
            first, last = (self.length - self.gone[g]) // size, -(-(length - self.gone[g]) // size)
            fresh = sum(place not in held for place in range(first, last))
            counts.append(fresh + self._writes_shared(g))
        return counts

    def _writes_shared(self, group: int) -> bool:
        """Whether the next token falls into a page that others hold, too."""
        page = self.pages[group].get((self.length - self.gone[group]) // self.book.layout.page_size)
        return page is not None and self.book.pools[group].references[page] > 1

    def reserve(self, length: int) -> bool:
        """Makes the places of tokens up to `length` ready to be written; False and nothing changed without room."""
        book, size = self.book, self.book.layout.page_size
        taken = book.take(self.wanted(length))
        if taken is None:
            return False
        for g, fresh in enumerate(taken):
            held, first, last = self.pages[g], (self.length - self.gone[g]) // size, -(-(length - self.gone[g]) // size)
            if self._writes_shared(g):
                page = fresh.pop()
                book.copy(g, held[first], page)
                book.release(g, held[first])
                self._put(g, first, page)
            elif first in held:
                # alone with it: what it was published for ends here, and committing publishes it anew
                book.pools[g].unpublish(held[first])
            for place in range(first, last):
                if place not in held:
                    self._put(g, place, fresh.pop())
        return True

    def commit(self, tokens: Sequence[int], length: int) -> None:
        """`length` of the request's `tokens` are in the cache now; full pages become findable."""
        book, size = self.book, self.book.layout.page_size
        book.account.computed += length - self.length
        self.length = length
        self._drop_after(length)
        for place in range(len(self._chain), 0 if self.is_compressed else length // size):
            parent = self._chain[-1] if self._chain else self.root
            self._chain.append(chain(parent, tokens[place * size : (place + 1) * size]))
            for g, held in enumerate(self.pages):
                if book.layout.rewinds and place in held:
                    book.pools[g].publish(held[place], self._chain[-1])
        for g, held in enumerate(self.pages):
            # a group with a window holds few pages; one without loses none
            if book.layout.groups[g].window is not None:
                for place in [p for p in held if not self._is_needed(g, p, length)]:
                    self._drop(g, place)

    def rewind(self, length: int) -> None:
        """Goes back to `length` tokens, or to none where what they see is gone."""
        if length >= self.length:
            return
        size = self.book.layout.page_size
        needed = all(
            place in held
            for g, held in enumerate(self.pages)
            for place in range(-(-(length - self.gone[g]) // size))
            if self._is_needed(g, place, length)
        )
        whole = not self.is_compressed or length >= self.compressed_at
        self.length = length if needed and whole and self.book.layout.rewinds else 0
        if not self.length:
            self._forget()
        del self._chain[self.length // size :]
        self._drop_after(self.length)

    def _drop_after(self, length: int) -> None:
        for g, held in enumerate(self.pages):
            first = -(-(length - self.gone[g]) // self.book.layout.page_size)
            if self.book.layout.groups[g].window is not None:
                for place in [p for p in held if p >= first]:
                    self._drop(g, place)
            else:
                # all places up to the last one are held: they make up how many there are
                for place in range(len(held) - 1, first - 1, -1):
                    self._drop(g, place)

    def _put(self, group: int, place: int, page: int) -> None:
        self.pages[group][place] = page
        table = self._tables[group]
        table[place % len(table)] = page

    def _drop(self, group: int, place: int) -> None:
        self.book.release(group, self.pages[group].pop(place))
        table = self._tables[group]
        table[place % len(table)] = NO_PAGE

    def fork(self) -> Holding:
        """Another request with the same tokens in the cache; pages are shared until one of the two writes."""
        other = Holding(self.book, self.root)
        if self.book.layout.has_rows:
            return other
        other.length, other._chain = self.length, list(self._chain)
        other.gone, other.compressed_at = list(self.gone), self.compressed_at
        other.pages = [dict(held) for held in self.pages]
        other._tables = [table.copy() for table in self._tables]
        for pool, held in zip(self.book.pools, self.pages, strict=True):
            for page in held.values():
                pool.retain(page)
        return other

    def release(self) -> None:
        """Gives back all pages, the last ones first, so that a prefix is evicted from its end; and the row."""
        for g, held in enumerate(self.pages):
            for place in sorted(held, reverse=True):
                self.book.release(g, held[place])
            held.clear()
            self._tables[g].fill(NO_PAGE)
        if self.row is not None:
            self.book.release_row(self.row)
            self.row = None
        self.length = 0
        self._forget()
        self._chain.clear()

    def _forget(self) -> None:
        """What was given up matters no more."""
        self.gone, self.compressed_at = [0] * len(self.pages), 0

    def empty(self, group: int) -> None:
        """Gives back a compact group's pages: what they hold is to be written elsewhere, or to be lost."""
        for place in sorted(self.pages[group], reverse=True):
            self._drop(group, place)

    def refill(self, group: int, count: int) -> bool:
        """Takes pages for `count` tokens, all that is left of an emptied group; False without room."""
        pages = [0] * len(self.pages)
        pages[group] = -(-count // self.book.layout.page_size)
        taken = self.book.take(pages)
        if taken is None:
            return False
        for place, page in enumerate(taken[group]):
            self._put(group, place, page)
        self.gone[group] = self.length - count
        return True

    def slots(self, group: int, first: int, last: int) -> Int64:
        """Cache addresses of positions first .. last - 1: [last - first] int64."""
        size, held = self.book.layout.page_size, self.pages[group]
        positions = np.arange(first, last, dtype=np.int64) - self.gone[group]
        return np.array([held[p] for p in (positions // size).tolist()], np.int64) * size + positions % size

    def table(self, group: int) -> Int32:
        """The request's row of a group's page table: [columns] int32."""
        return self._tables[group]
