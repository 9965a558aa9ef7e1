"""The tile interpreter: values, poison, the soundness of writes, and counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from tests.ir.tile.kernels import CASES, Case, branch, matmul
from tilewright.errors import IRError, KernelStoreError, PoisonError
from tilewright.ir.dims import Dim, ceildiv
from tilewright.ir.dtypes import BF16, DTYPES, F32, I32, I64, DType
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import FuncOp, PackedOp, WeightOp
from tilewright.ir.module import new_module
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.counting import Counters, Quantity
from tilewright.ir.tile.execution import garbage
from tilewright.ir.tile.memory import ViewSegmentOp, ViewWindowOp
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.tile_interpreter import programs, run_kernel, run_module
from tilewright.ir.types import TensorType


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_kernels_compute_what_they_should_at_every_size(case: Case, rng: Any) -> None:
    for dims in case.dims(rng):
        inputs, outputs, expected = case.buffers(dims, rng)
        run_kernel(case.kernel, [*inputs, *outputs], dims)
        for found, wanted in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=1e-4, atol=1e-4, err_msg=str(dims))


class TestOrder:
    def grid(self, order: list[tuple[int, int]]) -> KernelOp:
        b = KernelBuilder("k", ["m", "n"])
        b.grid(["m", "n"], [10, 3], order)
        return b.finish()

    def test_a_plain_order_is_nested_loops(self) -> None:
        found = list(programs(self.grid([(1, 1), (0, 1)]), {"m": 21, "n": 4}))
        assert found == [(0, 0), (10, 0), (20, 0), (0, 3), (10, 3), (20, 3)]

    def test_a_blocked_axis_walks_block_by_block(self) -> None:
        found = list(programs(self.grid([(0, 2), (1, 1), (0, 1)]), {"m": 30, "n": 6}))
        assert found == [(0, 0), (10, 0), (0, 3), (10, 3), (20, 0), (20, 3)]

    @pytest.mark.parametrize("order", [[(0, 4), (1, 3), (0, 2), (1, 1), (0, 1)], [(1, 2), (0, 3), (1, 1), (0, 1)]])
    def test_every_program_runs_once_whatever_the_order(self, order: list[tuple[int, int]], rng: Any) -> None:
        for _ in range(5):
            dims = {"m": int(rng.integers(0, 120)), "n": int(rng.integers(0, 40))}
            found = list(programs(self.grid(order), dims))
            assert len(found) == (ceildiv(dims["m"], 10) * ceildiv(dims["n"], 3)).constant
            assert set(found) == {(i, j) for i in range(0, dims["m"], 10) for j in range(0, dims["n"], 3)}


def row_sums(fill: float | None, *, masked: bool = False) -> KernelOp:
    """Sums of rows of n in tiles of 4 by 16, the tails filled, masked, or left as poison."""
    b = KernelBuilder("sums", ["m", "n"])
    x, y = b.buffer(["m", "n"], F32), b.output(["m", 1], F32)
    (i,) = b.grid(["m"], [4])
    with b.loop(0, "n", 16, [b.constant(0.0, [4, 16])]) as loop:
        tile = b.load(b.dense(x), [i, loop.at], [4, 16], fill)
        if masked:
            inside = b.map("lt", b.coordinates(loop.at, 1, [1, 16]), b.splat("n", [1, 1]))
            tile = b.map("select", inside, tile, b.constant(0.0, [1, 1]))
        loop.give(b.accumulate("sum", tile, loop.carried[0]))
    b.store(b.reduce("sum", loop.out[0]), b.dense(y), [i, 0])
    return b.finish()


class TestPoison:
    def test_a_tail_that_reaches_a_sum_is_found_and_named(self, rng: Any) -> None:
        x, y = rng.standard_normal((5, 20)).astype(np.float32), np.zeros((5, 1), np.float32)
        with pytest.raises(PoisonError, match=r"tile\.store: stores a lane that was never loaded, in @sums at \(0\)"):
            run_kernel(row_sums(None), [x, y], {"m": 5, "n": 20})

    def test_the_same_kernel_passes_where_nothing_is_left_over(self, rng: Any) -> None:
        x, y = rng.standard_normal((5, 32)).astype(np.float32), np.zeros((5, 1), np.float32)
        run_kernel(row_sums(None), [x, y], {"m": 5, "n": 32})
        np.testing.assert_allclose(y[:, 0], x.astype(np.float64).sum(1), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kernel", [row_sums(0.0), row_sums(None, masked=True)], ids=["filled", "masked"])
    def test_filling_or_masking_the_tail_cures_it(self, kernel: KernelOp, rng: Any) -> None:
        x, y = rng.standard_normal((5, 20)).astype(np.float32), np.zeros((5, 1), np.float32)
        run_kernel(kernel, [x, y], {"m": 5, "n": 20})
        np.testing.assert_allclose(y[:, 0], x.astype(np.float64).sum(1), rtol=1e-5, atol=1e-5)

    def test_the_wrong_fill_is_wrong_numbers_not_poison(self) -> None:
        y = np.zeros((1, 1), np.float32)
        run_kernel(row_sums(1.0), [np.ones((1, 3), np.float32), y], {"m": 1, "n": 3})
        assert y[0, 0] == 16

    def test_poison_times_zero_is_still_poison(self) -> None:
        b = KernelBuilder("product", ["n"])
        x, y = b.buffer(["n"], F32), b.output([1], F32)
        (i,) = b.grid([1], [1])
        tile = b.load(b.dense(x), [0], [4])
        b.store(b.reduce("sum", b.map("mul", tile, b.constant(0.0, [4]))), b.dense(y), [i])
        kernel = b.finish()
        with pytest.raises(PoisonError):
            run_kernel(kernel, [np.ones(3, np.float32), np.zeros(1, np.float32)], {"n": 3})
        run_kernel(kernel, [np.ones(4, np.float32), np.zeros(1, np.float32)], {"n": 4})

    def test_poison_outside_the_output_is_dropped(self) -> None:
        b = KernelBuilder("copy", ["n"])
        x, y = b.buffer(["n"], F32), b.output(["n"], F32)
        (i,) = b.grid(["n"], [8])
        b.store(b.map("exp", b.load(b.dense(x), [i], [8])), b.dense(y), [i])
        y_, x_ = np.zeros(11, np.float32), np.ones(11, np.float32)
        run_kernel(b.finish(), [x_, y_], {"n": 11})
        assert (y_ == np.float32(np.e)).all()

    @pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=str)
    def test_every_dtype_has_its_garbage(self, dtype: DType) -> None:
        b = KernelBuilder("leak", [])
        x, y = b.buffer([2], dtype), b.output([4], dtype)
        b.grid([], [])
        b.store(b.load(b.dense(x), [0], [4]), b.dense(y), [0])
        with pytest.raises(PoisonError):
            run_kernel(b.finish(), [np.zeros(2, dtype.numpy()), np.zeros(4, dtype.numpy())], {})
        if dtype.is_float:
            assert np.isnan(garbage(dtype))
        elif dtype.is_integer:
            assert garbage(dtype) not in range(-64, 128)

    def test_an_index_outside_the_table_is_poison_even_where_a_fill_is_given(self) -> None:
        b = KernelBuilder("gather", ["n"])
        table, ids, y = b.buffer([5, 4], F32), b.buffer(["n"], I32), b.output(["n", 4], F32)
        (i,) = b.grid(["n"], [3])
        b.store(b.load(b.rows(b.dense(table), b.dense(ids)), [i, 0], [3, 4], 0.0), b.dense(y), [i, 0])
        kernel = b.finish()
        table_, y_ = np.ones((5, 4), np.float32), np.zeros((4, 4), np.float32)
        run_kernel(kernel, [table_, np.array([0, 4, 1, 2], np.int32), y_], {"n": 4})
        for bad in (-1, 5):
            with pytest.raises(PoisonError, match=r"at \(3\)"):
                run_kernel(kernel, [table_, np.array([0, 4, 1, bad], np.int32), y_], {"n": 4})

    def test_an_integer_outside_its_view_cannot_index(self) -> None:
        b = KernelBuilder("scalar", ["n"])
        lengths, y = b.buffer(["n"], I64), b.output([1], I32)
        b.grid([], [])
        b.store(b.splat(b.scalar(b.dense(lengths), [2]), [1]), b.dense(y), [0])
        kernel = b.finish()
        run_kernel(kernel, [np.array([5, 6, 7]), np.zeros(1, np.int32)], {"n": 3})
        with pytest.raises(PoisonError, match=r"tile\.scalar: reads an integer outside its view, at \[2\], in @scalar"):
            run_kernel(kernel, [np.array([5, 6]), np.zeros(1, np.int32)], {"n": 2})

    def test_a_segment_beyond_its_source_is_poison(self) -> None:
        b = KernelBuilder("segment", ["n"])
        x, offsets, y = b.buffer(["n"], F32), b.buffer([2], I32), b.output([4], F32)
        b.grid([], [])
        which = b.index(0)
        rows = b.add(ViewSegmentOp.make(b.dense(x), b.dense(offsets), which, axis=0, extent=["n"]))
        b.store(b.load(rows, [0], [4], 0.0), b.dense(y), [0])
        kernel = b.finish()
        found = np.zeros(4, np.float32)
        run_kernel(kernel, [np.arange(1, 7, dtype=np.float32), np.array([3, 6], np.int32), found], {"n": 6})
        assert found.tolist() == [4, 5, 6, 0]
        with pytest.raises(PoisonError):
            run_kernel(kernel, [np.arange(6, dtype=np.float32), np.array([4, 8], np.int32), found], {"n": 6})

    def test_a_window_clips_at_its_source(self) -> None:
        b = KernelBuilder("window", [])
        x, y = b.buffer([5], F32), b.output([6], F32)
        b.grid([], [])
        window = b.add(ViewWindowOp.make(b.dense(x), [b.index(-2)], extents=[6], steps=[2]))
        b.store(b.load(window, [0], [6], -1.0), b.dense(y), [0])
        found = np.zeros(6, np.float32)
        run_kernel(b.finish(), [np.arange(5, dtype=np.float32), found], {})
        assert found.tolist() == [-1, 0, 2, 4, -1, -1]

    def test_a_window_clips_at_its_own_extent_too(self) -> None:
        def found(start: int, *, rows: bool) -> list[float]:
            b = KernelBuilder("window", [])
            x, ids, y = b.buffer([9], F32), b.buffer([9], I32), b.output([6], F32)
            b.grid([], [])
            source = b.rows(b.dense(x), b.dense(ids)) if rows else b.dense(x)
            window = b.add(ViewWindowOp.make(source, [b.index(3)], extents=[4], steps=[1]))
            b.store(b.load(window, [start], [6], -1.0), b.dense(y), [0])
            out = np.zeros(6, np.float32)
            run_kernel(b.finish(), [np.arange(9, dtype=np.float32), np.arange(9, dtype=np.int32), out], {})
            return list(out)

        for rows in (False, True):
            assert found(0, rows=rows) == [3, 4, 5, 6, -1, -1]
            assert found(-2, rows=rows) == [-1, -1, 3, 4, 5, 6]


def store_at(extents: list[Any], strides: list[Any], tile: list[int], grid: int = 1) -> KernelOp:
    """Stores ones through a view of an output of 8."""
    b = KernelBuilder("stores", [])
    y = b.output([8], F32)
    (i,) = b.grid([grid], [1])
    at = [i, *[b.index(0) for _ in tile[1:]]]
    b.store(b.constant(1.0, tile), b.view(y, extents, strides), at)
    return b.finish()


class TestWrites:
    def test_two_programs_must_not_write_one_element(self) -> None:
        with pytest.raises(KernelStoreError, match="writes elements of output 0 that program 0 has written"):
            run_kernel(store_at([8], [1], [4], grid=2), [np.zeros(8, np.float32)], {}, complete=False)

    def test_one_store_must_not_write_an_element_twice(self) -> None:
        for extents, strides in (([2, 4], [0, 1]), ([2, 4], [2, 1]), ([4, 2], [1, 3])):
            tile = list(extents)
            if strides == [1, 3]:
                tile = [4, 2]
            with pytest.raises(KernelStoreError, match="twice in one store"):
                run_kernel(store_at(extents, strides, tile), [np.zeros(8, np.float32)], {}, complete=False)

    def test_interleaved_strides_are_disjoint(self) -> None:
        y = np.zeros(8, np.float32)
        run_kernel(store_at([4, 2], [2, 1], [4, 2]), [y], {})
        assert (y == 1).all()

    def test_one_program_must_not_write_an_element_in_two_stores(self) -> None:
        b = KernelBuilder("twice", [])
        y = b.output([8], F32)
        b.grid([], [])
        b.store(b.constant(1.0, [5]), b.dense(y), [0])
        b.store(b.constant(1.0, [5]), b.dense(y), [4])
        with pytest.raises(KernelStoreError, match="that this program has written"):
            run_kernel(b.finish(), [np.zeros(8, np.float32)], {})

    def test_rows_must_be_unique(self) -> None:
        b = KernelBuilder("scatter", ["n"])
        ids, y = b.buffer(["n"], I32), b.output([6, 2], F32)
        (i,) = b.grid(["n"], [2])
        b.store(b.constant(1.0, [2, 2]), b.rows(b.dense(y), b.dense(ids)), [i, 0])
        kernel = b.finish()
        y_ = np.zeros((6, 2), np.float32)
        run_kernel(kernel, [np.array([5, 0, 3], np.int32), y_], {"n": 3}, complete=False)
        assert np.flatnonzero(y_[:, 0]).tolist() == [0, 3, 5]
        for same in ([1, 1, 2], [1, 2, 1]):
            with pytest.raises(KernelStoreError):
                run_kernel(kernel, [np.array(same, np.int32), y_], {"n": 3}, complete=False)
        with pytest.raises(PoisonError, match="an index outside the view names"):
            run_kernel(kernel, [np.array([1, 6], np.int32), y_], {"n": 2}, complete=False)

    def test_an_element_left_out_is_named(self) -> None:
        with pytest.raises(KernelStoreError, match=r"4 of 8 elements of output 0 are never written, .* at \[4\]"):
            run_kernel(store_at([8], [1], [4]), [np.zeros(8, np.float32)], {})
        run_kernel(store_at([8], [1], [4]), [np.zeros(8, np.float32)], {}, complete=False)

    def test_an_output_is_read_only_where_this_program_wrote_it(self) -> None:
        def kernel(offset: int) -> KernelOp:
            b = KernelBuilder("back", [])
            y, z = b.output([4], F32), b.output([4], F32)
            (i,) = b.grid([4], [1])
            b.store(b.constant(3.0, [1]), b.dense(y), [i])
            where = b.index(f"min(max(a0 + {offset}, 0), 3)", i)
            b.store(b.load(b.dense(y), [where], [1]), b.dense(z), [i])
            return b.finish()

        def run(offset: int) -> Any:
            z = np.zeros(4, np.float32)
            run_kernel(kernel(offset), [np.zeros(4, np.float32), z], {})
            return z

        assert (run(0) == 3).all()
        with pytest.raises(KernelStoreError, match="not written yet"):
            run(1)
        with pytest.raises(KernelStoreError, match="written by another program"):
            run(-1)

    def test_inputs_are_not_written(self) -> None:
        b = KernelBuilder("wrong", [])
        x = b.buffer([4], F32)
        b.grid([], [])
        b.store(b.constant(1.0, [4]), b.dense(x), [0])
        with pytest.raises(IRError, match="stores to buffer 0, an input"):
            run_kernel(b.finish(), [np.zeros(4, np.float32)], {})

    def test_a_view_must_lie_inside_its_buffer(self) -> None:
        for extents, strides, tile in (([9], [1], [9]), ([3, 3], [4, 1], [3, 3])):
            with pytest.raises(IRError, match="a view leaves buffer 0 of 8 elements"):
                run_kernel(store_at(extents, strides, tile), [np.zeros(8, np.float32)], {}, complete=False)


class TestControl:
    def test_an_empty_loop_gives_what_it_was_given(self) -> None:
        y = np.zeros((3, 1), np.float32)
        run_kernel(row_sums(0.0), [np.zeros((3, 0), np.float32), y], {"m": 3, "n": 0})
        assert (y == 0).all()

    def test_a_branch_runs_one_side_and_counts_it(self) -> None:
        b = KernelBuilder("one_side", ["n"])
        x, y = b.buffer(["n"], F32), b.output(["n"], F32)
        (i,) = b.grid(["n"], [1])
        odd = b.index("mod(a0, 2)", i)
        (value,) = branch(b, odd, lambda: [b.load(b.dense(x), [i], [1])], lambda: [b.map("exp", b.constant(0.0, [1]))])
        b.store(value, b.dense(y), [i])
        counters, found = Counters(), np.zeros(5, np.float32)
        run_kernel(b.finish(), [np.full(5, 9, np.float32), found], {"n": 5}, counters)
        assert found.tolist() == [1, 9, 1, 9, 1]
        assert (counters.elements.read, counters.elements.vector) == (2, 3 * 8)

    @pytest.mark.parametrize(("relation", "expected"), [("<", [1, 0, 0]), ("<=", [1, 1, 0]), ("==", [0, 1, 0])])
    def test_comparisons(self, relation: str, expected: list[int]) -> None:
        b = KernelBuilder("compare", [])
        y = b.output([3], I32)
        (i,) = b.grid([3], [1])
        b.store(b.splat(b.compare(i, relation, 1), [1]), b.dense(y), [i])
        found = np.zeros(3, np.int32)
        run_kernel(b.finish(), [found], {})
        assert found.tolist() == expected


class TestCounters:
    def test_traffic_is_clipped_and_work_is_not(self) -> None:
        case, dims = matmul(6, 16, 8, stage=True), {"m": 7, "n": 20, "k": 10}
        inputs, outputs, _ = case.buffers(dims, np.random.default_rng(0))
        counters = Counters()
        run_kernel(case.kernel, [*inputs, *outputs], dims, counters)
        steps, grid = 2, 2 * 2
        assert counters.bytes.buffers == {
            0: {"read": 4 * 2 * 7 * 10, "write": 0},
            1: {"read": 4 * 2 * 20 * 10, "write": 0},
            2: {"read": 0, "write": 4 * 7 * 20},
        }
        assert counters.bytes.levels == {
            "memory": 4 * (2 * 7 * 10 + 2 * 20 * 10 + 7 * 20),
            "l1": 4 * (2 * 7 * 10 + 2 * 20 * 10),
            "l0": 4 * grid * steps * 6 * 16,
        }
        assert counters.bytes.matrix == grid * steps * 2 * 6 * 16 * 8
        assert counters.elements.read * 4 == counters.bytes.read

    def test_several_runs_add_up(self) -> None:
        case, dims = matmul(6, 16, 8), {"m": 7, "n": 20, "k": 10}
        counters, once = Counters(), Counters()
        for target in (counters, counters, once):
            inputs, outputs, _ = case.buffers(dims, np.random.default_rng(0))
            run_kernel(case.kernel, [*inputs, *outputs], dims, target)
        assert counters.bytes == {q: 2 * n for q, n in once.bytes.items()}

    def test_quantities_are_keyed_by_the_ops_place_in_the_walk(self) -> None:
        case, dims = matmul(6, 16, 8), {"m": 1, "n": 1, "k": 1}
        inputs, outputs, _ = case.buffers(dims, np.random.default_rng(0))
        counters = Counters()
        run_kernel(case.kernel, [*inputs, *outputs], dims, counters)
        names = {n: op.name for n, op in enumerate(case.kernel.walk())}
        found = {(names[q.op], q.kind, q.buffer, q.level) for q in counters.elements}
        assert found == {
            ("tile.load", "read", 0, "memory"),
            ("tile.load", "read", 1, "memory"),
            ("tile.store", "write", 2, "memory"),
            ("tile.dot", "matrix", None, ""),
        }
        assert all(isinstance(q, Quantity) for q in counters.elements)


class TestArguments:
    def test_everything_that_does_not_fit_is_listed(self) -> None:
        kernel = matmul(6, 16, 8).kernel
        dims = {"m": 2, "n": 3, "k": 4}
        right = [np.zeros((2, 4), np.float32), np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32)]
        run_kernel(kernel, right, dims)
        with pytest.raises(IRError, match="3 buffers are declared, 2 are given"):
            run_kernel(kernel, right[:2], dims)
        with pytest.raises(IRError, match="dim n has no size"):
            run_kernel(kernel, right, {"m": 2, "k": 4})
        wrong = [right[0].astype(np.float64), np.zeros((3, 4), np.float32).T, np.zeros((2, 4), np.float32)]
        with pytest.raises(IRError, match="3 problems"):
            run_kernel(kernel, wrong, dims)


def scaling(name: str, factor: float, *, fill: float | None = 0.0) -> KernelOp:
    """y = factor * x over n elements of bf16, in tiles of 4; a fill of None lets poison into a sum of all lanes."""
    b = KernelBuilder(name, ["n"])
    x, y = b.buffer(["n"], BF16), b.output(["n"], BF16)
    (i,) = b.grid(["n"], [4])
    tile = b.map("mul", b.load(b.dense(x), [i], [4], fill), b.constant(factor, [1], BF16))
    if fill is None:
        tile = b.map("add", tile, b.map("mul", b.reduce("sum", tile), b.constant(0.0, [1], BF16)))
    b.store(tile, b.dense(y), [i])
    return b.finish()


def scaled_program(*kernels: KernelOp, limits: list[int]) -> ModuleOp:
    """main(x[t, 3]): x flattened, scaled by the variant for its size, and back; prepare scales a weight likewise."""
    module = new_module([Dim("t", 0, 50)])
    for kernel in kernels:
        module.body.block.add_op(kernel)
    stated = {"callees": [k.sym_name.data for k in kernels], "guard": ["2*n"], "limits": limits}
    prepare = FuncOp.begin("prepare", {}, kind="prepare")
    weight = WeightOp.make(name="w", result_types=[TensorType.of([5], BF16)])
    packed = LaunchOp.make([weight.out], dims=[5], result_types=[[TensorType.of([5], BF16)]], **stated)
    prepare.block.add_ops([weight, packed])
    module.body.block.add_op(prepare.finish(list(packed.outputs), ["p"]))
    main = FuncOp.begin("main", {"x": TensorType.of(["t", 3], BF16)})
    flat = ReshapeOp.make(main.arguments["x"], dims=["3*t"])
    launch = LaunchOp.make([flat.out], dims=["3*t"], result_types=[[TensorType.of(["3*t"], BF16)]], **stated)
    back = ReshapeOp.make(launch.outputs[0], dims=["t", 3])
    kept = PackedOp.make(name="p", result_types=[TensorType.of([5], BF16)])
    main.block.add_ops([flat, launch, back, kept])
    module.body.block.add_op(main.finish([back.out, kept.out], ["y", "p"]))
    return module


class TestModules:
    @pytest.fixture(autouse=True)
    def torch_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def test_launches_run_the_variant_that_their_guard_picks(self) -> None:
        module = scaled_program(scaling("small", 2.0), scaling("large", 4.0), scaling("huge", 8.0), limits=[12, 40])
        w = torch.arange(5).bfloat16()
        for t, factor in ((0, 2), (1, 2), (2, 2), (3, 4), (6, 4), (7, 8), (50, 8)):
            x, counters = torch.randn(t, 3).bfloat16(), dict[str, Counters]()
            found = run_module(module, {"x": x}, weights={"w": w}, counters=counters)
            assert torch.equal(found["y"], x * factor)
            assert torch.equal(found["p"], w * 2)
            name = {2: "small", 4: "large", 8: "huge"}[factor]
            assert counters[name].elements.write == 3 * t + (5 if name == "small" else 0)

    def test_inputs_need_not_be_contiguous(self) -> None:
        module = scaled_program(scaling("only", 2.0), limits=[])
        x = torch.randn(3, 9).bfloat16().T
        assert torch.equal(run_module(module, [x], weights={"w": torch.ones(5).bfloat16()})["y"], x * 2)

    def test_a_kernels_fault_names_the_launch(self) -> None:
        module = scaled_program(scaling("leaky", 2.0, fill=None), limits=[])
        with pytest.raises(PoisonError, match=r"tile\.store: stores a lane that was never loaded, in @leaky at \(4\)"):
            run_module(module, [torch.zeros(4, 3).bfloat16()], weights={"w": torch.ones(5).bfloat16()})
