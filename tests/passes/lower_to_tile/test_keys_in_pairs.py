"""Keys and values that a launch of its own brings into pairs give the bits of those that every tile of queries does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tests.passes.lower_tile_to_loops.running import check_counts, machine
from tests.passes.lower_tile_to_loops.running import inputs as drawn
from tests.passes.lower_tile_to_loops.test_dots import every
from tests.passes.lower_to_tile.groups import draw, group, run_lowered
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import BF16, I1, I64
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.shape import TransposeOp
from tilewright.ir.graph.structure import GroupOp, PositionsOp
from tilewright.ir.loops import MatrixDot
from tilewright.ir.passing import Context
from tilewright.ir.schedules import Schedule
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.types import TensorType
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import scheduled
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

UNIT = machine("avx512-amx")
SPACE = DimSpace([Dim("b", 0, 4), Dim("t", 0, 3000), Dim("s", 0, 3000)])
ROWS = 32


def attention(
    *, heads: int = 2, groups: int = 1, size: int = 32, value_size: int = 48, keys: str = "s", valid: str = "",
    positions: bool = False, **given: Any,
) -> GroupOp:  # fmt: skip
    """Heads behind tokens in memory, as projections leave them. valid: "keys", "heads" or "queries", what it is of."""
    shapes = ((heads, "t", size), (groups, keys, size), (groups, keys, value_size))
    types = [TensorType.of(("b", n, h, d), BF16) for h, n, d in shapes]
    masks: dict[str, tuple[Any, ...]] = {
        "keys": ("b", keys), "heads": ("b", heads, 1, keys), "queries": (1, 1, "t", keys),
    }  # fmt: skip
    types += [TensorType.of(masks[valid], I1)] if valid else []

    def build(g: Any, q: Any, k: Any, v: Any, *rest: Any) -> Any:
        q, k, v = (g.add(TransposeOp.make(x, permutation=(0, 2, 1, 3))) for x in (q, k, v))
        place = [g.add(PositionsOp.make(result_types=[TensorType.of((n,), I64)])) for n in ("t", keys)]
        at = place if positions else [None, None]
        op = AttentionOp.make(q, k, v, None, rest[0] if rest else None, *at, scale=0.3, **given)
        g.add(op)
        return [g.add(TransposeOp.make(op.out, permutation=(0, 2, 1, 3))), *([op.lse_out] if op.lse.data else [])]

    return group("attention", types, build)


def lowered(made: GroupOp, pairs: int) -> Lowered:
    made.properties["schedule"] = Schedule.of({"order": "query-outer", "block_q": ROWS, "block_k": 128, "pairs": pairs})
    return lower_group(made, "kernel", Context(UNIT, SPACE))


def anchor(made: GroupOp) -> AttentionOp:
    return next(op for op in made.block.ops if isinstance(op, AttentionOp))


CASES: list[dict[str, Any]] = [
    {"groups": 2, "keys": "t", "mask": "causal", "lse": True},
    {"heads": 4, "groups": 2, "valid": "keys"},
    {"keys": "t", "mask": "sliding", "window": 150},
    {"keys": "t", "mask": "causal", "positions": True, "size": 64},
    {"mask": "causal"},
    {"keys": "t", "mask": "chunked", "window": 140, "softcap": 3.0},
    {"heads": 4, "groups": 2},
    {"groups": 2, "valid": "heads"},
    {"valid": "queries"},
]
FAST = 3


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[] if number < FAST else pytest.mark.slow)
        for number, case in enumerate(CASES)
    ],
)
def test_pairs_made_once_have_the_bits_of_pairs_made_in_every_tile(
    case: dict[str, Any], rng: np.random.Generator
) -> None:
    made = attention(**case)
    once, each = lowered(made, 1), lowered(attention(**case), 0)
    assert once.first is not None
    assert each.first is None
    last = len(once.variants) - 1
    kernels = [once.first.variants[0].kernel, once.variants[last].kernel]
    assert [k.sym_name.data for k in kernels] == ["kernel_pairs", f"kernel_q{ROWS}_paired"]
    sizes = {"b": 1, "t": int(rng.integers(ROWS + 1, 2 * ROWS + 2)), "s": int(rng.integers(129, 290))}
    inputs, counters = draw(made, sizes, rng), Counters()
    got = run_lowered(made, once, last, inputs, sizes, counters)
    for value, alone in zip(got, run_lowered(made, each, len(each.variants) - 1, inputs, sizes), strict=True):
        np.testing.assert_array_equal(value.view(np.uint8), alone.view(np.uint8))
    dims = {name: sizes[name] for name in once.dims}
    counted = [kernel_traffic(kernel).counts(dims) for kernel in kernels]
    for kind in ("read", "write", "matrix", "vector"):
        assert sum(c.of(kind) for c in counted) == counters.bytes.of(kind)
    for kernel in kernels:
        lower_kernel(kernel, UNIT)  # what it reads without masks is proved to be there
    tiling = scheduled(Sizes.of(anchor(made), sizes), made.schedule, UNIT.rules)
    if "valid" not in case:
        assert counters.bytes.read + counters.bytes.write == tiling.named
        assert counters.bytes.matrix == tiling.matrix


@pytest.mark.slow
def test_loops_store_pairs_as_tiles_do_and_count_the_same(rng: np.random.Generator) -> None:
    once = lowered(attention(valid="keys"), 1)
    assert once.first is not None
    for kernel in (once.first.variants[0].kernel, once.variants[-1].kernel):
        dims = {"b": 1, "t": ROWS + 5, "s": int(rng.integers(129, 200))}
        check_counts(kernel, dims, drawn(kernel, dims, rng))


def test_few_queries_have_no_pairs(rng: np.random.Generator) -> None:
    """One tile of queries has nothing to share: the launch before has no programs then, and no memory."""
    made = attention()
    once = lowered(made, 1)
    assert once.first is not None
    for queries in (0, 1, 16, ROWS, ROWS + 1):
        sizes = {"b": 2, "t": queries, "s": int(rng.integers(1, 300))}
        (number,) = {next(i for i, v in enumerate(once.variants) if v.limit is None or queries <= v.limit)}
        kernel = once.first.variants[0].kernel
        dims = {name: sizes[name] for name in once.dims}
        words = [buffer(v).elements.evaluate(dims) for v in kernel.buffers[-2:]]
        segments = -(-sizes["s"] // 128) if queries > ROWS else 0
        assert words == [2 * segments * 128 * 32, 2 * segments * 128 * 48]
        assert ("paired" in once.variants[number].kernel.sym_name.data) == (queries > ROWS)
        tiling = scheduled(Sizes.of(anchor(made), sizes), made.schedule, UNIT.rules)
        assert (tiling.launches, tiling.paired) == ((2, True) if queries > ROWS else (1, False))


@pytest.mark.slow
@pytest.mark.skipif("avx512-amx" not in host_classes(), reason="this machine has no matrix unit, or does not lend it")
def test_kernels_give_every_row_its_bits_whether_pairs_are_made_before_or_not(rng: np.random.Generator) -> None:
    case: dict[str, Any] = {"groups": 1, "heads": 2, "keys": "t", "mask": "causal"}
    once, each = lowered(attention(**case), 1), lowered(attention(**case), 0)
    assert once.first is not None
    pack, paired, alone = (
        NativeKernel(lower_kernel(v.kernel, UNIT), "avx512-amx")
        for v in (once.first.variants[0], once.variants[-1], each.variants[-1])
    )
    for tokens in (ROWS + 1, 257, int(rng.integers(1025, 1400))):
        sizes = {"b": 2, "t": tokens}
        dims = [sizes[name] for name in once.dims]
        given = [x.float().numpy().astype(BF16.numpy()).reshape(-1) for x in draw(attention(**case), sizes, rng)]
        pairs = [
            np.full(buffer(v).elements.evaluate(sizes), np.nan, BF16.numpy())
            for v in once.first.variants[0].kernel.buffers[-2:]
        ]
        for threads in (1, 2):
            got, want = (np.full(2 * tokens * 2 * 48, np.nan, BF16.numpy()) for _ in range(2))
            pack([*given, *pairs], dims, nthreads=threads)
            paired([*given, *pairs, got], dims, nthreads=threads)
            alone([*given, want], dims, nthreads=threads)
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


def test_the_unit_stays_awake_between_the_products_of_a_segment() -> None:
    """Products that nobody reads stand between rows of exponentials, as far apart as the unit's patience."""
    kernel = lowered(attention(), 1).variants[-1].kernel
    matrix = UNIT.rules.matrix
    assert matrix is not None

    def products(idle: int | None) -> int:
        rules = replace(UNIT.rules, matrix=replace(matrix, idle=idle))
        return sum(isinstance(op, MatrixDot) for op in every(lower_kernel(kernel, replace(UNIT, rules=rules))))

    assert products(128) == products(None) + 2  # one in the loop over whole segments, one in that over the others
    vectors = ROWS * 128 // UNIT.rules.lanes
    assert products(vectors) == products(None), "a band's rows are within its patience"
