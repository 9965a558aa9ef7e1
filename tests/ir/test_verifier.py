"""The module's verifier finds every breach of the rules that no single op can see, and lists them together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.dialects.builtin import ModuleOp

from tests.ir.graph import every_op
from tilewright.errors import IRError
from tilewright.ir.attributes import Str
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.shape import TransposeOp
from tilewright.ir.graph.structure import CallOp, FuncOp, PackedOp, StateReadOp, WeightOp
from tilewright.ir.module import function, set_dim_space
from tilewright.ir.types import TensorType
from tilewright.ir.verifier import Checked, verify


def ops(module: ModuleOp, kind: type) -> list[object]:
    return [op for op in module.walk() if isinstance(op, kind)]


def one(module: ModuleOp, kind: type) -> object:
    return ops(module, kind)[0]


def rename(kind: type, **change: str) -> Callable[[ModuleOp], None]:
    """A change of a string property of the first op of a kind."""

    def apply(module: ModuleOp) -> None:
        op = one(module, kind)
        op.properties.update({key: Str(value) for key, value in change.items()})  # type: ignore[attr-defined]

    return apply


def retype(kind: type) -> Callable[[ModuleOp], None]:
    def apply(module: ModuleOp) -> None:
        op = one(module, kind)
        twin = kind.make(name=op.label.data, result_types=[TensorType.of([5], F32)])  # type: ignore[attr-defined]
        op.parent.insert_op_before(twin, op)  # type: ignore[attr-defined]

    return apply


def call_itself(module: ModuleOp) -> None:
    layer = function(module, "double")
    (x,) = layer.block.args
    layer.block.insert_op_before(CallOp.make([x], callee="double", result_types=[x.type]), layer.terminator)


def packed_in_prepare(module: ModuleOp) -> None:
    prepare = function(module, "prepare")
    packed = PackedOp.make(name="w.turned", result_types=[TensorType.of([8, 8], F32)])
    prepare.block.insert_op_before(packed, prepare.terminator)


def prepare_takes_an_argument(module: ModuleOp) -> None:
    prepare = function(module, "prepare")
    prepare.block.insert_arg(TensorType.of([3], F32), 0)
    prepare.arg_names = prepare.arg_names.of(["x"])


def second_prepare(module: ModuleOp) -> None:
    module.body.block.add_op(FuncOp.begin("again", {}, kind="prepare").finish([], []))


def forget_dims(module: ModuleOp) -> None:
    set_dim_space(module, DimSpace([Dim("batch", 1, 2)]))


def test_a_right_module_passes() -> None:
    verify(every_op.build().module)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (rename(FuncOp, sym_name="main"), "two functions are called @main"),
        (rename(CallOp, callee="triple"), "calls @triple, which is not a function"),
        (rename(CallOp, callee="prepare"), "are not those of @prepare"),
        (call_itself, "@double calls itself"),
        (rename(PackedOp, name="w.other"), "'w.other' is not a result of a prepare function"),
        (retype(PackedOp), "is f32[8, 8] there and f32[5] here"),
        (retype(WeightOp), "the weight 'w' is f32[5] elsewhere and f32[8, 8] here"),
        (retype(StateReadOp), "the state 'memory' is f32[5] elsewhere and f32[8] here"),
        (packed_in_prepare, "may depend on weights alone"),
        (prepare_takes_an_argument, "@prepare takes arguments"),
        (second_prepare, "a second prepare function, @again"),
        (forget_dims, "names dims that the module does not declare: tokens"),
    ],
)
def test_a_spoiled_module_is_refused(spoil: Callable[[ModuleOp], None], says: str) -> None:
    module = every_op.build().module
    spoil(module)
    with pytest.raises(IRError) as caught:
        verify(module)
    assert says in str(caught.value)


def test_symbols_are_free_where_no_dims_are_declared() -> None:
    module = every_op.build().module
    del module.attributes["tw.dims"]
    verify(module)


def test_an_op_that_changed_since_the_last_time_is_checked_again() -> None:
    module = every_op.build().module
    checked: Checked = {}
    verify(module, checked)
    assert checked
    transpose = next(op for op in module.walk() if isinstance(op, TransposeOp))
    order = transpose.permutation
    transpose.properties["permutation"] = type(order)((7, *order.data[1:]))
    with pytest.raises(IRError, match="permutation"):
        verify(module, checked)
    transpose.properties["permutation"] = order
    verify(module, checked)


def test_a_new_operand_type_is_a_change_of_its_reader() -> None:
    module = every_op.build().module
    checked: Checked = {}
    verify(module, checked)
    reader = next(op for op in module.walk() if isinstance(op, TransposeOp))
    vector = WeightOp.make(name="vector", result_types=[TensorType.of([5], F32)])
    block = reader.parent
    assert block is not None
    block.insert_op_before(vector, reader)
    reader.operands[0] = vector.out
    with pytest.raises(IRError, match="permutation"):
        verify(module, checked)


def test_ops_that_did_not_change_are_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = every_op.build().module
    checked: Checked = {}
    verify(module, checked)
    seen: list[object] = []

    def note(op: TransposeOp) -> None:
        seen.append(op)

    monkeypatch.setattr(TransposeOp, "verify_", note)
    verify(module, checked)
    assert not seen
    verify(module)
    assert seen
