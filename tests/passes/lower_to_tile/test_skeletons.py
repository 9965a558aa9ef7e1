"""Every skeleton's kernels compute what the group says, at awkward sizes, in every variant, without touching poison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.passes.lower_to_tile.groups import draw, group, lower, reference, run_lowered
from tilewright.ir.dims import ExprLike
from tilewright.ir.dtypes import BF16, F32, I1, I64, DType
from tilewright.ir.graph.attention import AttentionOp, RotaryOp
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp, TakeAlongOp
from tilewright.ir.graph.reduction import NormOp, ReduceOp, SoftmaxOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import ConstantOp, GroupOp, IotaOp, PositionsOp
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.types import TensorType


def f32(*dims: ExprLike) -> TensorType:
    return TensorType.of(dims, F32)


def typed(dtype: DType, *dims: ExprLike) -> TensorType:
    return TensorType.of(dims, dtype)


SIZES = [{"b": 1, "t": 1, "s": 1}, {"b": 3, "t": 7, "s": 5}, {"b": 2, "t": 67, "s": 71}]
EMPTY = {"b": 2, "t": 0, "s": 3}


def check(
    made: GroupOp, sizes: dict[str, int], rng: np.random.Generator, *, tolerance: float = 1e-4, high: int = 5
) -> None:
    """Every variant equals the float64 reference."""
    inputs = draw(made, sizes, rng, high)
    wanted = reference(made, inputs, sizes)
    lowered = lower(made)
    for variant in range(len(lowered.variants)):
        results = run_lowered(made, lowered, variant, inputs, sizes)
        for want, got in zip(wanted, results, strict=True):
            found = torch.from_numpy(np.asarray(got, np.float64))
            torch.testing.assert_close(found, want.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def bias_gelu() -> GroupOp:
    return group(
        "map",
        [f32("b", "t", 50), f32(50)],
        lambda g, x, w: [g.add(MapOp.make(g.add(MapOp.make(x, w, fn="add")), fn="gelu"))],
    )


def permuted() -> GroupOp:
    return group(
        "map",
        [f32("b", "t", 4, 9), f32("t", 9)],
        lambda g, x, w: [g.add(MapOp.make(g.add(TransposeOp.make(x, permutation=(0, 2, 1, 3))), w, fn="mul"))],
    )


def split_heads() -> GroupOp:
    return group(
        "map",
        [f32("b", "t", 36)],
        lambda g, x: [
            g.add(TransposeOp.make(g.add(ReshapeOp.make(x, dims=["b", "t", 4, 9])), permutation=(0, 2, 3, 1)))
        ],
    )


def sliced() -> GroupOp:
    return group(
        "map",
        [f32("b", "t", 20)],
        lambda g, x: [
            g.add(MapOp.make(g.add(SliceOp.make(x, starts=[0, 0, 3], stops=["b", "t", 17], steps=[1, 1, 2])), fn="neg"))
        ],
    )


def causal_mask() -> GroupOp:
    def build(g, x):  # type: ignore[no-untyped-def]
        rows = g.add(IotaOp.make(axis=0, result_types=[typed(I64, "t", 1)]))
        columns = g.add(IotaOp.make(axis=1, start=[1], step=2, result_types=[typed(I64, 1, "s")]))
        seen = g.add(MapOp.make(columns, rows, fn="le"))
        low = g.add(ConstantOp.of(-1e9, (), F32))
        return [g.add(MapOp.make(seen, x, low, fn="select"))]

    return group("map", [f32("b", "t", "s")], build)


def embedding() -> GroupOp:
    def build(g, table, ids, places, scale):  # type: ignore[no-untyped-def]
        words = g.add(GatherOp.make(table, ids))
        return [g.add(MapOp.make(g.add(MapOp.make(words, places, fn="add")), scale, fn="mul"))]

    return group("map", [f32(11, 24), typed(I64, "b", "t"), f32("t", 24), f32("b", 1, 1)], build)


def look_ups() -> GroupOp:
    """Two tables read at one place, both stored: only the place leads from one result to the other."""

    def build(g, first, second, ids, step):  # type: ignore[no-untyped-def]
        at = g.add(MapOp.make(ids, step, fn="add"))
        return [g.add(GatherOp.make(table, at)) for table in (first, second)]

    return group("map", [f32(11), f32(9), typed(I64, "b", "t"), typed(I64, "b", 1)], build)


def picks() -> GroupOp:
    """The same along an axis of each row."""

    def build(g, first, second, ids, step):  # type: ignore[no-untyped-def]
        at = g.add(MapOp.make(ids, step, fn="add"))
        return [g.add(TakeAlongOp.make(table, at, axis=1)) for table in (first, second)]

    return group("map", [f32("b", 11), f32("b", 9), typed(I64, "b", "t"), typed(I64, "b", 1)], build)


def turned_and_scaled() -> GroupOp:
    """What is turned is stored scaled, too."""

    def build(g, x, y, c, s):  # type: ignore[no-untyped-def]
        total = g.add(MapOp.make(x, y, fn="add"))
        turned = g.add(RotaryOp.make(total, c, s, style="half"))
        return [turned, g.add(MapOp.make(total, fn="exp"))]

    return group("map", [f32("b", "t", 16)] * 2 + [f32("t", 16)] * 2, build)


def rotary(style: str) -> Callable[[], GroupOp]:
    return lambda: group(
        "map",
        [f32("b", "t", 3, 16), f32("t", 16), f32("t", 16)],
        lambda g, x, c, s: [
            g.add(RotaryOp.make(g.add(TransposeOp.make(x, permutation=(0, 2, 1, 3))), c, s, style=style))
        ],
    )


def layer_norm(columns: ExprLike) -> Callable[[], GroupOp]:
    def build(g, x, r, w, b):  # type: ignore[no-untyped-def]
        total = g.add(MapOp.make(x, r, fn="add"))
        return [total, g.add(NormOp.make(total, w, b, kind="layer", eps=1e-5))]

    return lambda: group("row-reduction", [f32("b", "t", columns)] * 2 + [f32(columns)] * 2, build)


def rms_norm() -> GroupOp:
    return group(
        "row-reduction", [f32("b", 40), f32(40)], lambda g, x, w: [g.add(NormOp.make(x, w, kind="rms", eps=1e-6))]
    )


def softmax(columns: ExprLike) -> Callable[[], GroupOp]:
    return lambda: group("row-reduction", [f32("b", "t", columns)], lambda g, x: [g.add(SoftmaxOp.make(x, axis=2))])


def reduced(fn: str, axes: Sequence[int], columns: ExprLike = 33) -> Callable[[], GroupOp]:
    return lambda: group(
        "reduction", [f32("b", "t", columns)], lambda g, x: [g.add(ReduceOp.make(x, fn=fn, axes=axes))]
    )


def pooled() -> GroupOp:
    def build(g, x, mask):  # type: ignore[no-untyped-def]
        weight = g.add(CastOp.make(g.add(ReshapeOp.make(mask, dims=["b", "t", 1])), dtype="f32"))
        return [g.add(ReduceOp.make(g.add(MapOp.make(x, weight, fn="mul")), fn="sum", axes=[1]))]

    return group("reduction", [f32("b", "t", 40), typed(I64, "b", "t")], build)


def unit_length() -> GroupOp:
    def build(g, x):  # type: ignore[no-untyped-def]
        square = g.add(ReduceOp.make(g.add(MapOp.make(x, x, fn="mul")), fn="sum", axes=[1], keepdims=True))
        return [g.add(MapOp.make(x, g.add(MapOp.make(square, fn="sqrt")), fn="div"))]

    return group("row-reduction", [f32("b", 40)], build)


def linear(n: int, k: int) -> Callable[[], GroupOp]:
    def build(g, x, w, bias, residual):  # type: ignore[no-untyped-def]
        y = g.add(MatmulOp.make(x, w, transpose_b=True))
        return [
            g.add(MapOp.make(g.add(MapOp.make(g.add(MapOp.make(y, bias, fn="add")), fn="silu")), residual, fn="add"))
        ]

    return lambda: group("matmul", [f32("b", "t", k), f32(n, k), f32(n), f32("b", "t", n)], build)


def batched_matmul() -> GroupOp:
    return group("matmul", [f32("b", 3, "t", "s"), f32("b", 3, "s", 20)], lambda g, x, y: [g.add(MatmulOp.make(x, y))])


def scores() -> GroupOp:
    return group(
        "matmul",
        [f32("b", "t", 3, 12), f32("b", "s", 3, 12)],
        lambda g, q, k: [
            g.add(
                MatmulOp.make(
                    g.add(TransposeOp.make(q, permutation=(0, 2, 1, 3))),
                    g.add(TransposeOp.make(k, permutation=(0, 2, 1, 3))),
                    transpose_b=True,
                )
            )
        ],
    )


def packed_linear(pairs: int) -> Callable[[], GroupOp]:
    dtype = BF16 if pairs == 2 else F32

    def build(g, x, panels):  # type: ignore[no-untyped-def]
        turned = g.add(TransposeOp.make(panels, permutation=(1, 0, 2) if pairs == 1 else (1, 3, 0, 2)))
        flat = g.add(ReshapeOp.make(turned, dims=[48, 96]))
        w = g.add(SliceOp.make(flat, starts=[0, 0], stops=[48, 70]))
        return [g.add(MatmulOp.make(x, w, result="f32"))]

    shape = (3, 48, 32) if pairs == 1 else (3, 24, 32, 2)
    return lambda: group("matmul", [typed(dtype, "b", "t", 48), typed(dtype, *shape)], build)


def packing(transposed: bool, pairs: int) -> Callable[[], GroupOp]:
    def build(g, w):  # type: ignore[no-untyped-def]
        value = g.add(TransposeOp.make(w, permutation=(1, 0))) if transposed else w
        value = g.add(PadOp.make(value, low=[0, 0], high=[0, 26]))
        if pairs == 1:
            return [g.add(TransposeOp.make(g.add(ReshapeOp.make(value, dims=[48, 3, 32])), permutation=(1, 0, 2)))]
        return [g.add(TransposeOp.make(g.add(ReshapeOp.make(value, dims=[24, 2, 3, 32])), permutation=(2, 0, 3, 1)))]

    return lambda: group("pack", [f32(70, 48) if transposed else f32(48, 70)], build)


def joined() -> GroupOp:
    return group("concat", [f32("b", 4, "t"), f32("b", "s", "t")], lambda g, x, y: [g.add(ConcatOp.make(x, y, axis=1))])


def repeated() -> GroupOp:
    return group("map", [f32("b", 1, 5)], lambda g, x: [g.add(BroadcastOp.make(x, dims=["b", "t", 5]))])


POINTWISE = [
    bias_gelu,
    permuted,
    split_heads,
    sliced,
    causal_mask,
    embedding,
    look_ups,
    picks,
    turned_and_scaled,
    rotary("half"),
    rotary("interleaved"),
    repeated,
    joined,
]
REDUCTIONS = [
    layer_norm(50), layer_norm(64), layer_norm(4200), rms_norm, softmax("s"), softmax(37), pooled, unit_length,
    *(reduced(fn, axes) for fn in ("sum", "max", "mean", "min") for axes in ([2], [1], [1, 2])),
    reduced("argmax", [2]), reduced("argmin", [2], "s"), reduced("prod", [2], 5),
]  # fmt: skip
MATMULS = [linear(70, 33), linear(32, 5000), batched_matmul, scores, packed_linear(1), packed_linear(2)]


@pytest.mark.parametrize("sizes", [*SIZES, EMPTY], ids=str)
@pytest.mark.parametrize("build", POINTWISE, ids=lambda f: getattr(f, "__name__", "case"))
def test_pointwise_kernels_equal_the_reference(
    build: Callable[[], GroupOp], sizes: dict[str, int], rng: np.random.Generator
) -> None:
    check(build(), sizes, rng)


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
@pytest.mark.parametrize("build", REDUCTIONS, ids=lambda f: getattr(f, "__name__", "case"))
def test_reduction_kernels_equal_the_reference(
    build: Callable[[], GroupOp], sizes: dict[str, int], rng: np.random.Generator
) -> None:
    check(build(), sizes, rng, tolerance=2e-4)


@pytest.mark.parametrize("sizes", [*SIZES[:2], EMPTY], ids=str)
@pytest.mark.parametrize("build", MATMULS, ids=lambda f: getattr(f, "__name__", "case"))
def test_matmul_kernels_equal_the_reference(
    build: Callable[[], GroupOp], sizes: dict[str, int], rng: np.random.Generator
) -> None:
    check(build(), sizes, rng, tolerance=1e-3)


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("transposed", [True, False])
def test_packing_lays_a_weight_out_in_panels(transposed: bool, pairs: int, rng: np.random.Generator) -> None:
    check(packing(transposed, pairs)(), {}, rng, tolerance=0.0)


def attention(
    *, heads: int = 4, groups: int = 2, size: int = 8, mask: str = "none", window: int = 0, softcap: float = 0.0,
    valid: bool = False, bias: bool = False, sinks: bool = False, positions: bool = False, lse: bool = False,
    keys: str = "s",
) -> GroupOp:  # fmt: skip
    types = [f32("b", "t", heads, size), f32("b", keys, groups, size), f32("b", keys, groups, size + 3)]
    types += [typed(I1, "b", keys)] if valid else []
    types += [f32("b", 1, "t", keys)] if bias else []
    types += [f32(heads)] if sinks else []

    def build(g, q, k, v, *rest):  # type: ignore[no-untyped-def]
        extra = iter(rest)
        q, k, v = (g.add(TransposeOp.make(x, permutation=(0, 2, 1, 3))) for x in (q, k, v))
        valid_ = next(extra) if valid else None
        bias_ = next(extra) if bias else None
        sinks_ = next(extra) if sinks else None
        at = [g.add(PositionsOp.make(result_types=[typed(I64, n)])) for n in ("t", keys)] if positions else [None, None]
        op = AttentionOp.make(
            q, k, v, bias_, valid_, *at, sinks_, scale=0.4, mask=mask, window=window, softcap=softcap, lse=lse
        )
        g.add(op)
        out = g.add(TransposeOp.make(op.out, permutation=(0, 2, 1, 3)))
        merged = g.add(ReshapeOp.make(out, dims=["b", "t", heads * (size + 3)]))
        return [merged, op.lse_out] if lse else [merged]

    return group("attention", types, build)


ATTENTIONS: list[dict[str, Any]] = [
    {},
    {"valid": True},
    {"heads": 4, "groups": 4, "bias": True},
    {"heads": 3, "groups": 1, "lse": True, "sinks": True},
    {"mask": "causal", "keys": "t"},
    {"mask": "causal", "keys": "t", "positions": True},
    {"mask": "causal"},
    {"mask": "sliding", "window": 5, "keys": "t"},
    {"mask": "chunked", "window": 6, "keys": "t", "valid": True},
    {"softcap": 3.0},
]


@pytest.mark.parametrize(
    "sizes", [{"b": 1, "t": 1, "s": 1}, {"b": 2, "t": 70, "s": 131}, {"b": 1, "t": 9, "s": 0}], ids=str
)
@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_attention_kernels_equal_the_reference(
    case: dict[str, object], sizes: dict[str, int], rng: np.random.Generator
) -> None:
    check(attention(**case), sizes, rng)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sizes", [{"b": 1, "t": 1, "s": 1}, {"b": 2, "t": 13, "s": 70}, {"b": 3, "t": 66, "s": 5}], ids=str
)
@pytest.mark.parametrize(
    "build",
    [
        bias_gelu,
        causal_mask,
        layer_norm(50),
        softmax("s"),
        pooled,
        linear(70, 33),
        lambda: attention(mask="causal", keys="t"),
    ],
    ids=["map", "mask", "norm", "softmax", "pool", "linear", "attention"],
)
def test_formulas_equal_counters_in_every_variant(
    build: Callable[[], GroupOp], sizes: dict[str, int], rng: np.random.Generator
) -> None:
    made = build()
    lowered = lower(made)
    inputs = draw(made, sizes, rng)
    for number, variant in enumerate(lowered.variants):
        counters = Counters()
        run_lowered(made, lowered, number, inputs, sizes, counters)
        found = kernel_traffic(variant.kernel).at({name: sizes[name] for name in lowered.dims})
        assert {kind: counters.bytes.of(kind) for kind in found} == found
