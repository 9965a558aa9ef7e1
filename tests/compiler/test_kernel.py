"""Kernels written by users: right compiled and interpreted, counted, compiled for every target, faults explained."""

from __future__ import annotations

import importlib.util
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.backends.triton.both_interpreters import launched
from tilewright.backends.triton.interpreter import InterpretedKernels
from tilewright.compiler.instrumented import CountingTwin
from tilewright.errors import (
    ArgumentError,
    DimMismatchError,
    DTypeError,
    KernelError,
    KernelStoreError,
    OptionError,
    PoisonError,
    RankError,
    TilewrightError,
)
from tilewright.ir import dims
from tilewright.ir.backend import backends
from tilewright.ir.tile.counting import Counters

ROOT = Path(__file__).parents[2]


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("softmax_topk_example", ROOT / "examples" / "softmax_topk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLE = _example()
softmax_topk = EXAMPLE.softmax_topk

# Rounding of the inputs is the inputs' own; what is computed is computed in f32 by a chain of a few operations.
RELATIVE = 32 * 2.0**-24


@tw.kernel("x f32[m, n], w f32[n, n2] -> y f32[m, n2]")
def product(b: Any, x: Any, w: Any, y: Any) -> None:
    """A matrix product whose three sizes all vary, with a loop that carries the sum."""
    i, j = b.grid(["m", "n2"], [4, 16])
    with b.loop(0, "n", 8, [b.constant(0.0, [4, 16])]) as loop:
        left = b.load(b.dense(x), [i, loop.at], [4, 8], fill=0.0)
        right = b.load(b.dense(w), [loop.at, j], [8, 16], fill=0.0)
        loop.give(b.dot(left, right, loop.carried[0]))
    b.store(loop.out[0], b.dense(y), [i, j])


@tw.kernel("x T[n] -> y T[n]")
def double(b: Any, x: Any, y: Any, *, T: str) -> None:  # noqa: N803
    (i,) = b.grid(["n"], [16])
    tile = b.load(b.dense(x), [i], [16])
    b.store(b.map("add", tile, tile), b.dense(y), [i])


def check_topk(x: torch.Tensor, k: int, found: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Against float64: right probabilities in order, each at a place that has it."""
    probabilities, places = found
    assert (probabilities.dtype, places.dtype) == (torch.float32, torch.int32)
    exact = x.double().softmax(-1)
    expected = exact.topk(k).values
    torch.testing.assert_close(probabilities.double(), expected, rtol=RELATIVE, atol=0)
    at = exact.gather(-1, places.long())
    torch.testing.assert_close(at, expected, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("rows", "classes", "k"), [(0, 5, 2), (1, 1, 1), (9, 17, 17), (13, 100, 5), (8, 64, 8)])
def test_softmax_topk_is_torchs(rows: int, classes: int, k: int, dtype: str, rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((rows, classes)) * 3).to(getattr(torch, dtype))
    if dtype == "float64":
        # the kernel computes in f32: give it numbers that are
        x = x.float().double()
    check_topk(x, k, softmax_topk(x, k=k))
    check_topk(x, k, softmax_topk.interpret(x, k=k))


def test_a_rows_bits_depend_on_neither_threads_nor_other_rows(rng: np.random.Generator) -> None:
    x = rng.standard_normal((301, 33), np.float32)
    few = softmax_topk(x[:40], k=3)
    for threads in (1, 2):
        compiled = softmax_topk.compile(threads=threads, classes=33, k=3, T="f32", cache=False)
        for all_rows, first_rows in zip(compiled(x), few, strict=True):
            np.testing.assert_array_equal(all_rows[:40], first_rows)


def test_the_example_runs_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    EXAMPLE.main()
    text = capsys.readouterr().out
    assert "as torch: True True" in text
    assert "reads 400*rows bytes, writes 40*rows, no kernel less than 440*rows in all" in text
    assert "softmax_topk.py:" in text
    source = (ROOT / "examples" / "softmax_topk.py").read_text().split("@tw.kernel", 1)[1].split("def main", 1)[0]
    assert len(source.strip().splitlines()) <= 20


@pytest.mark.parametrize(("m", "n", "n2"), [(1, 1, 1), (5, 19, 33), (4, 8, 16), (0, 3, 2), (3, 0, 2)])
def test_a_loop_over_dims(m: int, n: int, n2: int, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((m, n), np.float32), rng.standard_normal((n, n2), np.float32)
    bound = n * 2.0**-23 * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64))
    expected = x.astype(np.float64) @ w.astype(np.float64)
    for found in (product(x, w), product(w=w, x=x), product.interpret(x, w)):
        assert type(found) is np.ndarray
        assert (np.abs(found - expected) <= bound).all()


def test_formulas_interpreter_and_running_kernel_count_the_same(rng: np.random.Generator) -> None:
    m, n, n2 = (int(v) for v in rng.integers(1, 40, 3))
    x, w = rng.standard_normal((m, n), np.float32), rng.standard_normal((n, n2), np.float32)
    counters = Counters()
    product.interpret(x, w, counters=counters)
    sizes = {"m": m, "n": n, "n2": n2}
    formulas = product.traffic().counts(sizes)
    assert +formulas == +counters.bytes
    (launch,) = CountingTwin(product.compile()).run(torch.from_numpy(x), torch.from_numpy(w))
    assert launch.counts == +formulas
    (row,) = product.compile().report.at(**sizes).rows
    at = product.traffic().at(sizes)
    assert (row.read, row.write, row.flops) == (at["read"], at["write"], at["matrix"] + at["vector"])
    assert row.bound == 4 * (m * n + n * n2 + m * n2)


def test_every_registered_target_compiles_the_example_and_gives_what_torch_gives(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((11, 20), np.float32))
    statics = {"classes": 20, "k": 3, "T": "f32"}
    for backend in backends().values():
        assert backend.probe() is None
        sources = set()
        for machine in backend.machines:
            target = f"{backend.name}:{machine}"
            assert all(double.sources(target, T="f32").values())
            sources |= set(softmax_topk.sources(target, **statics).values())
        if backend.device.in_process:
            check_topk(x, 3, softmax_topk.compile(backend.name, **statics)(x))
            continue
        # no device here: what is printed for it is interpreted
        outputs = [np.zeros((11, 3), np.float32), np.zeros((11, 3), np.int32)]
        programs = dims.product(softmax_topk.trace(**statics).programs)
        with InterpretedKernels() as device:
            for source in sources:
                symbol = re.findall(r"^@triton\.jit\ndef (\w+)", source, re.MULTILINE)[-1]
                found = launched(device, (symbol, source), programs, [x.numpy(), *outputs], 2, {"rows": 11})
                probabilities, places = map(torch.from_numpy, found)
                check_topk(x, 3, (probabilities, places))


def test_dtypes_follow_the_inputs(rng: np.random.Generator) -> None:
    numbers = rng.integers(-50, 50, 37)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64):
        x = torch.from_numpy(numbers).to(dtype)
        torch.testing.assert_close(double(x), x + x, rtol=0, atol=0)
        torch.testing.assert_close(double.interpret(x), x + x, rtol=0, atol=0)


def test_a_compiled_kernel_saves_and_loads(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 12), np.float32)
    compiled = softmax_topk.compile(classes=12, k=4, T="f32")
    compiled.save(tmp_path / "kernel.tilewright")
    for native in (True, False):
        loaded = tw.load(tmp_path / "kernel.tilewright", native=native)
        for ours, theirs in zip(loaded(x), compiled(x), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_first_calls_on_many_threads(rng: np.random.Generator) -> None:
    @tw.kernel("x f32[n] -> y f32[n]")
    def negated(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [32])
        b.store(b.map("neg", b.load(b.dense(x), [i], [32])), b.dense(y), [i])

    x = rng.standard_normal(1000, np.float32)
    right: list[bool] = []
    threads = [threading.Thread(target=lambda: right.append(np.array_equal(negated(x), -x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 8


# --- what goes wrong --------------------------------------------------------------------------------------------------


def refusal(kind: type[TilewrightError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x f32[n]", "names no output"),
        ("x f32[n] ->", "names no output"),
        ("x f32[n] -> y f99[n]", "f99 is no dtype and no keyword-only parameter"),
        ("x f32[n] -> y f32[m]", "no input's shape gives m"),
        ("x f32[n] -> z f32[n]", "the function takes (b, x, y), the signature gives (b, x, z)"),
        ("x f32[n -> y f32[n]", "is not a name, a dtype and dims"),
        ("x f32[n +] -> y f32[n]", "dim expression"),
        ("x f32[a0] -> y f32[a0]", "a0, a1, ... are the names of index operands"),
    ],
)
def test_signatures_that_are_none(text: str, said: str) -> None:
    def function(b: Any, x: Any, y: Any) -> None:
        pass

    message = refusal(KernelError, lambda: tw.kernel(text)(function))
    assert message.startswith("TW035")
    assert said in message
    assert "test_kernel.py:" in message


def test_a_decorator_without_a_signature() -> None:
    assert "signature as text" in refusal(OptionError, lambda: tw.kernel(lambda b: None))  # type: ignore[arg-type]


def test_a_wrong_line_is_named() -> None:
    @tw.kernel("x f32[n] -> y f32[n]")
    def mixes(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [16])
        tile = b.load(b.dense(x), [i], [16])
        b.store(b.map("add", tile, b.constant(1, [8])), b.dense(y), [i])

    line = mixes.function.__code__.co_firstlineno + 4
    message = refusal(KernelError, lambda: mixes(np.zeros(3, np.float32)))
    assert f"test_kernel.py:{line}" in message
    assert "do not broadcast" in message


def test_pythons_own_faults_are_named_too() -> None:
    @tw.kernel("x f32[n] -> y f32[n]")
    def forgets(b: Any, x: Any, y: Any, *, size: int = 3) -> None:
        b.grid(["n"], [16])
        b.lood(x)

    line = forgets.function.__code__.co_firstlineno + 3
    message = refusal(KernelError, forgets.trace)
    assert "AttributeError" in message
    assert "@forgets(size=3)" in message
    assert f"test_kernel.py:{line}" in message


def test_numbers_stand_among_tiles(rng: np.random.Generator) -> None:
    @tw.kernel("x f32[n] -> y f32[n]")
    def clipped(b, x, y):  # type: ignore[no-untyped-def]
        (i,) = b.grid(["n"], [32])
        tile = b.load(b.dense(x), [i], [32])
        b.store(b.map("select", b.map("gt", tile, 1), 1, b.map("mul", tile, 0.5)), b.dense(y), [i])

    x = rng.standard_normal(77).astype(np.float32)
    np.testing.assert_array_equal(clipped(x), np.where(x > 1, np.float32(1), x * np.float32(0.5)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda b, tile: b.dot(tile, 2.0, tile), "tile.dot: b is 2.0, not a value"),
        (lambda b, tile: b.reduce("sum", tile, [1]), "axis [1] is none of a tile of rank 1"),
        (lambda b, tile: b.reduce("sum", tile, 1), "axis 1 is none of a tile of rank 1"),
        (lambda b, tile: b.map("exp", 2.0), "map 'exp' is given no tile"),
    ],
)
def test_what_is_no_tile_is_named(wrong: Any, said: str) -> None:
    @tw.kernel("x f32[n] -> y f32[n]")
    def kernel(b, x, y):  # type: ignore[no-untyped-def]
        (i,) = b.grid(["n"], [8])
        b.store(wrong(b, b.load(b.dense(x), [i], [8])), b.dense(y), [i])

    with pytest.raises(KernelError) as caught:
        kernel(np.ones(9, np.float32))
    assert said in str(caught.value)
    assert "test_kernel.py" in str(caught.value)


def test_a_kernel_without_a_grid() -> None:
    @tw.kernel("x f32[n] -> y f32[n]")
    def idle(b: Any, x: Any, y: Any) -> None:
        pass

    assert "it has no grid" in refusal(KernelError, idle.trace)


def test_static_parameters_must_be_known() -> None:
    assert "k has no value" in refusal(KernelError, lambda: softmax_topk(torch.zeros(2, 3)))
    assert "T has no value" in refusal(KernelError, lambda: softmax_topk.compile(classes=3, k=1))
    assert "it has no static parameter 'q'" in refusal(KernelError, lambda: softmax_topk.trace(q=1))
    assert "T=3 is not a dtype's name" in refusal(KernelError, lambda: double.trace(T=3))


def test_inputs_given_where_static_parameters_belong_are_refused_in_a_line() -> None:
    for method in ("compile", "sources"):
        assert refusal(OptionError, lambda: getattr(double, method)(torch.zeros(9, 9))) == (  # noqa: B023
            f"TW008 wrong option: @double.{method} takes T= and a target's name, not inputs; it was given a Tensor\n"
            f"  next: write double.{method}(T=...), or call double with its inputs"
        )
    message = refusal(OptionError, lambda: double.compile(T="f32", threads=torch.zeros(9, 9)))
    assert message.partition("\n")[0] == "TW008 wrong option: threads=a Tensor is not a positive number"


def test_calls_are_checked_like_any_programs() -> None:
    x = np.zeros((2, 3), np.float32)
    assert "w is missing" in refusal(ArgumentError, lambda: product(x))
    refusal(DTypeError, lambda: product(x, x.astype(np.float64).T))
    refusal(RankError, lambda: product(x, x[0]))
    refusal(DimMismatchError, lambda: product(x, x))
    assert "w axis 0 has size 2" in refusal(ArgumentError, lambda: product.interpret(x, x))
    assert "x is 5" in refusal(ArgumentError, lambda: double(5, T="f32"))


@tw.kernel("x T[rows, n] -> y T[rows, n]")
def copied(b: Any, x: Any, y: Any, *, n: int, T: Any) -> None:  # noqa: N803
    """A copy whose columns and dtype are static: an input that is none gives neither."""
    (row,) = b.grid(["rows"], [8])
    b.store(b.load(b.dense(x), [row, 0], [8, n]), b.dense(y), [row, 0])


@pytest.mark.parametrize("verb", ["__call__", "interpret"])
def test_inputs_that_cannot_give_static_parameters_are_said_themselves(verb: str) -> None:
    call = getattr(copied, verb)
    asked = "\n  next: pass what the signature says: x T[rows, n]"
    assert refusal(RankError, lambda: call(torch.zeros(3))) == (
        f"TW003 wrong rank: x has 1 axis [3], compiled for 2 axes [rows, n]{asked}"
    )
    for given in (None, 3, "x"):
        assert refusal(ArgumentError, lambda g=given: call(g)) == (  # type: ignore[misc]
            f"TW001 arguments do not match the signature: x is {given!r}, compiled for a tensor\n"
            "  next: pass torch tensors or NumPy arrays"
        )
    assert refusal(ArgumentError, lambda: call([1.0])).startswith(
        "TW001 arguments do not match the signature: x is a list, compiled for a tensor\n"
    )
    assert refusal(DTypeError, lambda: call(torch.zeros(2, 3, dtype=torch.complex64))).startswith(
        "TW002 wrong dtype: x is complex64, and T is none of "
    )
    x = torch.randn(2, 3)
    assert torch.equal(call(x), x)
    # known by then, and refused all the same
    assert refusal(RankError, lambda: call(torch.zeros(2, 3, 4))) == (
        f"TW003 wrong rank: x has 3 axes [2, 3, 4], compiled for 2 axes [rows, n]{asked}"
    )
    without = getattr(product, verb)
    assert refusal(RankError, lambda: without(x, torch.zeros(3))) == (
        "TW003 wrong rank: w has 1 axis [3], compiled for 2 axes [n, n2]\n"
        "  next: pass what the signature says: x f32[m, n], w f32[n, n2]"
    )
    assert refusal(ArgumentError, lambda: without(x, None)) == (
        "TW001 arguments do not match the signature: w is None, compiled for a tensor\n"
        "  next: pass torch tensors or NumPy arrays"
    )


def test_the_interpreter_finds_what_is_unsound() -> None:
    @tw.kernel("x f32[n] -> y f32[n + 1]")
    def leaves_one(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [4])
        b.store(b.load(b.dense(x), [i], [4], fill=0.0), b.dense(y), [i])

    @tw.kernel("x f32[n] -> y f32[n]")
    def reads_outside(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["n"], [4])
        tile = b.load(b.dense(x), [i], [4])
        b.store(b.broadcast(b.reduce("sum", tile), [4]), b.dense(y), [i])

    refusal(KernelStoreError, lambda: leaves_one.interpret(np.zeros(4, np.float32)))
    refusal(PoisonError, lambda: reads_outside.interpret(np.zeros(5, np.float32)))
    assert math.isclose(float(reads_outside.interpret(np.ones(4, np.float32))[0]), 4.0)
