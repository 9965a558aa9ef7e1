"""Kernels that are proved to stay inside their buffers do so; launches and views that may not are refused."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.ir.tile.kernels import CASES, Case
from tests.ir.tile.launched import launched, mutated
from tests.passes.lower_tile_to_loops import running
from tilewright.errors import IRError, TilewrightError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DType
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.module import dim_space, parse_module, print_module
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.containment import unproved
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.passes.lower_tile_to_loops import lower_kernel

NAMES = [case.name for case in CASES]


def text_of(case: Case) -> str:
    return print_module(launched(case.kernel, {name: max(sizes) for name, sizes in case.sizes.items()}))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_kernel_of_ours_is_proved(case: Case) -> None:
    assert not unproved(parse_module(text_of(case)))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_changed_kernel_is_refused_or_stays_inside(case: Case, rng: np.random.Generator) -> None:
    """Numbers of the IR are changed at random; what still verifies runs where every access is checked."""
    text = text_of(case)
    for _ in range(10):
        with limited(2.0):
            try:
                changed = parse_module(mutated(text, rng, int(rng.integers(1, 3))))
                if unproved(changed):
                    continue
                kernel = next(op for op in changed.walk() if isinstance(op, KernelOp))
                loops = lower_kernel(kernel, running.machine(str(rng.choice(running.CLASSES))))
            except TilewrightError:
                continue
            launch = next(op for op in changed.walk() if isinstance(op, LaunchOp))
            sizes = {
                d.name: int(rng.integers(d.min, min(d.max or 9, 20) + 1)) for d in dim_space(changed).dims.values()
            }
            dims = dict(zip(kernel.dims.data, (e.evaluate(sizes) for e in launch.dims.data), strict=True))
            elements = [buffer(v).elements.evaluate(dims) for v in kernel.buffers]
            if max(elements) < 1 << 20:
                given = [wild(buffer(v).dtype, n, rng) for v, n in zip(kernel.buffers, elements, strict=True)]
                run_kernel(loops, given, dims, nthreads=2)


class _Slow(BaseException):
    """A change made a loop very long."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends the block after so many seconds; what took longer is not looked at."""

    def stop(*_: object) -> None:
        raise _Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Slow:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wild(dtype: DType, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random elements; integers that may index are the extremes now and then."""
    made = running.random(dtype, size, rng)
    if made.dtype.kind in "iu" and rng.random() < 0.5:
        limits = np.iinfo(made.dtype)
        made[rng.random(size) < 0.3] = rng.choice([limits.min, limits.max])
    return made


MODULE = """
builtin.module attributes {tw.dims = #tw.dim_space<["t: 0..64"]>} {
  graph.func() {sym_name="main", arg_names=["x"], result_names=["y"]} {
  ^bb(%x: !graph.tensor<["t", 8], f32>):
    %y = tile.launch(inputs=[%x]) {callees=["a", "b"], dims=["t"], guard=["n"], limits=[4]}
      : !graph.tensor<["t", 8], f32>
    graph.return(values=[%y])
  }
  KERNELS
}
"""
KERNEL = """
  tile.kernel() {dims=["n"], extents=["n"], order=[0, 1], outputs=1, sym_name="NAME", tiles=[4]} {
  ^bb(%x: !tile.buffer<["n", 8], f32>, %y: !tile.buffer<["n", 8], f32>, %i: !tile.index):
    %c = tile.expr(args=[%i]) {value=[0]} : !tile.index
    %v = tile.view(%x) {extents=["n", 8], strides=[8, 1]} : !tile.view<["n", 8], f32>
    %t = tile.load(%v, at=[%i, %c]) {extents=[4, 8]} : !tile.tile<[4, 8], f32>
    %w = tile.view(%y) {extents=["n", 8], strides=[8, 1]} : !tile.view<["n", 8], f32>
    tile.store(%t, %w, at=[%i, %c])
    tile.yield(values=[])
  }
"""
WHOLE = MODULE.replace("KERNELS", KERNEL.replace("NAME", "a") + KERNEL.replace("NAME", "b"))


def test_two_copies_are_proved() -> None:
    assert not unproved(parse_module(WHOLE))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('callees=["a", "b"]', 'callees=["a", "c"]', "@c, which is not a kernel"),
        ('sym_name="b"', 'sym_name="a"', "two kernels have this name"),
        ('dims=["t"]', 'dims=["t + 1"]', "with n = t \\+ 1"),
        ('dims=["t"]', 'dims=["1000000*t"]', "operand 0 is"),
        ('dims=["t"]', "dims=[]", "gives 0 values"),
        ('guard=["n"]', 'guard=["m"]', "guard uses m"),
        ("limits=[4]", "limits=[]", "need a limit for all but the last"),
        ('callees=["a", "b"]', 'callees=["a"]', "need a limit for all but the last"),
        ("outputs=1", "outputs=0", "has 1 operands, @a takes 2"),
        ("outputs=1", "outputs=3", "3 of 2 buffers cannot be outputs"),
        ("tiles=[4]", "tiles=[0]", "1 or more"),
        ("order=[0, 1]", "order=[0, 0]", "1 or more"),
        ("tile.view(%y)", "tile.view(%x)", "writes to an input"),
        ('%x: !tile.buffer<["n", 8], f32>', '%x: !tile.buffer<["n", 8], i32>', "operand 0|operands imply"),
    ],
)
def test_a_launch_that_does_not_fit_its_kernels_is_malformed(old: str, new: str, said: str) -> None:
    assert old in WHOLE
    with pytest.raises(IRError, match=said):
        parse_module(WHOLE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("strides=[8, 1]", "strides=[80000000, 1]", "not proved to lie inside"),
        ("strides=[8, 1]", "strides=[8, 900000000]", "not proved to lie inside"),
        ("strides=[8, 1]", "strides=[-8, 1]", "not proved to lie inside"),
        ("strides=[8, 1]}", "strides=[8, 1], offset=[1]}", "not proved to lie inside"),
        ("strides=[8, 1]}", "strides=[8, 1], offset=[-1]}", "not proved to lie inside"),
        ('extents=["n"]', 'extents=["4611686018427387904*n"]', "64 bits"),
        ("{value=[0]}", '{value=["9223372036854775807*a0"]}', "64 bits"),
        ("{value=[0]}", '{value=["floordiv(a0, n)"]}', "divides by n"),
        ("t: 0..64", "t: 0..9223372036854775807", "larger than any memory"),
    ],
)
def test_an_access_that_may_leave_its_buffer_is_found(old: str, new: str, said: str) -> None:
    assert old in WHOLE
    try:
        problems = unproved(parse_module(WHOLE.replace(old, new, 1)))
    except IRError as fault:
        problems = list(fault.problems)
    assert any(re.search(said, str(p)) for p in problems), problems


def test_a_view_may_rest_on_what_every_call_keeps() -> None:
    """The first row of a buffer that may be empty: inside only where a guard says that it is not."""
    text = WHOLE.replace(
        'extents=["n", 8], strides=[8, 1]} : !tile.view<["n", 8], f32>',
        "extents=[1, 8], strides=[8, 1]} : !tile.view<[1, 8], f32>",
    ).replace('extents=["n"], order', "extents=[1], order")
    assert unproved(parse_module(text))
    assert not unproved(parse_module(text), [Expr.of("t") - 1])


def test_a_reshape_keeps_the_elements_of_what_it_names() -> None:
    text = WHOLE.replace(
        "    graph.return(values=[%y])",
        '    %z = graph.reshape(%y) {dims=["SIZE"]} : !graph.tensor<["SIZE"], f32>\n    graph.return(values=[%z])',
    )
    assert not unproved(parse_module(text.replace("SIZE", "8*t")))
    assert any("elements" in str(p) for p in unproved(parse_module(text.replace("SIZE", "9*t"))))
