"""Where keys and values lie between steps: pages of a few tokens each, in states that hold so many pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tilewright.errors import OptionError


@dataclass(frozen=True)
class Kept:
    """Layers that see equally far back and so keep their keys and values equally long.

    window: how many keys a query sees at most, its own included; None for all. unit: of where tables begin, in tokens;
    see `step.py`. columns: most of a table. states: the layers' keys and values by name. token_bytes: of one token over
    all layers.
    """

    name: str
    window: int | None
    unit: int
    columns: int
    states: tuple[str, ...] = ()
    token_bytes: int = 0

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
        """The argument with positions counted from the table's beginning; None where that is the sequence's."""
        return None if self.window is None else f"places_{self.name}"

    @property
    def pages(self) -> str:
        """The dim of the table's columns."""
        return f"pages_{self.name}"


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """page: tokens of a page. most_tokens: of one request, prompt included. most_step: tokens of one step, all requests
    together. most_requests: of one step. budget: bytes of all pages, None for as many as `most_requests` requests of
    `most_tokens` need. segment: tokens of the machine's segments of keys.
    """

    page: int = 16
    most_tokens: int = 4096
    most_step: int = 512
    most_requests: int = 8
    budget: int | None = None
    segment: int = 64

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

    def counts(self, groups: Iterable[Kept]) -> dict[str, int]:
        """Pages of each group by name: in the proportion in which a request of `most_tokens` needs them.

        OptionError where the budget does not hold one page of each.
        """
        groups = tuple(groups)
        wanted = {group.name: self.held(group.window) * self.most_requests for group in groups}
        size = {group.name: group.token_bytes * self.page for group in groups}
        whole = sum(wanted[name] * size[name] for name in wanted)
        if self.budget is None or self.budget >= whole:
            return wanted
        found = {name: count * self.budget // whole for name, count in wanted.items()}
        if not all(found.values()):
            raise OptionError(
                f"a cache budget of {self.budget} B does not hold a page of {self.page} tokens in each group of layers",
                step=f"give it {whole // self.most_requests} B, which hold one request of {self.most_tokens} tokens",
            )
        return found
