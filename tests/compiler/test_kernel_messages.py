"""What a user's kernel does wrong is told in the words of its signature, with a step that can be followed in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import DimMismatchError, KernelError, KernelStoreError
from tilewright.ir.scalars import SCALARS


@tw.kernel("x T[rows, n], s T[n], c T[4] -> y T[rows, n]")
def scaled(b: Any, x: Any, s: Any, c: Any, y: Any, *, n: int, T: str) -> None:  # noqa: N803
    (i,) = b.grid(["rows"], [8])
    rows = b.load(b.dense(x), [i, 0], [8, n], fill=0.0)
    b.store(b.map("mul", rows, b.reshape(b.load(b.dense(s), [0], [n]), [1, n])), b.dense(y), [i, 0])


@tw.kernel("x f32[rows, 8] -> y f32[rows, 8]")
def half(b: Any, x: Any, y: Any) -> None:
    (i,) = b.grid(["rows"], [8])
    b.store(b.load(b.dense(x), [i, 0], [8, 4], fill=0.0), b.dense(y), [i, 0])


def tracing(body: Callable[..., Any]) -> Any:
    """A kernel of one row whose tiles, x [4, 8] and w [8], are given to `body`."""

    def made(b: Any, x: Any, w: Any, y: Any) -> None:
        (i,) = b.grid(["m"], [4])
        found = body(b, b.load(b.dense(x), [i, 0], [4, 8], fill=0.0), b.load(b.dense(w), [0], [8]))
        b.store(found, b.dense(y), [i, 0])

    return tw.kernel("x f32[m, 8], w f32[8] -> y f32[m, 8]")(made)


def inner(b: Any, x: Any) -> Any:
    """A value of a loop that has ended."""
    with b.loop(0, 8, 4):
        return b.map("neg", x)


def given(b: Any, value: Any) -> Any:
    """Carried by a loop that gives a value from somewhere else."""
    with b.loop(0, 8, 4, [b.constant(0.0, [4, 8])]) as loop:
        loop.give(value)
    return loop.out[0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            lambda b, x, w: b.map("mull", x, x),
            "tile.map: no scalar function is called 'mull'  (at PLACE)\n  next: did you mean 'mul'?",
        ),
        (
            lambda b, x, w: b.map("mul", x, w),
            "tile.map: tiles of equal rank stretch to each other, got [4, 8], [8]  (at PLACE)\n"
            "  next: give the tile [8] as many axes: b.reshape(tile, [1, 8]) to repeat it along the first, or with the "
            "1 where it is to be repeated",
        ),
        (
            lambda b, x, w: b.map("mul", x, b.reshape(w, [8, 1])),
            "tile.map: extents do not broadcast: [4, 8], [8, 1]  (at PLACE)\n"
            "  next: give tiles whose extents are equal, or 1 where one is repeated",
        ),
        (
            lambda b, x, w: b.map("mul", x, 10**400),
            "@made: an integer of 1329 bits is no element of a tile of f32  (at PLACE)\n"
            '  next: use a smaller number, or infinity: float("inf")',
        ),
        (
            lambda b, x, w: b.broadcast(b.reshape(w, [1, 8]), [4.5, 8]),
            "@made: tile.broadcast: extents: 4.5 is no integer  (at PLACE)\n"
            "  next: give integers; in a kernel of your own a dim is one as a static parameter: "
            "def kernel(b, ..., *, n)",
        ),
        (
            lambda b, x, w: b.constant(0.0, ["m", 8]),
            "@made: tile.constant: extents: 'm' is no integer  (at PLACE)\n"
            "  next: give integers; in a kernel of your own a dim is one as a static parameter: "
            "def kernel(b, ..., *, n)",
        ),
        (
            lambda b, x, w: x + 1,
            "@made(): TypeError: unsupported operand type(s) for +: a tile or index of the kernel and 'int'  (at "
            "PLACE)\n"
            '  next: compute with the builder: b.map("add", tile, 1) for tiles, b.index("a0 + 1", index) for indices',
        ),
        (
            lambda b, x, w: x.shape,
            "@made(): AttributeError: a tile or index of the kernel has no attribute 'shape'  (at PLACE)\n"
            '  next: compute with the builder: b.map("add", tile, 1) for tiles, b.index("a0 + 1", index) for indices',
        ),
        (
            lambda b, x, w: b.map("add", x, inner(b, x)),
            "tile.map: uses a value that a loop computes, after the loop (made at PLACE)  (at PLACE)\n"
            "  next: carry it out: b.loop(lo, hi, step, [initial]), loop.give(value) inside and loop.out[0] after",
        ),
        (
            lambda b, x, w: given(b, inner(b, x)),
            "@made: uses a value that a loop computes, after the loop (made at PLACE)  (at PLACE)\n"
            "  next: carry it out: b.loop(lo, hi, step, [initial]), loop.give(value) inside and loop.out[0] after",
        ),
    ],
)
def test_the_step_for_a_wrong_op_can_be_taken(body: Callable[..., Any], said: str) -> None:
    with pytest.raises(KernelError) as caught:
        tracing(body).trace()
    text = re.sub(r"at [\w./]+:\d+", "at PLACE", str(caught.value))
    assert text == f"TW035 user kernel is wrong: {said}"


def test_elements_left_out_are_told_by_the_outputs_name() -> None:
    with pytest.raises(KernelStoreError) as caught:
        half.checked()
    assert str(caught.value) == (
        "TW034 a kernel's writes are unsound: tile.kernel: 36 of 72 elements of y are never written, the first at "
        f"[0, 4], in @half, where rows=9  (at {half.spec.where})\n  next: make the grid and the stores cover the output"
    )


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((20, 8), (9,), (4,)), "x gives n=8, s gives n=9"),
        (((20, 8), (8,), (5,)), "the signature says 4, c gives 5"),
        (((20, 8), (9,), (5,)), "2 problems\n  - x gives n=8, s gives n=9\n  - the signature says 4, c gives 5"),
    ],
)
def test_sizes_that_disagree_are_told_by_the_signature(
    shapes: tuple[tuple[int, ...], ...], said: str, rng: np.random.Generator
) -> None:
    with pytest.raises(DimMismatchError) as caught:
        scaled(*(rng.standard_normal(shape, np.float32) for shape in shapes))
    body, _, step = str(caught.value).partition("\n  next: ")
    assert body.removeprefix("TW005 dim does not match what was compiled:").strip() == said
    assert step == "pass sizes that agree with the signature: x T[rows, n], s T[n], c T[4]"


def test_traffic_prints_its_formulas() -> None:
    assert str(scaled.traffic(n=64, T="f32")) == (
        "@scaled moves bytes and computes:\n"
        "  reads: 256*floordiv(rows + 7, 8) + 256*rows\n"
        "  writes: 256*rows\n"
        "  matrix FLOPs: 0\n"
        "  vector FLOPs: 512*floordiv(rows + 7, 8)\n"
        "  bytes that no kernel saves: 512*rows + 256"
    )


def test_the_page_names_every_function_of_map() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/kernels.md").read_text(encoding="utf-8")
    listed = re.search(r"They are (.*?)\.", page, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", listed[1]))) - {"and"} == set(SCALARS) - {"and"}
