"""Functions, groups, constants and counters: what they hold, and what their verifiers refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from xdsl.ir import Block, Region
from xdsl.utils.exceptions import VerifyException

from tests.ir.graph.single_op import run, value
from tilewright.errors import IRError
from tilewright.ir.dims import parse_expr
from tilewright.ir.dtypes import BF16, DTYPES, F32, F64, I1, I8, I64, U8, DType
from tilewright.ir.graph.base import GraphOp, Setting
from tilewright.ir.graph.dialect import GRAPH_OPS
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.structure import (
    ConstantOp,
    DimOp,
    ExternOp,
    FuncOp,
    GroupOp,
    IotaOp,
    PositionsOp,
    ReturnOp,
    StateWriteOp,
    YieldOp,
)
from tilewright.ir.types import TensorType


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_constants_are_exact(dtype: DType) -> None:
    listed = [0, 1, 1, 0, 1, 1] if dtype == I1 else [0, 1, 2, 3, 100, 127]
    op = ConstantOp.of(listed, [2, 3], dtype)
    assert run(op).tolist() == torch.tensor(listed).reshape(2, 3).tolist()
    assert op.splat is None
    splat = ConstantOp.of(1, ["n", 2], dtype)
    assert run(splat, sizes={"n": 3}).tolist() == [[1, 1]] * 3
    assert splat.splat == 1


def test_the_extremes_of_i64_and_special_floats_survive() -> None:
    ends = [2**63 - 1, -(2**63), 2**53 + 1]
    assert run(ConstantOp.of(ends, [3], I64)).tolist() == ends
    special = run(ConstantOp.of([math.inf, -math.inf, math.nan, -0.0], [4], F32))
    assert special[:2].tolist() == [math.inf, -math.inf]
    assert special[2].isnan()
    assert math.copysign(1, special[3].item()) == -1


def test_floats_are_rounded_where_the_constant_is_made_and_nowhere_else() -> None:
    assert ConstantOp.of(0.1, [], BF16).values.data == (torch.tensor(0.1).bfloat16().item(),)
    tenth = ConstantOp.of(0.1, [], F32)
    assert tenth.evaluate(Setting(wide=True)).item() == torch.tensor(0.1).item()
    stated = ConstantOp.make(values=[0.1], result_types=[TensorType.of([], F32)])
    assert stated.evaluate(Setting(wide=True)).item() == torch.tensor(0.1).item()
    assert ConstantOp.of(0.1, [], F64).values.data == (0.1,)
    assert ConstantOp.of(1e30, [], DTYPES["f16"]).values.data == (math.inf,)


@pytest.mark.parametrize(
    ("values", "dims", "dtype", "says"),
    [
        ([1.0, 2.0], [3], F32, "has 3 elements, 2 values"),
        ([1.0, 2.0], ["n"], F32, "2 values"),
        ([1], [], F32, "1 is not an element of f32"),
        ([1.0], [], I64, "1.0 is not an element of i64"),
        ([2], [], I1, "2 lies outside i1"),
        ([-1], [], U8, "-1 lies outside u8"),
        ([128], [], I8, "128 lies outside i8"),
    ],
)
def test_constants_that_make_no_sense(values: list[float], dims: list[object], dtype: DType, says: str) -> None:
    with pytest.raises(VerifyException, match=says):
        ConstantOp.make(values=values, result_types=[TensorType.of(dims, dtype)]).verify()


@given(st.integers(0, 4), st.integers(0, 4), st.integers(-3, 3), st.integers(0, 1), st.integers(0, 9))
def test_iota_counts_along_its_axis(m: int, n: int, step: int, axis: int, start: int) -> None:
    op = IotaOp.make(axis=axis, start=["s"], step=step, result_types=[TensorType.of(["m", "n"], I64)])
    found = run(op, sizes={"m": m, "n": n, "s": start})
    assert found.tolist() == [[start + step * (i if axis == 0 else j) for j in range(n)] for i in range(m)]


def test_counters_check_their_types() -> None:
    for op, says in (
        (IotaOp.make(axis=1, result_types=[TensorType.of([3], I64)]), "axis 1 is not an axis"),
        (IotaOp.make(start=[0, 1], result_types=[TensorType.of([3], I64)]), "one dim expression"),
        (IotaOp.make(result_types=[TensorType.of([3], I1)]), "i1 cannot count"),
        (PositionsOp.make(result_types=[TensorType.of([3], F32)]), "positions are i64"),
        (PositionsOp.make(result_types=[TensorType.of([3, 1], I64)]), "positions are i64"),
    ):
        with pytest.raises(VerifyException, match=says):
            op.verify()


def test_dims_and_positions_are_values() -> None:
    assert run(DimOp.make(value=[parse_expr("2*t + 1")]), sizes={"t": 4}).item() == 9
    with pytest.raises(IRError, match="one dim expression, got 2"):
        DimOp.make(value=[1, 2])
    assert run(PositionsOp.make(result_types=[TensorType.of(["t"], I64)]), sizes={"t": 3}).tolist() == [0, 1, 2]


def identity(name: str = "main", kind: str = "main") -> FuncOp:
    func = FuncOp.begin(name, {"x": TensorType.of(["n"], F32)}, kind=kind)
    return func.finish(list(func.block.args), ["y"])


def test_a_function_knows_its_names() -> None:
    func = identity()
    func.verify()
    assert func.symbol == "main"
    assert list(func.arguments) == ["x"]
    assert func.returned == {"y": func.arguments["x"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.properties.update(kind=f.kind.of("other")), "kind 'other' is not one of"),
        (lambda f: f.properties.update(arg_names=f.arg_names.of([])), "1 arguments but 0 names"),
        (lambda f: f.properties.update(result_names=f.result_names.of(["a", "b"])), "1 results but 2 names"),
        (lambda f: f.block.erase_op(f.block.last_op), "last op must be graph.return"),
    ],
)
def test_a_function_is_verified(change: object, says: str) -> None:
    func = identity()
    change(func)  # type: ignore[operator]
    with pytest.raises(VerifyException, match=says):
        func.verify_()


def test_two_results_of_one_name_are_refused() -> None:
    func = FuncOp.begin("main", {"x": TensorType.of(["n"], F32)})
    func.finish([func.block.args[0]] * 2, ["y", "y"])
    with pytest.raises(VerifyException, match="results share a name: y, y"):
        func.verify_()


def group_of(*ops: GraphOp, block: Block, result: object = None) -> GroupOp:
    outer = [value(["n"]) for _ in block.args]
    block.add_ops(list(ops))
    kept = [ops[-1].results[0]] if result is None else [result]
    block.add_op(YieldOp.make(kept))  # type: ignore[arg-type]
    return GroupOp.make(outer, kind="map", result_types=[kept[0].type], regions=[Region(block)])


def test_a_group_costs_its_work_but_only_its_edges_move() -> None:
    block = Block(arg_types=[TensorType.of(["n"], F32)])
    first = MapOp.make(block.args[0], fn="exp")
    second = MapOp.make(first, fn="neg")
    group = group_of(first, second, block=block)
    group.verify()
    assert group.cost().at({"n": 10}) == {"matrix": 0, "vector": 90, "read": 40, "write": 40}
    assert group.yielded == (second.out,)


def test_a_group_is_verified() -> None:
    block = Block(arg_types=[TensorType.of([3], F32)])
    wrong = group_of(MapOp.make(block.args[0], fn="exp"), block=block)
    with pytest.raises(VerifyException, match=r"operands are \(f32\[n\]\), inside they are \(f32\[3\]\)"):
        wrong.verify_()
    block = Block(arg_types=[TensorType.of(["n"], F32)])
    effect = StateWriteOp.make(block.args[0], name="s")
    with pytest.raises(VerifyException, match=r"graph\.state_write has effects"):
        group_of(effect, block=block, result=block.args[0]).verify_()
    bare = GroupOp.make([], kind="map", result_types=[[]], regions=[Region(Block())])
    with pytest.raises(VerifyException, match=r"last op must be graph\.yield"):
        bare.verify_()


def test_an_unregistered_extern_is_named() -> None:
    op = ExternOp.make([value([2])], callee="nobody.knows", result_types=[TensorType.of([2], F32)])
    with pytest.raises(IRError, match=r"no extern function 'nobody\.knows'"):
        op.evaluate(Setting(), torch.zeros(2))


def test_every_op_has_a_doc_line_and_a_name_of_the_dialect() -> None:
    names = [op.name for op in GRAPH_OPS]
    assert len(set(names)) == len(names)
    for op in GRAPH_OPS:
        assert op.name.startswith("graph.")
        assert op.doc().endswith((".", ":")), op.name


def test_ops_with_regions_or_effects_have_no_reference_of_their_own() -> None:
    with pytest.raises(IRError, match="through the graph interpreter"):
        ReturnOp.make([]).reference()
