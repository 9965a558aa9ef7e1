"""Pages are neither lost nor leaked nor shared wrongly; prefixes are found by contents and tenant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.runtime.generation.echo_program import EchoProgram, code, layout, visible
from tilewright.errors import EngineError, StepProgramError
from tilewright.runtime.generation.holding import Holding, chain, chain_root
from tilewright.runtime.generation.pages import PageBook
from tilewright.runtime.generation.step import CacheGroup

MIXED = (CacheGroup("full", 20, 8), CacheGroup("ring", 20, 4, window=6), CacheGroup("sinks", 20, 4, window=5, sinks=3))

MOST = 40
KINDS = [(CacheGroup("full", 12, 8),), MIXED, (CacheGroup("ring", 14, 4, window=6),)]
WHICH = st.integers(0, 99)
TAIL = st.lists(st.integers(0, 1), min_size=1, max_size=8)


def write(program: EchoProgram, holding: Holding, tokens: list[int], length: int) -> None:
    """What a step does to the memory, for tokens up to `length`."""
    positions = np.arange(holding.length, length)
    for g, memory in enumerate(program.memory):
        memory[holding.slots(g, holding.length, length)] = code(np.asarray(tokens)[positions], positions)
    holding.commit(tokens, length)


def contents_agree(program: EchoProgram, holding: Holding, tokens: list[int]) -> None:
    """Everything that the next token sees is this request's own."""
    size = program.layout.page_size
    for g, group in enumerate(program.layout.groups):
        seen = visible(group, holding.length)[:-1]
        table = holding.table(g)
        places = table[(seen // size) % len(table)].astype(np.int64) * size + seen % size
        expected = code(np.asarray(tokens)[seen], seen) if len(seen) else []
        np.testing.assert_array_equal(program.memory[g][places], expected)


class Requests:
    """Requests of two tenants over a small alphabet, so that prefixes meet often, in a cache that is too small."""

    def __init__(self, groups: tuple[CacheGroup, ...], share: float) -> None:
        self.program = EchoProgram(layout(groups=groups, max_tokens=MOST))
        whole = PageBook(self.program).budget
        self.book = PageBook(self.program, max(int(whole * share), self.program.layout.bytes_for(8)))
        self.live: list[tuple[Holding, list[int]]] = []

    def admit(self, tokens: list[int], salt: str) -> None:
        if len(self.live) < 6:
            holding = Holding(self.book, chain_root(salt))
            assert holding.match(tokens) <= len(tokens) - 1
            self.live.append((holding, list(tokens)))

    def step(self, count: int, drafts: int, decoded: list[int]) -> None:
        """Every request that finds room goes on; one that has nothing left to compute gets a token."""
        for i, (holding, tokens) in enumerate(self.live):
            if holding.length == len(tokens) < MOST:
                tokens.append(decoded[i % len(decoded)])
            length = min(holding.length + count, len(tokens))
            if length > holding.length and holding.reserve(min(length + drafts, MOST)):
                write(self.program, holding, tokens, length)

    def preempt(self, which: int) -> None:
        if self.live:
            holding, tokens = self.live[which % len(self.live)]
            holding.release()
            holding.match(tokens)

    def rewind(self, which: int, back: int, tail: list[int]) -> None:
        """What comes after the place gone back to is another text."""
        if self.live:
            holding, tokens = self.live[which % len(self.live)]
            holding.rewind(max(0, holding.length - back))
            tokens[holding.length :] = tail[: MOST - holding.length]

    def finish(self, which: int) -> None:
        """A request ends, by itself or cancelled."""
        if self.live:
            self.live.pop(which % len(self.live))[0].release()

    def share(self, which: int, tail: list[int]) -> None:
        """The same beginning, another end."""
        begun = [each for each in self.live if each[0].length]
        if begun and len(self.live) < 6:
            holding, tokens = begun[which % len(begun)]
            other = holding.fork()
            self.live.append((other, [*tokens[: other.length], *tail][:MOST]))

    def evict(self, count: int) -> None:
        taken = self.book.take([count] * len(self.book.pools))
        for g, pages in enumerate(taken or []):
            for page in pages:
                self.program.memory[g].reshape(-1, self.program.layout.page_size)[page] = -1
                self.book.release(g, page)

    def check(self) -> None:
        """Every page is free, kept or held by as many as refer to it; every request finds its own text."""
        book = self.book
        for g, pool in enumerate(book.pools):
            counted = [0] * len(pool.references)
            for holding, _ in self.live:
                for page in holding.pages[g].values():
                    counted[page] += 1
            assert pool.references == counted
            free, kept = set(pool.free), set(pool.kept)
            assert len(free) == len(pool.free)
            assert not free & kept
            assert {page for page, held in enumerate(counted) if held} == set(range(len(counted))) - free - kept
            assert list(pool.kept.values()) == sorted(pool.kept.values())
        assert book.held_bytes + book.kept_bytes <= book.budget
        for holding, tokens in self.live:
            contents_agree(self.program, holding, tokens)
            for g in range(len(book.pools)):
                assert len(holding.pages[g]) <= book.layout.pages_for(g, MOST)

    def end(self) -> None:
        for holding, _ in self.live:
            holding.release()
        assert self.book.held_bytes == 0


@pytest.mark.parametrize("groups", KINDS, ids=["full", "mixed", "window"])
def test_ten_thousand_steps_lose_leak_and_mix_up_no_page(
    groups: tuple[CacheGroup, ...], rng: np.random.Generator
) -> None:
    """The alphabet of two makes many equal beginnings; shares, copies, hits and evictions must all have happened."""
    world = Requests(groups, float(rng.uniform(0.5, 1)))

    def draw(most: int) -> list[int]:
        return rng.integers(0, 2, rng.integers(1, most + 1)).tolist()

    for _ in range(3400):
        which = int(rng.integers(99))
        match rng.choice(7, p=[0.2, 0.4, 0.08, 0.1, 0.1, 0.1, 0.02]):
            case 0:
                world.admit(draw(MOST), str(rng.choice(["a", "b"])))
            case 1:
                world.step(int(rng.integers(1, 17)), int(rng.integers(4)), draw(6))
            case 2:
                world.preempt(which)
            case 3:
                world.rewind(which, int(rng.integers(10)), draw(8))
            case 4:
                world.finish(which)
            case 5:
                world.share(which, draw(8))
            case _:
                world.evict(int(rng.integers(1, 13)))
        world.check()
    world.end()
    account = world.book.account
    assert min(account.copied, account.reused, account.evicted) > 20, account


class PageMachine(RuleBasedStateMachine):
    """The same, chosen by hypothesis, which shrinks what fails."""

    @initialize(groups=st.sampled_from(KINDS), share=st.floats(0.3, 1))
    def start(self, groups: tuple[CacheGroup, ...], share: float) -> None:
        self.world = Requests(groups, share)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=MOST), salt=st.sampled_from("ab"))
    def admit(self, tokens: list[int], salt: str) -> None:
        self.world.admit(tokens, salt)

    @rule(count=st.integers(1, 16), drafts=st.integers(0, 3), decoded=TAIL)
    def step(self, count: int, drafts: int, decoded: list[int]) -> None:
        self.world.step(count, drafts, decoded)

    @rule(which=WHICH)
    def preempt(self, which: int) -> None:
        self.world.preempt(which)

    @rule(which=WHICH, back=st.integers(0, 9), tail=TAIL)
    def rewind(self, which: int, back: int, tail: list[int]) -> None:
        self.world.rewind(which, back, tail)

    @rule(which=WHICH)
    def finish(self, which: int) -> None:
        self.world.finish(which)

    @rule(which=WHICH, tail=TAIL)
    def share(self, which: int, tail: list[int]) -> None:
        self.world.share(which, tail)

    @rule(count=st.integers(1, 12))
    def evict(self, count: int) -> None:
        self.world.evict(count)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


TestPageMachine = PageMachine.TestCase
TestPageMachine.settings = settings(max_examples=15, stateful_step_count=50, deadline=None)


def filled(book: PageBook, tokens: list[int], salt: str = "") -> Holding:
    holding = Holding(book, chain_root(salt))
    holding.match(tokens)
    while holding.length < len(tokens):
        length = min(holding.length + book.layout.step_tokens, len(tokens))
        assert holding.reserve(length)
        write(book.program, holding, tokens, length)
    return holding


def test_a_prefix_is_found_by_its_tokens_its_tenant_and_nothing_less() -> None:
    book = PageBook(EchoProgram(layout()))
    tokens = [*list(range(10)), 3]
    filled(book, tokens, "tenant").release()

    def reused(asked: list[int], salt: str = "tenant") -> int:
        holding = Holding(book, chain_root(salt))
        found = holding.match(asked)
        holding.release()
        return found

    assert reused(tokens) == 8, "the third page is not full"
    assert reused(tokens[:8]) == 7, "one token is left to compute"
    assert reused([*tokens[:7], 0]) == 4
    assert reused(tokens[1:]) == 0, "equal tokens at other positions are another page"
    assert reused([9, *tokens[1:]]) == 0, "a later page hangs on all before it"
    assert reused(tokens, "other") == 0
    assert reused(tokens[:1]) == 0


def test_hashes_depend_on_parent_tokens_salt_and_source() -> None:
    root = chain_root("a")
    hashes = {
        root,
        chain_root("b"),
        chain_root("a", [1]),
        chain_root("a", [1, 0]),
        chain(root, [1]),
        chain(root, [1, 0]),
    }
    hashes |= {chain(chain(root, [1]), [2]), chain(root, [1, 2]), chain(chain_root("b"), [1])}
    assert len(hashes) == 9
    assert chain(root, (1, 2)) == chain(root, np.array([1, 2]))


def test_a_shared_page_is_copied_before_it_is_written_and_only_then() -> None:
    program = EchoProgram(layout())
    book = PageBook(program)
    tokens = [1, 2, 3, 4, 5]
    first = filled(book, tokens)
    second = first.fork()
    assert second.reserve(6)
    assert book.account.copied == 1
    write(program, second, [*tokens, 9], 6)
    assert first.reserve(6)
    assert book.account.copied == 1, "the first is alone with the page by now"
    write(program, first, [*tokens, 8], 6)
    contents_agree(program, first, [*tokens, 8, 0])
    contents_agree(program, second, [*tokens, 9, 0])
    assert first.pages[0][0] == second.pages[0][0]
    assert first.pages[0][1] != second.pages[0][1]


def test_the_last_page_of_a_whole_hit_is_copied_where_others_read_it() -> None:
    program = EchoProgram(layout())
    book = PageBook(program)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    first = filled(book, tokens)
    second = filled(book, tokens)
    assert (book.account.reused, book.account.copied) == (7, 1)
    contents_agree(program, first, [*tokens, 0])
    contents_agree(program, second, [*tokens, 0])
    assert book.pools[0].held == 3


def test_the_page_used_longest_ago_goes_first_and_a_prefix_from_its_end() -> None:
    book = PageBook(EchoProgram(layout(groups=(CacheGroup("full", 6, 8),))))
    old, new = [1] * 12, [2] * 12
    filled(book, old).release()
    filled(book, new).release()
    again = Holding(book, chain_root(""))
    assert again.match(old) == 11
    again.release()
    for page in (book.take([2]) or [[]])[0]:
        book.release(0, page)
    found = Holding(book, chain_root(""))
    assert found.match(new) == 4, "its last two pages went"
    found.release()
    assert Holding(book, chain_root("")).match(old) == 11


def test_a_budget_in_bytes_bounds_held_and_kept_pages_of_all_groups() -> None:
    groups = (CacheGroup("full", 10, 8), CacheGroup("ring", 10, 4, window=4))
    program = EchoProgram(layout(groups=groups))
    page = program.layout.page_bytes(0) + program.layout.page_bytes(1)
    book = PageBook(program, 5 * page)
    assert (program.layout.page_bytes(0), page) == (32, 48)
    held = filled(book, [1] * 8)
    assert book.held_bytes == 2 * 32 + book.pools[1].held * 16
    held.release()
    assert book.held_bytes == 0
    assert book.kept_bytes > 0
    assert book.take([6, 6]) is None
    assert book.held_bytes == 0, "all or nothing"
    assert book.take([5, 5]) is not None
    assert (book.held_bytes, book.kept_bytes) == (5 * page, 0)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 17, 48])
def test_the_longest_request_that_fits_is_the_last_one_that_fits(length: int) -> None:
    program = EchoProgram(layout(groups=MIXED))
    book = PageBook(program, program.layout.bytes_for(length))
    assert book.fits(length)
    longest = book.longest()
    assert longest >= length
    assert longest == 48 or not book.fits(longest + 1)


def test_a_window_holds_as_many_pages_however_long_the_request(rng: np.random.Generator) -> None:
    program = EchoProgram(layout(groups=(CacheGroup("ring", 12, 4, window=6),), max_tokens=4000))
    book = PageBook(program)
    tokens = rng.integers(0, 9, 4000).tolist()
    holding = Holding(book, chain_root(""))
    most = 0
    while holding.length < 4000:
        length = min(holding.length + int(rng.integers(1, 17)), 4000)
        assert holding.reserve(length)
        most = max(most, len(holding.pages[0]))
        write(program, holding, tokens, length)
    assert most <= program.layout.columns(0) == 7
    contents_agree(program, holding, [*tokens, 0])


def test_what_a_tenant_sees_does_not_depend_on_another_tenants_text(rng: np.random.Generator) -> None:
    def seen_by_attacker(secret: list[int]) -> list[int]:
        book = PageBook(EchoProgram(layout(groups=(CacheGroup("full", 12, 8),))))
        filled(book, secret, "victim").release()
        trace = []
        for guess in ([1] * 12, [1] * 8 + [2] * 4, [1] * 12):
            holding = filled(book, guess, "attacker")
            trace += [*holding.pages[0].values(), book.account.reused]
            holding.release()
        return trace

    assert seen_by_attacker([1] * 12) == seen_by_attacker(rng.integers(2, 9, 12).tolist())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"page_size": 0}, "page_size is 0"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"groups": (CacheGroup("k", 0, 8),)}, "group k: pages is 0"),
        ({"groups": (CacheGroup("k", 4, 8, window=0),)}, "window is 0"),
        ({"groups": (CacheGroup("k", 4, 8, sinks=2),)}, "2 sinks make sense beside a window only"),
        ({"groups": (CacheGroup("k", 4, 8), CacheGroup("k", 4, 8))}, "two groups have the same name"),
        ({"groups": ()}, "would remember nothing"),
        ({"recurrent_bytes": 8}, "state_rows is 0"),
        ({"source_tokens": 8, "state_rows": 2}, "starts with a token"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(StepProgramError, match=said):
        layout(**changed)


def test_a_budget_below_one_page_is_refused() -> None:
    with pytest.raises(EngineError, match="31 B does not hold one page a group, 32 B"):
        PageBook(EchoProgram(layout()), 31)
