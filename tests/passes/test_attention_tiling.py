"""What a tiling is said to move is what its kernels count, and the tiling taken is the best of those counted."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.passes.graphs import Graph
from tests.passes.lower_to_tile.groups import SPACE, draw, reference, run_lowered
from tests.passes.lower_to_tile.test_skeletons import attention
from tilewright.backends.cpu.machines import MACHINES
from tilewright.errors import CapacityError, PassOptionError
from tilewright.ir.attributes import Int
from tilewright.ir.backend import backends
from tilewright.ir.choices import Candidate, best
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.cost import Work
from tilewright.ir.dtypes import BF16, F16, F32, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Level, Machine, Unit
from tilewright.ir.module import dim_space
from tilewright.ir.passing import Context, Pipeline, run_pipeline
from tilewright.ir.schedules import ORDERS, Schedule
from tilewright.ir.tile.counting import Counters
from tilewright.passes.attention_tiling import AttentionTiling
from tilewright.passes.attention_tiling.bounds import compulsory, lower_bound, regime
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import Tiling
from tilewright.passes.lower_to_tile.skeletons import lower_group
from tilewright.passes.pipeline import PASSES
from tilewright.testing import MACHINE, ground, run, transform

CASES: list[dict[str, Any]] = [
    {"heads": 4, "groups": 2},
    {"heads": 3, "groups": 1, "mask": "causal"},
    {"heads": 2, "groups": 2, "mask": "causal", "keys": "t", "lse": True},
    {"heads": 2, "groups": 1, "mask": "causal", "keys": "t", "positions": True},
    {"heads": 2, "groups": 2, "mask": "sliding", "window": 37, "keys": "t"},
    {"heads": 2, "groups": 2, "mask": "chunked", "window": 50, "keys": "t"},
]


def anchor(group: GroupOp) -> AttentionOp:
    return next(op for op in group.block.ops if isinstance(op, AttentionOp))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_count_what_the_closed_forms_say_and_compute_the_same(
    case: dict[str, Any], rng: np.random.Generator
) -> None:
    for block in (16, 24, 40):
        sizes = {"b": 2, "t": int(rng.integers(17, 140)), "s": int(rng.integers(0, 140))}
        made = attention(**case)
        made.properties["schedule"] = Schedule.of({"order": "query-outer", "block_q": block})
        inputs = draw(made, sizes, rng)
        lowered = lower_group(made, "kernel", Context(MACHINES["avx512"](), SPACE))
        counters = Counters()
        results = run_lowered(made, lowered, len(lowered.variants) - 1, inputs, sizes, counters)
        for want, got in zip(reference(made, inputs, sizes), results, strict=True):
            torch.testing.assert_close(torch.from_numpy(got).double(), want.double(), rtol=1e-4, atol=1e-4)

        tiling = Tiling(Sizes.of(anchor(made), sizes), "query-outer", block, 64)
        by_buffer = [moved["read"] + moved["write"] for moved in counters.bytes.buffers.values()]
        inner = len(made.block.args)
        streams = tiling.streams
        assert sum(by_buffer[:1]) == streams["q"]
        assert sum(by_buffer[1:3]) == streams["keys"]
        assert sum(by_buffer[inner:]) == streams["out"]
        assert counters.bytes.matrix == tiling.matrix


PACKED: list[dict[str, Any]] = [
    *(case for case in CASES if case["heads"] > case["groups"]),
    {"heads": 4, "groups": 2, "mask": "sliding", "window": 70, "keys": "t", "sinks": True},
    {"heads": 6, "groups": 2, "valid": True, "bias": True},
]


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_packed_heads_read_their_keys_once_and_have_the_same_bits(
    case: dict[str, Any], rng: np.random.Generator
) -> None:
    group = case["heads"] // case["groups"]
    made = attention(**case)
    made.properties["schedule"] = Schedule.of({"order": "query-outer", "block_q": 16, "heads": group})
    lowered = lower_group(made, "kernel", Context(MACHINES["avx512"](), SPACE))
    assert [v.limit for v in lowered.variants] == [1, 4, None]
    for queries in (1, int(rng.integers(60, 90))):
        sizes = {"b": 2, "t": queries, "s": int(rng.integers(0, 200))}
        inputs, counters = draw(made, sizes, rng), Counters()
        packed = run_lowered(made, lowered, 0, inputs, sizes, counters)
        for alone, got in zip(run_lowered(made, lowered, 2, inputs, sizes), packed, strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), alone.view(np.uint8))
        tiling = Tiling(Sizes.of(anchor(made), sizes), "query-outer", group, 64, heads=group)
        by_buffer = [moved["read"] + moved["write"] for moved in counters.bytes.buffers.values()]
        assert by_buffer[0] == tiling.streams["q"]
        assert sum(by_buffer[1:3]) == tiling.streams["keys"]
        assert sum(by_buffer[len(made.block.args) :]) == tiling.streams["out"]
        assert counters.bytes.matrix == tiling.matrix


def test_heads_are_packed_where_they_share_keys() -> None:
    assert run_on(model(heads=6), context(), AttentionTiling()).schedule.number("heads", 1) == 3
    assert run_on(model(heads=2), context(), AttentionTiling()).schedule.number("heads", 1) == 1
    with pytest.raises(PassOptionError, match="a tile has one query head or all 4 of a key head"):
        run_on(model(heads=8), context(), AttentionTiling(heads=2))


def brute(sizes: Sizes, block_q: int, block_k: int) -> list[tuple[int, set[int]]]:
    """For each tile of queries of one head its rows and the tiles of keys that any row of it may see."""
    found = []
    for begin in range(0, sizes.queries, block_q):
        rows = range(begin, min(begin + block_q, sizes.queries))
        seen = {j // block_k for i in rows for j in range(sizes.keys) if sees(sizes, i, j)}
        found.append((len(rows), seen))
    return found


def sees(sizes: Sizes, i: int, j: int) -> bool:
    at = i + (sizes.shift or 0)
    match sizes.mask:
        case "none":
            return True
        case "causal":
            return j <= at
        case "sliding":
            return j <= at and at - j < sizes.window
        case _:
            return j <= at and at // sizes.window == j // sizes.window


def drawn(rng: np.random.Generator) -> Sizes:
    mask = str(rng.choice(["none", "causal", "sliding", "chunked"]))
    group, key_heads = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    queries, keys = int(rng.integers(1, 60)), int(rng.integers(1, 60))
    features, value_features = (int(n) for n in rng.integers(1, 20, 2))
    window = int(rng.integers(1, 30)) if mask in ("sliding", "chunked") else 0
    return Sizes(
        int(rng.integers(1, 3)), group * key_heads, key_heads, queries, keys, features, value_features, F32, mask,
        window, keys - queries,
    )  # fmt: skip


def test_closed_forms_are_sums_over_the_tiles_that_can_be_seen(rng: np.random.Generator) -> None:
    for _ in range(200):
        sizes = drawn(rng)
        block_q, block_k = (int(n) for n in rng.integers(1, 20, 2))
        visited = sizes.visited(block_q, block_k)
        assert sizes.seen == sum(sees(sizes, i, j) for i in range(sizes.queries) for j in range(sizes.keys))
        # the rows that a last, partial tile lacks would see later keys: the rule does not cut them off
        whole = sizes.queries % block_q == 0
        for (rows, seen), r, n in zip(brute(sizes, block_q, block_k), visited.rows, visited.steps, strict=True):
            assert r == rows
            assert n == len(seen) if whole else n >= len(seen)
        if not whole:
            continue
        tiles = brute(sizes, block_q, block_k)
        heads, pair = sizes.batch * sizes.heads, (sizes.features + sizes.value_features) * 4
        length = {j: min(block_k, sizes.keys - j * block_k) for j in range(-(-sizes.keys // block_k))}
        keys = sum(length[j] for _, seen in tiles for j in seen)
        outer = Tiling(sizes, "query-outer", block_q, block_k).streams
        assert outer["keys"] == heads * keys * pair
        touched = set().union(*(seen for _, seen in tiles))
        part = block_k * int(rng.integers(1, 4))
        by_keys = Tiling(sizes, "key-outer", block_q, block_k, part=part)
        named, parts = by_keys.streams, -(-sizes.keys // part)
        assert named["keys"] == outer["keys"]
        once = sizes.batch * sizes.key_heads * sum(length[j] for j in touched) * pair
        assert by_keys.once == by_keys.named - named["keys"] + min(once, named["keys"])
        # sums are left of every part, and read of those that are seen
        seen_parts = sum(rows * len({j * block_k // part for j in seen}) for rows, seen in tiles)
        left = sizes.rows * parts
        assert named["state"] == (left + heads * seen_parts) * (sizes.value_features + 2) * 4
        assert named["q"] == left * sizes.features * 4


def test_packed_heads_share_their_keys() -> None:
    sizes = Sizes(1, 8, 2, 1, 1000, 64, 64, F32, "causal", 0, 999)
    alone, packed = Tiling(sizes, "query-outer", 16, 64), Tiling(sizes, "query-outer", 16, 64, heads=4)
    assert packed.streams["keys"] == 2 * 1000 * 128 * 4 == alone.streams["keys"] // 4
    assert packed.streams["q"] == alone.streams["q"]


def test_a_matrix_unit_takes_whole_steps_of_its_own_dtype_alone() -> None:
    machine = MACHINES["avx512-amx"]()
    unit = machine.rules.matrix
    assert unit is not None

    def taken(dtype: DType, features: int = 64, keys: int = unit.keys) -> bool:
        return Tiling(Sizes(1, 8, 8, 512, 512, features, 64, dtype), "query-outer", 64, keys).unit(machine) is unit

    assert all((taken(BF16), taken(BF16, features=96), taken(BF16, keys=unit.depth)))
    assert not any((taken(F16), taken(F32), taken(BF16, features=80), taken(BF16, keys=unit.depth + 16)))


def test_what_moves_grows_with_the_square_of_the_length_and_never_falls_below_the_bounds() -> None:
    lengths = [4096, 8192, 16384]
    moved = [Tiling(Sizes(1, 1, 1, n, n, 64, 64, F32), "query-outer", 64, 64).named for n in lengths]
    slope = np.polyfit(np.log(lengths), np.log(moved), 1)[0]
    assert slope == pytest.approx(2, abs=0.03)
    for n in lengths:
        sizes = Sizes(1, 1, 1, n, n, 64, 64, F32)
        for room in (1 << 12, 1 << 15, 1 << 20, 1 << 30):
            tiling = Tiling(sizes, "query-outer", 64, 64)
            assert tiling.passing(room) >= compulsory(sizes)
            assert regime(sizes, room) == ("large" if room >= 64 * 64 * 4 else "small")
            assert lower_bound(sizes, room) >= lower_bound(sizes, 2 * room) >= compulsory(sizes)


def turns(sizes: Sizes, tiles: int) -> list[int]:
    """The order of a head's tiles: from both ends in turn where later ones see more."""
    if sizes.mask != "causal" or sizes.shift is None:
        return list(range(tiles))
    left, found = list(range(tiles)), []
    while left:
        found.append(left.pop(-1 if len(found) % 2 else 0))
    return found


def test_shares_of_cores_are_what_their_contiguous_tiles_visit(rng: np.random.Generator) -> None:
    for _ in range(50):
        sizes = drawn(rng)
        order = str(rng.choice(ORDERS))
        tiling = Tiling(sizes, order, int(rng.integers(1, 30)), 8, part=0 if order == "query-outer" else 16)
        machine = replace(MACHINE, cores=int(rng.integers(1, 6)))
        seen = tiling.visited
        places = range(tiling.splits)
        # programs as (tile, part) pairs; whichever is outermost is taken from both ends
        size = {
            (i, p): int(rows) * max(0, min(begin + keys, 16 * p + 16) - max(begin, 16 * p))
            if tiling.apart
            else rows * keys
            for i, (rows, keys, begin) in enumerate(zip(seen.rows, seen.keys, seen.first, strict=True))
            for p in places
        }
        if order == "key-outer":
            one = [
                size[i, p] for p in turns(sizes, len(places)) for _ in range(sizes.group) for i in range(len(seen.rows))
            ]
            loads = np.tile(one, sizes.batch * sizes.key_heads)
        else:
            one = [size[i, p] for i in turns(sizes, len(seen.rows)) for p in places]
            loads = np.tile(one, sizes.batch * sizes.heads)
        ends = [len(loads) * core // machine.cores for core in range(machine.cores + 1)]
        shares = [loads[a:b].sum() for a, b in pairwise(ends)]
        expected = max(shares) * machine.cores / loads.sum() if loads.sum() else 1.0
        assert tiling.imbalance(machine) == pytest.approx(expected)


def test_causal_tiles_are_shared_evenly_over_cores() -> None:
    for cores in (2, 3, 8):
        sizes = Sizes(1, 1, 1, 8192, 8192, 64, 64, 4, "causal", 0, 0)
        machine = replace(MACHINE, cores=cores)
        assert Tiling(sizes, "query-outer", 64, 64).imbalance(machine) < 1.1


# --- the pass ---------------------------------------------------------------------------------------------------------


def model(mask: str = "causal", heads: int = 4, key_heads: int = 2, size: int = 16) -> Graph:
    g = Graph("b: 1..2", "t: 1..70")
    q, k, v = (g.input(n, ["b", h, "t", size]) for n, h in (("q", heads), ("k", key_heads), ("v", key_heads)))
    g.done(g.op(AttentionOp, q, k, v, scale=0.3, mask=mask))
    return g


def run_on(g: Graph, ctx: Context, p: AttentionTiling) -> GroupOp:
    module = g.module
    ctx.dims = dim_space(module)
    run_pipeline(Pipeline((PASSES["fuse"]()(), p)), module, ctx)
    return next(op for op in module.walk() if isinstance(op, GroupOp))


def context(machine: Machine = MACHINE, **options: Any) -> Context:
    return Context(machine, SPACE, CompileOptions(**options))


def test_the_pass_states_its_choice_and_tells_what_it_weighed(seed: int) -> None:
    ctx = context()
    group = run_on(model(), ctx, AttentionTiling())
    (choice,) = ctx.chosen
    assert choice.chosen is not None
    taken = choice.candidates[choice.chosen]
    assert group.schedule == taken.schedule
    assert taken.refused is None
    told = choice.to_dict()
    assert told["attention"]["mask"] == "causal"
    assert {c["schedule"]["order"] for c in told["candidates"]} == {"query-outer", "key-outer", "split-kv"}
    assert all(c["schedule"]["order"] == "query-outer" for c in told["candidates"] if c["seconds"] == min(
        other["seconds"] for other in told["candidates"]
    ))  # fmt: skip
    assert told["sizes"] == [{"b": 2, "t": 70}, {"b": 1, "t": 17}, {"b": 1, "t": 4}]
    assert told["bounds"]["memory"]["past"] == "cache"
    assert all(c["moved"]["memory"] >= told["compulsory"] for c in told["candidates"])
    ground(model().module, "fuse,attention-tiling,lower-to-tile", seed=seed)


@pytest.mark.parametrize("objective", ["time", "io"])
def test_the_choice_is_the_best_of_all_on_machines_of_every_kind(objective: str, rng: np.random.Generator) -> None:
    for _ in range(25):
        low, high = sorted(int(n) for n in 2 ** rng.integers(10, 22, 2))
        levels = (
            Level("memory", None, float(rng.uniform(1e9, 1e11)), shared=bool(rng.integers(2))),
            Level("l2", high, float(rng.uniform(1e10, 1e12))),
            Level("l1", low, float(rng.uniform(1e11, 1e13))),
        )
        units = tuple(Unit(n, {"f32": float(rng.uniform(1e9, 1e13))}, ("l1",)) for n in ("matrix", "vector"))
        machine = replace(MACHINE, cores=int(rng.integers(1, 9)), levels=levels, units=units)
        ctx = context(machine, objective=objective)
        run_on(model(str(rng.choice(["none", "causal"]))), ctx, AttentionTiling())
        (choice,) = ctx.chosen
        open_ = [c for c in choice.candidates if c.refused is None]
        taken = choice.candidates[choice.chosen or 0]
        if objective == "io":
            assert taken.io(machine) == min(c.io(machine) for c in open_)
        else:
            least = min(np.prod(c.seconds) for c in open_)
            near = [c for c in open_ if np.prod(c.seconds) <= 1.01 ** len(c.seconds) * least]
            assert taken.io(machine) == min(c.io(machine) for c in near)


def test_of_equal_times_the_one_is_taken_that_names_less() -> None:
    def one(seconds: float, memory: float, near: float, refused: str | None = None) -> Candidate:
        work = Work({}, {"memory": memory, "cache": near})
        return Candidate(Schedule.of({"block_q": 1}), (work,), (seconds,), refused)

    weighed = [one(1.005, 8, 30), one(1.0, 8, 40), one(1.2, 1, 1), one(0.1, 0, 0, "no"), one(1.009, 9, 20)]
    assert best(weighed, MACHINE, "time")[0] == 0
    assert best(weighed, MACHINE, "io")[0] == 2
    assert best(weighed[2:4], MACHINE, "time") == (0, "the only one that can be taken")
    assert best(weighed[3:4], MACHINE, "time") == (None, "no candidate can be taken")


def test_every_size_of_a_range_counts_by_ratios() -> None:
    work = (Work({}, {"memory": 1.0}),) * 2
    long, even = (Candidate(Schedule.of({"block_q": n}), work, s) for n, s in ((1, (90.0, 4.0)), (2, (100.0, 2.0))))
    assert best([long, even], MACHINE, "time")[0] == 1


def test_options_are_taken_and_their_results_are_the_same_bits(rng: np.random.Generator) -> None:
    given = {
        n: torch.from_numpy(rng.standard_normal((2, h, 67, 16)).astype(np.float32))
        for n, h in zip("qkv", (4, 2, 2), strict=True)
    }

    found = []
    for block in (17, 64, 128):
        text = f"fuse,attention-tiling{{block-q={block}}},lower-to-tile"
        (out,) = run(transform(model().module, text), given).values()
        found.append(out)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_determinism_decides_which_segments_are_open() -> None:
    ctx = context(determinism="run")
    assert run_on(model(), ctx, AttentionTiling(block_k=32)).schedule.number("block_k", 0) == 32
    with pytest.raises(PassOptionError, match="determinism=batch adds keys in segments of 64"):
        run_on(model(), context(), AttentionTiling(block_k=32))


def step(heads: int) -> Graph:
    """One query of four heads for each of so many key heads, and up to 32768 keys."""
    g = Graph("s: 1..32768")
    q, k, v = (g.input(n, [1, h, t, 64]) for n, h, t in (("q", 4 * heads, 1), ("k", heads, "s"), ("v", heads, "s")))
    g.done(g.op(AttentionOp, q, k, v, scale=0.3))
    return g


def test_keys_are_split_where_heads_leave_cores_idle() -> None:
    for cores, heads, order in ((2, 1, "split-kv"), (2, 3, "split-kv"), (2, 8, "query-outer"), (1, 1, "query-outer")):
        ctx = context(replace(MACHINES["avx512"](), cores=cores))
        assert run_on(step(heads), ctx, AttentionTiling()).schedule.to_dict()["order"] == order
    stated = AttentionTiling(order="split-kv", part=512)
    assert run_on(step(8), context(determinism="run"), stated).schedule.number("part", 0) == 512
    with pytest.raises(PassOptionError, match="parts of 100 keys are not whole segments of 64"):
        run_on(step(8), context(determinism="run"), AttentionTiling(order="split-kv", part=100))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"order": "split-kv", "part": 512}, "merges parts of 1024 keys, not of 512"),
        ({"order": "key-outer", "part": 512}, "merges parts of 1024 keys, not of 512"),
        ({"heads": 3}, "3 heads do not divide the 2 of a key head"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(PassOptionError, match=reason):
        run_on(model(), context(), AttentionTiling(**options))


@pytest.mark.parametrize(
    "options", [{"order": "sideways"}, {"objective": "speed"}, {"block_q": -1}, {"heads": -2}], ids=str
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(PassOptionError, match="attention-tiling: "):
        AttentionTiling(**options)


def test_tiles_beyond_a_scratchpad_are_an_error_with_the_table_and_what_fits() -> None:
    near = Level("near", 40 << 10, 1e11, "explicit", alignment=32)
    units = tuple(replace(unit, reaches=("near",)) for unit in MACHINE.units)
    machine = replace(MACHINE, units=units, levels=(MACHINE.memory, near))
    with pytest.raises(
        CapacityError, match=r"(?s)need \d+ bytes; near holds 40960\n.*queries: 700 rows of 64 bytes"
    ) as raised:
        run_on(model(), context(machine), AttentionTiling(block_q=700))
    assert raised.value.step == "write block-q=512 or less"
    ctx = context(machine)
    assert run_on(model(), ctx, AttentionTiling()).schedule.number("block_q", 0) <= 512


@pytest.mark.parametrize(
    ("options", "step"),
    [({"block_q": 100000}, r"write block-q=\d+ or less"), ({"block_k": 100000}, "write block-k=64")],
    ids=str,
)
def test_tiles_beyond_a_programs_own_memory_are_told_what_fits(options: dict[str, int], step: str) -> None:
    machine = MACHINES["avx512"]()
    table = r"(?s)need \d+ bytes; a program's own memory holds 786432\n.*logits: \d+ rows of \d+ bytes.*keys and values"
    with pytest.raises(CapacityError, match=table) as raised:
        run_on(model(), context(machine), AttentionTiling(**options))
    assert re.fullmatch(step, raised.value.step)
    if "block_q" in options:
        most = int(raised.value.step.split("=")[1].split()[0])
        assert run_on(model(), context(machine), AttentionTiling(block_q=most)).schedule.number("block_q", 0) == most
        with pytest.raises(CapacityError):
            run_on(model(), context(machine), AttentionTiling(block_q=most + 1))


def test_tiles_fit_a_programs_scratch() -> None:
    machine = MACHINES["avx512"]()
    ctx = context(machine)
    # 192 rows need 1376512 bytes: their sums twice, themselves, keys turned, and logits
    assert run_on(model("none", size=512), ctx, AttentionTiling()).schedule.number("block_q", 0) <= 96
    refused = [c for c in ctx.chosen[0].candidates if c.refused and "a program's own memory holds" in c.refused]
    assert {c.schedule.number("block_q", 0) for c in refused} == {192}


def test_devices_weigh_tiles_by_the_memory_they_fill(seed: int) -> None:
    ctx = context(backends()["cuda"].machines["sm_90"](), determinism="run")
    assert run_on(model(size=64), ctx, AttentionTiling()).schedule.number("block_q", 0) >= 16
    assert all("shared" in c.works[0].moved for c in ctx.chosen[0].candidates)


def test_a_schedule_is_held_against_the_groups_kind() -> None:
    group = run_on(model(), context(), AttentionTiling())
    for wrong, reason in (
        ({"block_q": 0}, "block_q = 0 is not a number of 1 or more"),
        ({"order": "other"}, "order = 'other' is not one of"),
        ({"tiles": 3}, "has no choice 'tiles'"),
    ):
        assert any(reason in fault for fault in Schedule.of(wrong).faults(group.kind.data))
    assert not list(group.schedule.faults("attention"))
    assert Int(3) != group.schedule
