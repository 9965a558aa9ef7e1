"""The tile dialect as text: every op and every kind of kernel prints and parses back to itself."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from tests.ir.tile.kernels import CASES, Case, branch
from tilewright.errors import IRError
from tilewright.ir.dims import Dim
from tilewright.ir.dtypes import BF16, F32, I1, I8, I32, I64, U8
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.module import new_module, parse_module, print_module
from tilewright.ir.tile import compute
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.dialect import TILE
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp
from tilewright.ir.tile.memory import LoadOp, StageOp, StoreOp, ViewOp, ViewPagesOp, ViewSegmentOp, ViewWindowOp
from tilewright.ir.tile.structure import ForOp, KernelOp, LaunchOp
from tilewright.ir.types import TensorType


def every_op() -> ModuleOp:
    """A module with a launch, and a kernel in which every op of the dialect occurs."""
    b = KernelBuilder("every", ["m", "n"])
    x, words, ids, flags = b.buffer(["m", 16], F32), b.buffer(["m", 8], U8), b.buffer(["n"], I32), b.buffer([4], I1)
    pages, y, places = b.buffer(["n", 4, 16], F32), b.output(["m", 16], F32), b.output(["m", 16], I64)
    i, j = b.grid(["m", 16], [4, 16], [(0, 8), (1, 1), (0, 1)])
    f = b.load(b.dense(x), [i, j], [4, 16], -float("inf"))
    window = b.add(ViewWindowOp.make(b.dense(x), [b.index("a0 - 1", i), b.index(0)], extents=["m", 16], steps=[2, 1]))
    length = b.scalar(b.dense(ids), [b.index("n - 1")])
    paged = b.add(ViewPagesOp.make(b.dense(pages), b.dense(ids), length, page=4, extent=["4*n"]))
    segment = b.add(ViewSegmentOp.make(b.dense(x), b.dense(ids), b.index(0), axis=0, extent=["m"]))
    parts = [b.load(v, [i, j], [4, 16], 0.0) for v in (window, paged, segment, b.rows(b.dense(x), b.dense(ids)))]
    f = b.add(StageOp.make(b.add(compute.ConcatOp.make([f, *parts], axis=0)), level="l1"))
    f = b.slice(f, [0, 0], [4, 16])
    square = b.transpose(b.reshape(f, [16, 4]), [1, 0])
    f = b.dot(f, b.transpose(square, [1, 0]), b.constant(0.5, [4, 4]))
    f = b.broadcast(b.reduce("sum", f), [4, 16])
    with b.loop(0, "n", 16, [b.constant(float("nan"), [4, 16]), b.index(3)]) as loop:
        loop.give(b.accumulate("max", f, loop.carried[0]), b.index("a0 + 1", loop.carried[1]))
    nibbles = b.add(compute.UnpackOp.make(b.load(b.dense(words), [i, j], [4, 8]), format="int4", axis=1))
    b.add(compute.PackOp.make(nibbles, format="int4", axis=1))
    scales = b.constant(1.0, [4, 2], BF16), b.constant(1.0, [2, 4], F32)
    f = b.add(
        compute.DotScaledOp.make(
            nibbles, scales[0], b.transpose(nibbles, [1, 0]), scales[1], b.constant(0.0, [4, 4]), group=8
        )
    )
    f = b.broadcast(b.slice(f, [0, 0], [4, 1]), [4, 16])
    seen = b.map("lt", b.coordinates(j, 1, [1, 16]), b.splat(loop.out[1], [1, 1]))
    (f,) = branch(b, b.compare(i, "<=", 3), lambda: [b.map("exp", f)], lambda: [f])
    f = b.map("select", b.map("and", seen, b.reshape(b.load(b.dense(flags), [0], [1]), [1, 1])), f, f)
    b.add(compute.SortOp.make(f, f, axis=1, descending=True))
    b.add(compute.TopkOp.make(f, k=2, axis=1))
    b.add(compute.ScanOp.make([f, f], fn="linear", axis=1))
    b.add(compute.ReduceOp.make([f, b.cast(b.cast(f, I64), I8)], fn="argmax", axis=1))
    b.store(f, b.dense(y), [i, j])
    found = b.lookup(b.dense(x), b.elements([2, 0, 1, 5], I64), [i], [4], 1)
    b.update(found, b.elements([0, 1, 2, 3], I32), b.dense(y), [i], 1, "add")
    lines = [b.view(v, ["m", 16], [16, 1]) for v in (x, y, places, places)]
    b.add(
        SortLineOp.make(*lines[:3], b.view(places, ["m", 32], [0, 1]), [i, i], axis=1, descending=True, result_types=[])
    )
    heads = [b.view(v, ["m", 3], [16, 1]) for v in (y, places)]
    b.add(TopkLineOp.make(lines[0], *heads, [i], axis=1, k=3, result_types=[]))
    module = new_module([Dim("a"), Dim("c")])
    module.body.block.add_op(b.finish())
    types = {"x": (["a", 16], F32), "words": (["a", 8], U8), "ids": (["c"], I32), "flags": ([4], I1)}
    tensors = {name: TensorType.of(dims, dtype) for name, (dims, dtype) in types.items()}
    tensors["pages"] = TensorType.of(["c", 4, 16], F32)
    main = FuncOp.begin("main", tensors)
    launch = LaunchOp.make(
        list(main.block.args),
        callees=["every", "every"],
        guard=["m"],
        limits=[4],
        dims=["a", "c"],
        result_types=[[TensorType.of(["a", 16], F32), TensorType.of(["a", 16], I64)]],
    )
    main.block.add_op(launch)
    module.body.block.add_op(main.finish(list(launch.results), ["y", "places"]))
    return module


def test_every_op_of_the_dialect_prints_and_parses_back() -> None:
    module = every_op()
    assert {op.name for op in module.walk()} >= {op.name for op in TILE.operations}
    text = print_module(module)
    again = parse_module(text)
    assert again.is_structurally_equivalent(module)
    assert print_module(again) == text


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_kernels_print_and_parse_back(case: Case) -> None:
    module = ModuleOp([case.kernel.clone()])
    again = parse_module(print_module(module))
    assert again.is_structurally_equivalent(module)
    assert print_module(again) == print_module(module)


def test_every_op_says_in_one_line_what_it_does() -> None:
    for op in TILE.operations:
        assert op.doc().endswith("."), op.name  # type: ignore[attr-defined]


def kernel_ops() -> dict[str, object]:
    return {op.name: op for op in every_op().walk()}


class TestVerifier:
    def refused(self, op: object, message: str) -> None:
        with pytest.raises(VerifyException, match=message):
            op.verify_()  # type: ignore[attr-defined]

    def test_a_loops_body_yields_what_it_carries(self) -> None:
        loop = kernel_ops()["tile.for"]
        assert isinstance(loop, ForOp)
        last = loop.body.blocks[0].last_op
        assert last is not None
        last.operands = list(reversed(last.operands))
        self.refused(loop, "yields")

    def test_a_loop_goes_forward(self) -> None:
        loop = kernel_ops()["tile.for"]
        assert isinstance(loop, ForOp)
        loop.properties["step"] = type(loop.step)(0)
        self.refused(loop, "step 0 must be 1 or more")

    def test_an_order_covers_every_axis(self) -> None:
        kernel = kernel_ops()["tile.kernel"]
        assert isinstance(kernel, KernelOp)
        kernel.properties["order"] = type(kernel.order)((0, 8, 1, 1))
        self.refused(kernel, "order must end with step 1 for every grid axis")

    def test_a_kernel_speaks_of_its_own_dims_alone(self) -> None:
        for build in (lambda b: b.index("a0 + k", b.index(0)), lambda b: b.view(b._block.args[0], ["k"], [1])):
            b = KernelBuilder("k", ["n"])
            b.buffer(["n"], F32)
            b.grid([], [])
            build(b)
            self.refused(b.finish(), "unknown dims k")

    def test_a_dim_is_not_called_as_an_operand_of_expr(self) -> None:
        b = KernelBuilder("k", ["a1"])
        b.buffer(["a1"], F32)
        b.grid([], [])
        self.refused(b.finish(), "a1: a0, a1, ... are the operands of tile.expr")

    def test_a_stored_tile_fits_its_view(self) -> None:
        b = KernelBuilder("k", [])
        y = b.output([4], F32)
        b.grid([], [])
        view, at = b.dense(y), b.index(0)
        self.refused(StoreOp.make(b.constant(0.0, [4], BF16), view, [at], result_types=[]), "does not fit")
        self.refused(StoreOp.make(b.constant(0.0, [2, 2]), view, [at, at], result_types=[]), "does not fit")

    @pytest.mark.parametrize(
        ("properties", "message"),
        [
            ({"extents": [4, 4]}, "needs as many coordinates and extents"),
            ({"extents": [4], "fill": "zero"}, "fill 'zero' is not one of poison, value"),
        ],
    )
    def test_a_load_names_a_region_and_a_known_fill(self, properties: dict[str, object], message: str) -> None:
        b = KernelBuilder("k", [])
        x = b.buffer([4], F32)
        b.grid([], [])
        with pytest.raises(IRError, match=message):
            LoadOp.make(b.dense(x), [b.index(0)], **properties)

    def test_views_say_what_they_need(self) -> None:
        b = KernelBuilder("k", [])
        x, ids = b.buffer([4, 3, 2], F32), b.buffer([4], I32)
        b.grid([], [])
        view, numbers, zero = b.dense(x), b.dense(ids), b.index(0)
        faults = [
            (lambda: ViewOp.make(x, extents=[4], strides=[1, 1]), "1 extents and 2 strides"),
            (lambda: ViewWindowOp.make(numbers, [zero], extents=[4], steps=[0]), "must be 1 or more"),
            (lambda: ViewWindowOp.make(view, [zero], extents=[4], steps=[1]), "for each of 3 axes"),
            (lambda: b.rows(view, numbers, axis=3), "axis 3 is not one of 3 axes"),
            (lambda: b.rows(view, view), "integer view of rank 1"),
            (lambda: ViewPagesOp.make(view, numbers, zero, page=4, extent=[16]), "needs pages of 4"),
            (lambda: ViewSegmentOp.make(view, view, zero, axis=0, extent=[4]), "needs integer offsets of rank 1"),
        ]
        for build, message in faults:
            with pytest.raises(IRError, match=message):
                build()
