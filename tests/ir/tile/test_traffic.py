"""Counts without running: formulas and exact sums against the interpreter's counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.ir.tile.kernels import CASES, Case, branch, matmul
from tests.passes.encoder_text import ENCODER
from tilewright.backends.cpu.machines import MACHINES
from tilewright.errors import IRError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.module import dim_space, function, parse_module, weights
from tilewright.ir.passing import Context, run_pipeline
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.counting import Counters, Counts
from tilewright.ir.tile.memory import ViewWindowOp
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.tile_interpreter import chosen_variant, run_kernel, run_module
from tilewright.ir.types import TensorType
from tilewright.passes.pipeline import default_pipeline


def counted(kernel: KernelOp, buffers: list[Any], dims: dict[str, int]) -> Counts:
    """What the interpreter counts, in bytes."""
    counters = Counters()
    run_kernel(kernel, buffers, dims, counters)
    return counters.bytes


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
class TestAgainstTheInterpreter:
    def test_counts_are_exact_at_every_size(self, case: Case, rng: Any) -> None:
        traffic = kernel_traffic(case.kernel)
        assert traffic.data_dependent == case.data_dependent
        for dims in case.dims(rng):
            inputs, outputs, _ = case.buffers(dims, rng)
            actual = counted(case.kernel, [*inputs, *outputs], dims)
            if case.data_dependent:
                assert traffic.counts(dims, [*inputs, *outputs]) == actual, dims
                assert all(traffic.counts(dims)[q] >= n for q, n in actual.items()), dims
            else:
                assert traffic.counts(dims) == actual, dims
            totals = traffic.at(dims, [*inputs, *outputs])
            assert totals["read"] == actual.read
            assert totals["matrix"] + totals["vector"] == actual.matrix + actual.vector

    def test_formulas_are_what_enumeration_gives(self, case: Case, rng: Any) -> None:
        traffic = kernel_traffic(case.kernel)
        assert case.has_formula == all(op.formula is not None for op in traffic.ops)
        for op in traffic.ops:
            for dims in case.dims(rng):
                if op.formula is not None:
                    assert op.formula.evaluate(dims) == op.enumerated(dims), (op.quantity, str(op.formula), dims)

    def test_the_lower_bound_is_one(self, case: Case, rng: Any) -> None:
        traffic = kernel_traffic(case.kernel)
        for dims in case.dims(rng):
            if all(dims.values()) and case.has_formula and not case.data_dependent:
                totals = traffic.at(dims)
                assert traffic.lower_bound.evaluate(dims) <= totals["read"] + totals["write"], dims


class TestFormulas:
    def test_a_matmul_reads_each_operand_once_a_block_of_the_other(self) -> None:
        traffic = kernel_traffic(matmul(6, 64, 32).kernel)
        m, n, k = (Expr.of(d) for d in "mnk")
        row_blocks, column_blocks, steps = (
            Expr.of("floordiv(m + 5, 6)"),
            Expr.of("floordiv(n + 63, 64)"),
            "floordiv(k + 31, 32)",
        )
        assert traffic.of("read", buffer=0) == 4 * m * k * column_blocks
        assert traffic.of("read", buffer=1) == 4 * k * n * row_blocks
        assert traffic.write == 4 * m * n
        assert traffic.matrix == row_blocks * column_blocks * steps * 2 * 6 * 64 * 32
        assert traffic.vector == Expr.of(0)
        assert traffic.lower_bound == 4 * (m * k + k * n + m * n)

    def test_k_in_chunks_moves_what_k_in_one_loop_moves(self) -> None:
        plain, chunked = kernel_traffic(matmul(4, 16, 4).kernel), kernel_traffic(matmul(4, 16, 4, chunk=16).kernel)
        assert (plain.read, plain.write, plain.matrix) == (chunked.read, chunked.write, chunked.matrix)
        assert chunked.read is not None

    def test_chunks_that_tiles_do_not_divide_are_counted_one_by_one(self, rng: Any) -> None:
        case = matmul(4, 8, 4, chunk=6)
        traffic = kernel_traffic(case.kernel)
        assert traffic.matrix is None
        for dims in case.dims(rng):
            inputs, outputs, _ = case.buffers(dims, rng)
            assert traffic.counts(dims) == counted(case.kernel, [*inputs, *outputs], dims)

    def test_stages_count_at_their_level(self) -> None:
        traffic = kernel_traffic(matmul(3, 8, 5, stage=True).kernel)
        staged, read = traffic.of("stage", level="l1"), traffic.read
        assert staged == read
        assert traffic.of("stage", level="l0") == Expr.of("floordiv(m+2, 3)*floordiv(n+7, 8)*floordiv(k+4, 5)*96")

    def test_a_fully_static_kernel_has_numbers(self) -> None:
        b = KernelBuilder("static", [])
        x, y = b.buffer([100, 40], F32), b.output([100, 40], F32)
        at = b.grid([100, 40], [8, 16])
        b.store(b.map("exp", b.load(b.dense(x), at, [8, 16])), b.dense(y), at)
        traffic = kernel_traffic(b.finish())
        assert traffic.read is not None
        assert traffic.read.constant == 4 * 4000
        assert traffic.vector is not None
        assert traffic.vector.constant == 13 * 3 * 8 * 16 * 8

    def test_a_bias_counts_once_a_row_block_and_is_compulsory_once(self) -> None:
        b = KernelBuilder("bias", ["m", "n"])
        bias, y = b.buffer(["n"], F32), b.output(["m", "n"], F32)
        i, j = b.grid(["m", "n"], [4, 16])
        b.store(b.broadcast(b.reshape(b.load(b.dense(bias), [j], [16]), [1, 16]), [4, 16]), b.dense(y), [i, j])
        traffic = kernel_traffic(b.finish())
        assert traffic.read == Expr.of("4*n*floordiv(m + 3, 4)")
        assert traffic.compulsory("read") == Expr.of("4*n")

    def test_a_buffer_read_twice_is_compulsory_once(self) -> None:
        b = KernelBuilder("twice", ["n"])
        x, y = b.buffer(["n"], F32), b.output(["n"], F32)
        (i,) = b.grid(["n"], [16])
        tile = b.map("add", b.load(b.dense(x), [i], [16]), b.load(b.dense(x), [i], [16]))
        b.store(tile, b.dense(y), [i])
        traffic = kernel_traffic(b.finish())
        assert traffic.read == Expr.of("8*n")
        assert traffic.compulsory("read") == Expr.of("4*n")

    def test_a_loop_to_a_length_in_memory_is_bounded_by_what_it_indexes(self) -> None:
        b = KernelBuilder("ragged", ["n", "cap"])
        x, lengths, y = b.buffer(["n", "cap"], F32), b.buffer(["n"], I32), b.output(["n", 1], F32)
        (i,) = b.grid(["n"], [1])
        with b.loop(0, b.scalar(b.dense(lengths), [i]), 8, [b.constant(0.0, [1, 16])]) as loop:
            loop.give(b.accumulate("sum", b.load(b.dense(x), [i, loop.at], [1, 16], 0.0), loop.carried[0]))
        b.store(b.reduce("sum", loop.out[0]), b.dense(y), [i, 0])
        kernel = b.finish()
        traffic = kernel_traffic(kernel)
        assert traffic.data_dependent
        # 16 columns every 8: no closed form for the load, but the trips have one, and so have the lengths themselves
        assert traffic.vector == Expr.of("16*n*floordiv(cap + 7, 8) + 16*n")
        assert traffic.of("read", buffer=1) == Expr.of("4*n")
        dims = {"n": 3, "cap": 21}
        buffers = [np.ones((3, 21), np.float32), np.array([0, 9, 21], np.int32), np.zeros((3, 1), np.float32)]
        actual = counted(kernel, buffers, dims)
        assert traffic.counts(dims, buffers) == actual
        assert traffic.at(dims)["vector"] == 16 * 3 * 3 + 16 * 3 > actual.vector

    def test_what_data_subtracts_is_bounded_by_nothing_subtracted(self) -> None:
        b = KernelBuilder("rest", ["n"])
        x, skip, y = b.buffer(["n"], F32), b.buffer([1], I32), b.output([1], F32)
        b.grid([], [])
        left = b.index("n - a0", b.scalar(b.dense(skip), [0]))
        with b.loop(0, left, 1, [b.constant(0.0, [1])]) as loop:
            loop.give(b.map("add", loop.carried[0], b.load(b.dense(x), [loop.at], [1])))
        b.store(loop.out[0], b.dense(y), [0])
        traffic = kernel_traffic(b.finish())
        assert traffic.vector == Expr.of("n")
        assert traffic.of("read", buffer=0) == Expr.of("4*n")
        buffers = [np.ones(9, np.float32), np.array([4], np.int32), np.zeros(1, np.float32)]
        assert traffic.at({"n": 9}, buffers)["vector"] == 5

    def test_data_without_a_bound_needs_the_buffers(self) -> None:
        b = KernelBuilder("unbounded", [])
        times, y = b.buffer([1], I32), b.output([1], F32)
        b.grid([], [])
        with b.loop(0, b.scalar(b.dense(times), [0]), 1, [b.constant(1.0, [1])]) as loop:
            loop.give(b.map("add", loop.carried[0], loop.carried[0]))
        b.store(loop.out[0], b.dense(y), [0])
        traffic = kernel_traffic(b.finish())
        assert traffic.vector is None
        assert traffic.at({}, [np.array([5], np.int32), np.zeros(1, np.float32)])["vector"] == 5
        with pytest.raises(IRError, match="give the kernel's buffers"):
            traffic.at({})

    def test_an_index_that_grows_unevenly_is_refused(self) -> None:
        b = KernelBuilder("powers", ["n"])
        x, y = b.buffer(["n"], F32), b.output([1], F32)
        b.grid([], [])
        with b.loop(0, 4, 1, [b.index(1), b.constant(0.0, [1])]) as loop:
            at, total = loop.carried
            loop.give(b.index("2*a0", at), b.map("add", total, b.load(b.dense(x), [at], [1], 0.0)))
        b.store(loop.out[1], b.dense(y), [0])
        with pytest.raises(IRError, match="does not grow by the same amount"):
            kernel_traffic(b.finish())


class TestRules:
    """Where a closed form must look twice; each kernel only loads, and n runs through the tail cases."""

    def agree(self, b: KernelBuilder, formula: str | None) -> None:
        kernel = b.finish()
        traffic = kernel_traffic(kernel)
        for n in range(14):
            shape = [d.evaluate({"n": n}) for d in kernel.buffers[0].type.dims]  # type: ignore[attr-defined]
            assert traffic.counts({"n": n}) == counted(kernel, [np.zeros(shape, np.float32)], {"n": n}), n
        assert traffic.read == (None if formula is None else Expr.of(formula))

    def test_blocks_that_reach_beyond_their_grid_read_what_is_there(self) -> None:
        b = KernelBuilder("beyond", ["n"])
        x = b.buffer(["n + 1"], F32)
        (i,) = b.grid(["n"], [4])
        b.load(b.dense(x), [i], [4], 0.0)
        self.agree(b, "4*min(4*floordiv(n + 3, 4), n + 1)")

    def test_a_coordinate_modulo_more_than_the_view_clips(self) -> None:
        for heads, formula in ((3, "4*n"), (2, None)):
            b = KernelBuilder("modulo", ["n"])
            x = b.buffer([heads], F32)
            (i,) = b.grid(["n"], [1])
            b.load(b.dense(x), [b.index("mod(a0, 3)", i)], [1], 0.0)
            self.agree(b, formula)

    def test_a_quotient_of_the_grid_stays_in_its_view(self) -> None:
        b = KernelBuilder("quotient", ["n"])
        x = b.buffer(["n", 5], F32)
        (i,) = b.grid(["3*n"], [1])
        b.load(b.dense(x), [b.index("floordiv(a0, 3)", i), 0], [1, 5], 0.0)
        self.agree(b, "60*n")

    def test_a_loop_that_crosses_zero_reads_what_exists(self) -> None:
        b = KernelBuilder("crossing", ["n"])
        x = b.buffer(["n"], F32)
        b.grid([], [])
        with b.loop(-6, "n", 4) as loop:
            b.load(b.dense(x), [loop.at], [4], 0.0)
        self.agree(b, "4*n")

    def test_chunks_whose_start_places_a_load_are_not_one_loop(self) -> None:
        b = KernelBuilder("chunks", ["n"])
        x = b.buffer(["n", "n"], F32)
        b.grid([], [])
        with b.loop(0, "n", 8) as outer, b.loop(outer.at, b.index("min(a0 + 8, n)", outer.at), 4) as inner:
            b.load(b.dense(x), [outer.at, inner.at], [3, 4], 0.0)
        self.agree(b, None)

    def test_blocks_with_gaps_or_overlaps_have_no_formula(self) -> None:
        for extent in (3, 5):
            b = KernelBuilder("gaps", ["n"])
            x = b.buffer(["n"], F32)
            (i,) = b.grid(["n"], [4])
            b.load(b.dense(x), [i], [extent], 0.0)
            self.agree(b, None)

    def test_a_coordinate_that_falls_as_the_grid_rises(self) -> None:
        b = KernelBuilder("falling", ["n"])
        x = b.buffer(["n"], F32)
        (i,) = b.grid(["n"], [1])
        b.load(b.dense(x), [b.index("n - 1 - a0", i)], [1], 0.0)
        self.agree(b, "4*n")

    def test_a_scaled_coordinate_that_lays_blocks_end_to_end(self) -> None:
        b = KernelBuilder("scaled", ["n"])
        x = b.buffer(["16*n + 5"], F32)
        (i,) = b.grid(["n"], [1])
        b.load(b.dense(x), [b.index("16*a0", i)], [16], 0.0)
        b.load(b.dense(x), [b.index("16*a0 + 8", i)], [16], 0.0)
        self.agree(b, "64*n + 4*max(16*n - 3, 0)")

    def test_a_loop_that_never_runs_reads_nothing(self) -> None:
        b = KernelBuilder("backwards", ["n"])
        x = b.buffer([9], F32)
        b.grid([], [])
        with b.loop(b.index(9), "n", 2) as loop:
            b.load(b.dense(x), [0], [9], 0.0)
            b.load(b.dense(x), [b.index("a0 - 9", loop.at)], [2], 0.0)
        trips = "floordiv(max(n - 9, 0) + 1, 2)"
        self.agree(b, f"36*{trips} + 4*min(2*{trips}, 9)")


def test_the_kernels_of_a_lowered_encoder_count_what_they_move(seed: int) -> None:
    module = parse_module(ENCODER)
    run_pipeline(default_pipeline(), module, Context(MACHINES["avx512"](), dim_space(module)))
    kernels = {op.sym_name.data: op for op in module.walk() if isinstance(op, KernelOp)}
    traffic = {name: kernel_traffic(kernel) for name, kernel in kernels.items()}
    assert all(op.formula is not None for t in traffic.values() for op in t.ops)
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: TensorType, sizes: dict[str, int]) -> torch.Tensor:
        shape = [d.evaluate(sizes) for d in value.dims]
        if value.dtype.is_float:
            return torch.randn(shape, generator=generator)
        return torch.randint(0, 2, shape, generator=generator)

    given = {name: drawn(kind, {}) for name, kind in weights(module).items()}
    for sizes in ({"b": 1, "t": 1}, {"b": 3, "t": 7}, {"b": 5, "t": 9}, {"b": 0, "t": 4}):
        arguments = function(module, "main").arguments
        counters: dict[str, Counters] = {}
        run_module(module, {n: drawn(a.type, sizes) for n, a in arguments.items()}, weights=given, counters=counters)  # type: ignore[arg-type]
        expected: dict[str, Counts] = {}
        for launch in (op for op in module.walk() if isinstance(op, LaunchOp)):
            formal = [d.evaluate(sizes) for d in launch.dims.data]
            name = chosen_variant(launch, kernels[launch.callees.data[0]], formal)
            dims = dict(zip(kernels[name].dims.data, formal, strict=True))
            expected.setdefault(name, Counts()).update(traffic[name].counts(dims))
        assert {name: c.bytes for name, c in counters.items()} == expected, sizes


@st.composite
def nests(draw: st.DrawFn) -> tuple[KernelOp, list[dict[str, int]]]:
    """A kernel of loads alone: random grids, loops, branches, windows and affine coordinates; and dims for it."""
    b = KernelBuilder("nest", ["m", "n"])
    sizes: list[Any] = ["m", "n", 7, 16, "m + 3", "2*n", "m*n"]
    shape = [draw(st.sampled_from(sizes)) for _ in range(draw(st.integers(1, 3)))]
    x = b.buffer(shape, F32)
    axes = draw(st.integers(0, 2))
    tiles = [draw(st.sampled_from([1, 2, 3, 4])) for _ in range(axes)]
    at = list(b.grid([draw(st.sampled_from(sizes)) for _ in range(axes)], tiles))

    def coordinate(variables: list[Any]) -> Any:
        chosen = draw(st.lists(st.sampled_from(variables), max_size=2, unique=True)) if variables else []
        form = draw(
            st.sampled_from(["{}", "{}", "{} + 1", "2*{}", "4*{} - 3", "floordiv({}, 2)", "mod({}, 3)", "n - {}"])
        )
        inner = " + ".join(f"a{i}" for i in range(len(chosen))) or str(draw(st.integers(-2, 5)))
        return b.index(form.format(f"({inner})" if " " in inner else inner), *chosen)

    def body(variables: list[Any], depth: int) -> None:
        for _ in range(draw(st.integers(1, 2))):
            kind = draw(st.sampled_from(["load", "load", "window", "loop", "branch"] if depth else ["load"]))
            if kind == "loop":
                lo = draw(st.sampled_from([0, 0, "coordinate"]))
                hi = draw(st.sampled_from([*sizes, "coordinate", "chunk"]))
                start = (
                    coordinate(variables) if lo == "coordinate" or (hi == "chunk" and not variables) else b.index(lo)
                )
                end = hi
                if hi == "coordinate":
                    end = coordinate(variables)
                elif hi == "chunk":
                    start = draw(st.sampled_from(variables)) if variables else start
                    end = b.index("min(a0 + 4, n)", start)
                with b.loop(start, end, draw(st.sampled_from([1, 2, 3, 4]))) as loop:
                    body([*variables, loop.at], depth - 1)
            elif kind == "branch":
                condition = b.compare(
                    coordinate(variables), draw(st.sampled_from(["<", "<=", "=="])), coordinate(variables)
                )

                def side() -> list[Any]:
                    body(variables, depth - 1)
                    return []

                branch(b, condition, side, side if draw(st.booleans()) else list)
            else:
                view = b.dense(x)
                if kind == "window":
                    offsets = [coordinate(variables) for _ in shape]
                    steps = [draw(st.integers(1, 3)) for _ in shape]
                    extents = [draw(st.sampled_from(sizes)) for _ in shape]
                    view = b.add(ViewWindowOp.make(view, offsets, extents=extents, steps=steps))
                b.load(view, [coordinate(variables) for _ in shape], [draw(st.integers(1, 5)) for _ in shape], 0.0)

    body(at, 3)
    dims = [{"m": draw(st.integers(0, 6)), "n": draw(st.integers(0, 6))} for _ in range(3)]
    return b.finish(), dims


@pytest.mark.parametrize("rows", [0, 3, 7])
def test_a_window_of_a_view_ends_where_the_nearer_of_both_ends(rows: int) -> None:
    b = KernelBuilder("window", ("m",))
    x = b.buffer([7], F32)
    (at,) = b.grid([7], [1])
    b.load(b.window(b.dense(x), [0], ["m"]), [at], [1], 0.0)
    kernel = b.finish()
    counts = kernel_traffic(kernel).counts({"m": rows})
    assert counts == counted(kernel, [np.zeros(7, np.float32)], {"m": rows})
    assert counts.read == 4 * rows


@settings(max_examples=150)
@given(nests())
def test_any_nest_of_loops_counts_what_it_moves(nest: tuple[KernelOp, list[dict[str, int]]]) -> None:
    kernel, tuples = nest
    note(str(kernel))
    traffic = kernel_traffic(kernel)
    for dims in tuples:
        shape = [d.evaluate(dims) for d in kernel.buffers[0].type.dims]  # type: ignore[attr-defined]
        actual = counted(kernel, [np.zeros(shape, np.float32)], dims)
        assert traffic.counts(dims) == actual, dims
        for op in traffic.ops:
            assert op.at(dims) == op.enumerated(dims), (str(op.formula), dims)
