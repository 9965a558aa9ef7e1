"""A kernel that leaves, doubles or invents elements is refused before it is compiled, with its line and the sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.ir.tile.kernels import CASES, Case
from tilewright.compiler import kernel_program
from tilewright.compiler.kernel import Kernel
from tilewright.compiler.kernel_check import check_kernel
from tilewright.errors import KernelStoreError, PoisonError, TilewrightError

SIGNATURE = "x T[rows, n] -> y T[rows, n]"


def stores_nothing(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
    b.grid(["rows"], [8])


def stores_over_another(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
    b.grid(["rows"], [8])
    b.store(b.load(b.dense(x), [0, 0], [8, n]), b.dense(y), [0, 0])


def leaves_holes(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
    (row,) = b.grid(["rows"], [16])
    b.store(b.load(b.dense(x), [row, 0], [8, n]), b.dense(y), [row, 0])


def overlaps(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
    (row,) = b.grid(["rows"], [8])
    b.store(b.load(b.dense(x), [row, 0], [9, n]), b.dense(y), [row, 0])


def loads_outside(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
    (row,) = b.grid(["rows"], [8])
    b.store(b.load(b.dense(x), [row, 3], [8, n]), b.dense(y), [row, 0])


def reduces_outside(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
    (row,) = b.grid(["rows"], [8])
    b.store(b.reduce("sum", b.load(b.dense(x), [row, 0], [8, 2 * n]), 1), b.dense(y), [row, 0])


FAULTS: list[tuple[Callable[..., None], type[TilewrightError], str, int]] = [
    (stores_nothing, KernelStoreError, "are never written", 0),
    (stores_over_another, KernelStoreError, "written", 2),
    (leaves_holes, KernelStoreError, "are never written", 0),
    (overlaps, KernelStoreError, "written", 2),
    (loads_outside, PoisonError, "never loaded", 2),
    (reduces_outside, PoisonError, "never loaded", 2),
]


@pytest.mark.parametrize(("function", "kind", "said", "line"), FAULTS, ids=lambda v: getattr(v, "__name__", None))
@pytest.mark.parametrize("cache", [True, False])
def test_an_unsound_kernel_is_never_callable(
    function: Callable[..., None], kind: type[TilewrightError], said: str, line: int, cache: bool
) -> None:
    kernel = tw.kernel(SIGNATURE)(function)
    for _ in range(2):  # what was refused is not kept
        with pytest.raises(kind) as raised:
            kernel.compile(n=5, T="f32", cache=cache)
        assert said in str(raised.value)
        assert "where rows=" in str(raised.value)
        at = function.__code__.co_firstlineno + line
        assert f"test_kernel_check.py:{at}" in str(raised.value)
    with pytest.raises(kind):
        kernel(torch.zeros(1, 5))


def test_a_fault_beyond_the_first_tile_is_found() -> None:
    @tw.kernel("x f32[n] -> y f32[n + 1]")
    def leaves_one(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [4])
        b.store(b.load(b.dense(x), [i], [4], fill=0.0), b.dense(y), [i])

    @tw.kernel("x f32[m, n] -> y f32[m]")
    def one_chunk(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["m"], [4])
        b.store(b.reshape(b.reduce("sum", b.load(b.dense(x), [i, 0], [4, 8])), [4]), b.dense(y), [i])

    with pytest.raises(KernelStoreError, match=r"where n="):
        leaves_one(np.zeros(2, np.float32))
    with pytest.raises(PoisonError, match=r"where m=\d+, n="):
        one_chunk(np.zeros((2, 8), np.float32))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_sound_kernels_of_every_shape_pass(case: Case) -> None:
    check_kernel(case.kernel)


def test_places_from_inputs_are_not_held_against_a_kernel(rng: np.random.Generator) -> None:
    @tw.kernel("x f32[n, 4], to i64[n] -> y f32[n, 4]")
    def scattered(b: Any, x: Any, to: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [4])
        b.store(b.load(b.dense(x), [i, 0], [4, 4]), b.rows(b.dense(y), b.dense(to)), [i, 0])

    x, to = rng.standard_normal((9, 4), np.float32), rng.permutation(9)
    wanted = np.empty_like(x)
    wanted[to] = x
    np.testing.assert_array_equal(scattered(x, to), wanted)


def test_a_cached_kernel_is_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    monkeypatch.setattr(kernel_program, "check_kernel", lambda *given: checked.append(check_kernel(*given)))

    def halved(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
        (row,) = b.grid(["rows"], [8])
        tile = b.load(b.dense(x), [row, 0], [8, n])
        b.store(b.map("mul", tile, b.constant(0.5, [8, n], T)), b.dense(y), [row, 0])

    def fresh() -> Kernel:
        return tw.kernel(SIGNATURE)(halved)

    for n, count in ((64, 1), (64, 1), (3, 2)):
        x = torch.randn(11, n)
        torch.testing.assert_close(fresh().compile(n=n, T="f32", cache=str(tmp_path))(x), x / 2, rtol=0, atol=0)
        assert len(checked) == count


@torch.library.custom_op("tw_kernel_check::hole", mutates_args=())
def hole(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@hole.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Hole(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.tw_kernel_check.hole(x)  # type: ignore[no-any-return]


def test_an_operator_with_an_unsound_kernel_does_not_compile() -> None:
    @tw.kernel("x f32[m, n] -> y f32[m, n]")
    def half(b: Any, x: Any, y: Any) -> None:
        i, j = b.grid(["m", "n"], [4, 16])
        b.store(b.load(b.dense(x), [i, j], [4, 8]), b.dense(y), [i, j])

    tw.register_op("tw_kernel_check::hole", kernel=half)
    with pytest.raises(KernelStoreError, match=r"TW034.*are never written.*@half.*test_kernel_check\.py:\d+"):
        tw.compile(Hole().eval(), (torch.zeros(3, 5),))
