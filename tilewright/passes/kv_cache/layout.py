"""Where keys and values lie between steps: pages of a few tokens each, in states that hold so many pages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tilewright.errors import OptionError

# The states of an attention's keys and values.
NAMES, LATENTS = ("keys", "values"), ("latents",)


@dataclass(frozen=True, slots=True)
class Codes:
    """Old keys and values as codes of `bits` bits (4 or 8), in pages; the last pages before a token as they are.

    Keys have a scale a feature and page, values one a token and head, both with a lowest number beside them. recent: so
    many tokens at least are seen in full precision.
    """

    bits: int
    recent: int = 64

    def near_pages(self, page: int) -> int:
        """How many pages a token sees in full precision, its own included: it may be its page's first token."""
        return -(-self.recent // page) + 1


@dataclass(frozen=True, slots=True)
class Compact:
    """Keys and values of layers without a window move together once some are given up, so that a key's place in the
    cache is not its position. observed: so many last queries are kept for who chooses; 0 for none. counted: a key has
    the logarithm of how many it stands for.
    """

    observed: int = 0
    counted: bool = False


@dataclass(frozen=True)
class Compressible:
    """What an attention keeps that may be given up: states by name, and what makes its logits. values: None where they
    are the keys' first features.
    """

    keys: str
    values: str | None
    queries: str | None
    log_counts: str | None
    scale: float
    softcap: float


@dataclass(frozen=True)
class Kept:
    """Layers that see equally far back and so keep their keys and values equally long.

    window: how many keys a query sees at most, its own included; None for all. unit: of where tables begin, in tokens;
    see `step.py`. columns: most of a table. layers: numbers of their attentions. states: the layers' keys and values by
    name. token_bytes: of one token over all layers. page_extra: bytes of a page beside its tokens, scales of keys.
    codes: what is kept as codes. compact: places in the cache are told by the caller. read: whether attention reads it;
    what is not read has no table.
    """

    name: str
    window: int | None
    unit: int
    columns: int
    layers: tuple[int, ...] = ()
    states: tuple[str, ...] = ()
    token_bytes: int = 0
    page_extra: int = 0
    codes: Codes | None = None
    compact: bool = False
    read: bool = True

    @property
    def slots(self) -> str:
        """The argument that says where new tokens go."""
        return f"slots_{self.name}"

    @property
    def table(self) -> str:
        """The argument that says which pages requests have."""
        return f"table_{self.name}"

    @property
    def places(self) -> str | None:
        """The argument with tokens' places, counted from the table's beginning; None where those are positions."""
        return None if self.window is None and not self.compact else f"places_{self.name}"

    @property
    def pages(self) -> str:
        """The dim of the table's columns."""
        return f"pages_{self.name}"


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """page: tokens of a page. most_tokens: of one request, prompt included. most_step: tokens of one step, all requests
    together. most_requests: of one step. budget: bytes of all pages and rows, None for as many as `most_requests`
    requests of `most_tokens` need. segment, part: tokens of the machine's segments of keys, and of its parts of
    segments. codes: how keys and values of layers without a window are kept; None as they are. most_source: tokens that
    an encoder reads at most; 0 for a model without one. compact: what is kept so that old tokens can be given up.
    """

    page: int = 16
    most_tokens: int = 4096
    most_step: int = 512
    most_requests: int = 8
    budget: int | None = None
    segment: int = 64
    part: int = 1024
    codes: Codes | None = None
    most_source: int = 0
    compact: Compact | None = None

    def __post_init__(self) -> None:
        counts = ("page", "most_tokens", "most_step", "most_requests", "segment")
        faults = [f"{name}: {getattr(self, name)} is below 1" for name in counts if getattr(self, name) < 1]
        if self.budget is not None and self.budget < 1:
            faults.append(f"budget: {self.budget} B hold nothing")
        if faults:
            raise OptionError(faults, step="give numbers of 1 and more")

    @property
    def most_pages(self) -> int:
        """Of one request that keeps all its tokens."""
        return -(-self.most_tokens // self.page)

    def unit(self, window: int | None) -> int:
        """A group's tables begin at multiples of so many tokens: where segments do, so that the order of summing over
        keys stays the sequence's; and where parts do, if there can be more than one.
        """
        small = math.lcm(self.page, self.segment)
        one_part = window is None or self.columns(window, small) * self.page <= self.part
        return small if one_part else math.lcm(small, self.part)

    def page_bytes(self, group: Kept) -> int:
        """Bytes of a page of a group, over all its layers."""
        return self.page * group.token_bytes + group.page_extra

    def columns(self, window: int | None, unit: int) -> int:
        """Most columns of a table: what is seen and written in one step, and the way to where the table may begin."""
        if window is None:
            return self.most_pages
        return min(self.most_pages, -(-(window + self.most_step + unit) // self.page) + 1)

    def held(self, window: int | None) -> int:
        """Most pages that one request holds at one time."""
        if window is None:
            return self.most_pages
        return min(self.most_pages, -(-(window + self.most_step) // self.page) + 1)

    def counts(self, groups: Iterable[Kept], row_bytes: int = 0) -> dict[str, int]:
        """Pages of each group by name: in the proportion in which a request of `most_tokens` needs them.

        row_bytes: of what a request keeps besides, taken from the budget first. OptionError where that does not hold
        one page of each group.
        """
        groups = tuple(groups)
        wanted = {group.name: self.held(group.window) * self.most_requests for group in groups}
        size = {group.name: self.page_bytes(group) for group in groups}
        whole, rows = sum(wanted[name] * size[name] for name in wanted), self.most_requests * row_bytes
        if self.budget is None or self.budget >= whole + rows:
            return wanted
        left = self.budget - rows
        found = {name: count * left // whole for name, count in wanted.items()}
        if left < 0 or not all(found.values()):
            beside = f" beside the states of {self.most_requests} requests, {rows} B" if rows else ""
            raise OptionError(
                f"a cache budget of {self.budget} B does not hold a page of {self.page} tokens in each group of layers"
                f"{beside}",
                step=f"give it {whole // self.most_requests + rows} B, which hold one request of {self.most_tokens} "
                "tokens",
            )
        return found


def names(layer: int, parts: Iterable[str]) -> list[str]:
    """The states of an attention; attentions are counted from 0 in the order of the graph."""
    return [f"cache.{layer}.{part}" for part in parts]


def joined(group: Kept, more: Kept) -> Kept:
    """A group with another layer's share."""
    return replace(
        group, layers=(*group.layers, *more.layers), states=(*group.states, *more.states),
        token_bytes=group.token_bytes + more.token_bytes, page_extra=group.page_extra + more.page_extra,
    )  # fmt: skip
