"""Arguments of a call: what is accepted, and every refusal in full, all problems of a kind in one error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.programs import DIMS, B, T, affine_program, signature, tensor_argument
from tilewright.errors import (
    ArgumentError,
    AutogradError,
    DeviceError,
    DimMismatchError,
    DimRangeError,
    DTypeError,
    RankError,
    TilewrightError,
)
from tilewright.ir.dims import Dim, Expr, floordiv
from tilewright.ir.dtypes import F32, I32, I64
from tilewright.ir.guards import Guard
from tilewright.ir.signature import Argument, Input, Parameter, Signature
from tilewright.ir.trees import LEAF, Tree
from tilewright.runtime.binding import Binder
from tilewright.runtime.program import Program, ReadDim, Routine

HIDDEN = Expr.of(3)


def program(*arguments: Argument, **changes: Any) -> Program:
    """A program that only has arguments."""
    changes = {"main": Routine(), "results": (), "weights": (), "packed": (), "prepare": (), **changes}
    if arguments:
        changes["signature"] = signature(*arguments, outputs=(), output=Tree("tuple"))
    return affine_program(**changes)


def two_inputs(**changes: Any) -> Program:
    """ids i64 [batch, tokens], x f32 [batch, tokens, 3]; batch 0..64, tokens 0..256."""
    return program(tensor_argument("ids", (B, T), I64), tensor_argument("x", (B, T, HIDDEN)), **changes)


def ids(batch: int = 2, tokens: int = 5) -> np.ndarray[Any, Any]:
    return np.zeros((batch, tokens), np.int64)


def x(batch: int = 2, tokens: int = 5, hidden: int = 3) -> np.ndarray[Any, Any]:
    return np.zeros((batch, tokens, hidden), np.float32)


def refused(kind: type[TilewrightError], program: Program, *args: Any, **kwargs: Any) -> str:
    """The message of the refusal, which is the same when a call like it has succeeded before."""
    with pytest.raises(TilewrightError) as raised:
        Binder(program).bind(args, kwargs)
    assert type(raised.value) is kind, raised.value
    return str(raised.value)


def test_dims_and_addresses_come_from_the_arguments() -> None:
    binder = Binder(two_inputs())
    a, b = ids(4, 7), x(4, 7)
    for bound in (binder.bind((a, b), {}), binder.bind((a,), {"x": b}), binder.bind((), {"x": b, "ids": a})):
        assert bound.values == (4, 7)
        assert bound.addresses == [a.ctypes.data, b.ctypes.data]
        assert not bound.torch
    mixed = binder.bind((torch.from_numpy(a), b), {})
    assert mixed.torch
    assert mixed.addresses == [a.ctypes.data, b.ctypes.data]


def test_many_shapes_in_any_order_are_told_apart(rng: np.random.Generator) -> None:
    binder = Binder(two_inputs())
    for _ in range(300):
        batch, tokens = (int(n) for n in rng.integers(0, 9, 2))
        torch_call = bool(rng.integers(2))
        args: tuple[Any, Any] = (ids(batch, tokens), x(batch, tokens))
        if torch_call:
            args = (torch.from_numpy(args[0]), torch.from_numpy(args[1]))
        bound = binder.bind(args, {})
        assert bound.values == (batch, tokens)
        assert bound.torch == torch_call


def test_a_missing_argument() -> None:
    assert refused(ArgumentError, two_inputs(), ids()) == (
        "TW001 arguments do not match the signature: x is missing\n  next: call it as (ids, x)"
    )


def test_an_extra_argument() -> None:
    assert refused(ArgumentError, two_inputs(), ids(), x(), 1) == (
        "TW001 arguments do not match the signature: 3 positional arguments are given, it takes 2\n"
        "  next: call it as (ids, x)"
    )


def test_a_misnamed_argument() -> None:
    assert refused(ArgumentError, two_inputs(), ids(), y=x()) == (
        "TW001 arguments do not match the signature: 2 problems\n  - y is not a parameter\n  - x is missing\n"
        "  next: call it as (ids, x)"
    )
    assert refused(ArgumentError, two_inputs(), ids(), x(), ids=ids()) == (
        "TW001 arguments do not match the signature: ids is given twice\n  next: call it as (ids, x)"
    )


def test_things_that_are_no_tensors() -> None:
    assert refused(ArgumentError, two_inputs(), [[1]], {"a": 1}) == (
        "TW001 arguments do not match the signature: 2 problems\n"
        "  - ids is a list, compiled for a tensor\n"
        "  - x is a dict, compiled for a tensor\n"
        "  next: pass torch tensors or NumPy arrays"
    )
    assert refused(ArgumentError, two_inputs(), None, 3) == (
        "TW001 arguments do not match the signature: 2 problems\n"
        "  - ids is None, compiled for a tensor\n"
        "  - x is 3, compiled for a tensor\n"
        "  next: pass torch tensors or NumPy arrays"
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_dense_memory() -> None:
    from torch._subclasses import FakeTensorMode

    sparse = torch.zeros(2, 5, 3).to_sparse()
    with FakeTensorMode():
        fake = torch.zeros(2, 5, dtype=torch.int64)
    binder = Binder(two_inputs())
    ids = torch.zeros(2, 5, dtype=torch.int64)
    binder.bind((ids, torch.zeros(2, 5, 3)), {})
    with pytest.raises(ArgumentError, match="ids is a FakeTensor"):
        binder.bind((fake, torch.zeros(2, 5, 3)), {})
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.zeros(5, 3), torch.zeros(4, 3)], layout=layout)
        with pytest.raises(ArgumentError, match=r"x is a (Nested)?Tensor without memory that kernels can read"):
            binder.bind((ids, nested), {})
    with pytest.raises(ArgumentError) as raised:
        binder.bind((fake, sparse), {})
    assert str(raised.value) == (
        "TW001 arguments do not match the signature: 2 problems\n"
        "  - ids is a FakeTensor without memory that kernels can read\n"
        "  - x is a Tensor without memory that kernels can read\n"
        "  next: pass dense tensors that hold data, outside torch.func's transforms (vmap, ...)"
    )


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_what_torch_transforms_has_no_memory(known: bool, turned: bool) -> None:
    ids, x = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, 3)
    x = x.mT.contiguous().mT if turned else x
    binder = Binder(two_inputs())
    if known:
        binder.bind((ids, x), {})

    def bound(x: torch.Tensor) -> torch.Tensor:
        binder.bind((ids, x), {})
        return x

    for call in (lambda: torch.func.vmap(bound)(x[None]), lambda: torch.func.functionalize(bound)(x)):
        with pytest.raises(ArgumentError, match="x is a Tensor without memory"):
            call()
    binder.bind((torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 3)), {})


def test_wrong_dtypes() -> None:
    assert refused(DTypeError, two_inputs(), ids().astype(np.uint32), torch.zeros(2, 5, 3).double()) == (
        "TW002 wrong dtype: 2 problems\n"
        "  - ids is uint32, compiled for int64\n"
        "  - x is float64, compiled for float32\n"
        "  next: convert: ids.astype('int64'), x.to(torch.float32)"
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_are_told_to_become_numbers_first() -> None:
    quantized = torch.quantize_per_tensor(torch.zeros(2, 5, 3), 0.1, 0, torch.quint8)
    said = refused(DTypeError, two_inputs(), ids(), quantized)
    assert said.endswith("next: convert: x.dequantize().to(torch.float32)")


def test_wrong_ranks() -> None:
    assert refused(RankError, two_inputs(), np.int64(3), x()[0]) == (
        "TW003 wrong rank: 2 problems\n"
        "  - ids has 0 axes [], compiled for 2 axes [batch, tokens]\n"
        "  - x has 2 axes [5, 3], compiled for 3 axes [batch, tokens, 3]\n"
        "  next: pass the shapes of the example, or compile again with an example of this rank"
    )


def test_another_device() -> None:
    assert refused(DeviceError, two_inputs(), torch.zeros(2, 5, dtype=torch.int64, device="meta"), x()) == (
        "TW007 tensor is on another device: ids is on meta, compiled for cpu\n  next: pass tensors that hold data"
    )


def test_a_tensor_of_another_machine_is_to_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.runtime import binding_errors

    real = binding_errors.describe
    monkeypatch.setattr(binding_errors, "describe", lambda value: replace(real(value), device="npu:0"))
    with pytest.raises(DeviceError) as raised:
        binding_errors.check_tensors(two_inputs().signature.tensors, [ids(), x()])
    assert raised.value.step == "move it: ids.cpu(), x.cpu()"


def test_undeclared_axes_give_the_dims_line_that_declares_them() -> None:
    assert refused(DimMismatchError, two_inputs(), ids(), x(hidden=4)) == (
        "TW005 dim does not match what was compiled: "
        "x axis 2 has size 4, compiled for 3 (it is not declared in dims)\n"
        "  next: pass the size compiled for, or, if the model itself takes others, "
        'compile with dims={"ids": {0: tw.Dim("batch", 0, 64), 1: tw.Dim("tokens", 0, 256)}, '
        '"x": {0: tw.Dim("batch", 0, 64), 1: tw.Dim("tokens", 0, 256), 2: tw.Dim("x_2", 3, 4)}}'
    )


def test_axes_that_share_a_dim_must_be_equal() -> None:
    assert refused(DimMismatchError, two_inputs(), ids(2, 5), x(3, 6)) == (
        "TW005 dim does not match what was compiled: 2 problems\n"
        "  - x axis 0 has size 3, but batch is 2 (ids axis 0)\n"
        "  - x axis 1 has size 6, but tokens is 5 (ids axis 1)\n"
        "  next: axes that share a dim must be equal: pass equal sizes, or compile with a tw.Dim of its own for each"
    )


def test_dims_out_of_range_give_the_dims_line_that_admits_them() -> None:
    said = refused(DimRangeError, two_inputs(), ids(65, 300), x(65, 300))
    line = (
        'dims={"ids": {0: tw.Dim("batch", 0, 65), 1: tw.Dim("tokens", 0, 300)}, '
        '"x": {0: tw.Dim("batch", 0, 65), 1: tw.Dim("tokens", 0, 300)}}'
    )
    assert said == (
        "TW004 dim out of its declared range: 2 problems\n"
        "  - batch = 65 is outside 0..64 (ids axis 0)\n"
        "  - tokens = 300 is outside 0..256 (ids axis 1)\n"
        f"  next: compile with {line}"
    )
    declared = eval(line.removeprefix("dims="), {"tw": __import__("tilewright.ir.dims", fromlist=["Dim"])})
    batch, tokens = declared["ids"][0], declared["ids"][1]
    Binder(two_inputs(dims=(batch, tokens))).bind((ids(65, 300), x(65, 300)), {})


def test_below_the_range_and_without_an_upper_bound() -> None:
    dims = (Dim("batch", 2), Dim("tokens", 1, 4))
    assert refused(DimRangeError, two_inputs(dims=dims), ids(1, 3), x(1, 3)) == (
        "TW004 dim out of its declared range: batch = 1 is outside 2 and up (ids axis 0)\n"
        '  next: compile with dims={"ids": {0: tw.Dim("batch", 1), 1: tw.Dim("tokens", 1, 4)}, '
        '"x": {0: tw.Dim("batch", 1), 1: tw.Dim("tokens", 1, 4)}}'
    )


def test_the_dims_line_follows_nested_arguments() -> None:
    tree = Tree("dict", ("mask", "more"), (LEAF, Tree("tuple", (), (LEAF,))))
    inputs = (Input("batch.mask", F32, (T,)), Input("batch.more.0", F32, (Expr.of(4), T)))
    nested = program(Argument("batch", tree, inputs), tensor_argument("flat", (HIDDEN,)), dims=DIMS[1:])
    long = {"mask": np.zeros(257, np.float32), "more": (np.zeros((4, 257), np.float32),)}
    assert refused(DimRangeError, nested, long, np.zeros(3, np.float32)) == (
        "TW004 dim out of its declared range: tokens = 257 is outside 0..256 (batch.mask axis 0)\n"
        '  next: compile with dims={"batch": {"mask": {0: tw.Dim("tokens", 0, 257)}, '
        '"more": ({1: tw.Dim("tokens", 0, 257)},)}}'
    )
    bound = Binder(nested).bind(
        ({"more": (np.zeros((4, 9), np.float32),), "mask": np.zeros(9, np.float32)},), {"flat": np.zeros(3, np.float32)}
    )
    assert bound.values == (9,)


def test_sizes_that_follow_from_others() -> None:
    derived = program(
        tensor_argument("ids", (B,), I64), tensor_argument("x", (T * 2 + 1,)), tensor_argument("m", (B + T,))
    )
    f32, i64 = np.float32, np.int64
    bound = Binder(derived).bind((np.zeros(3, i64), np.zeros(9, f32), np.zeros(7, f32)), {})
    assert bound.values == (3, 4)
    assert refused(DimMismatchError, derived, np.zeros(3, i64), np.zeros(9, f32), np.zeros(8, f32)) == (
        "TW005 dim does not match what was compiled: "
        "m axis 0 has size 8, but batch + tokens is 7 (batch = 3, tokens = 4)\n"
        "  next: axes that share a dim must be equal: pass equal sizes, or compile with a tw.Dim of its own for each"
    )
    only = program(tensor_argument("x", (T * 2 + 1,)), dims=DIMS[1:])
    assert refused(DimMismatchError, only, np.zeros(8, f32)) == (
        "TW005 dim does not match what was compiled: x axis 0 has size 8, which is not 2*tokens + 1 for any size\n"
        "  next: axes that share a dim must be equal: pass equal sizes, or compile with a tw.Dim of its own for each"
    )


def test_guards_hold_at_entry() -> None:
    guarded = two_inputs(guards=(Guard(B * T, "<=", Expr.of(10), "model.py:10"), Guard(T % 5, "==", Expr.of(0))))
    Binder(guarded).bind((ids(2, 5), x(2, 5)), {})
    assert refused(DimMismatchError, guarded, ids(2, 6), x(2, 6)) == (
        "TW005 dim does not match what was compiled: 2 problems\n"
        "  - batch*tokens <= 10 does not hold for batch = 2, tokens = 6; decided at model.py:10\n"
        "  - mod(tokens, 5) == 0 does not hold for tokens = 6\n"
        "  next: pass sizes for which it holds, or compile an example of these sizes with "
        'dims={"ids": {0: tw.Dim("batch", 2, 2), 1: tw.Dim("tokens", 6, 6)}, '
        '"x": {0: tw.Dim("batch", 2, 2), 1: tw.Dim("tokens", 6, 6)}}'
    )


@pytest.mark.parametrize("relation", ["==", "!=", "<=", "<", ">=", ">"])
def test_guards_mean_what_python_means(relation: Any, rng: np.random.Generator) -> None:
    guard = Guard(B, relation, T)
    for _ in range(50):
        b, t = (int(n) for n in rng.integers(0, 4, 2))
        assert guard.holds({"batch": b, "tokens": t}) == eval(f"{b} {relation} {t}")


def test_a_guard_that_divides_by_zero_does_not_hold() -> None:
    guard = Guard(floordiv(Expr.of(12), B), "==", Expr.of(3))
    assert [b for b in range(6) if guard.holds({"batch": b})] == [4]
    guarded = two_inputs(guards=(guard,))
    text = refused(DimMismatchError, guarded, ids(0, 6), x(0, 6))
    assert "floordiv(12, batch) == 3 does not hold for batch = 0" in text


def reading() -> Program:
    """start is element 1 of at i32 [2], 0..9; mask f32 [start + tokens]."""
    return program(
        tensor_argument("at", (Expr.of(2),), I32),
        tensor_argument("mask", (Expr.of("start") + T,)),
        dims=(DIMS[1], Dim("start", 0, 9, "read")),
        reads=(ReadDim("start", 0, 1),),
    )


def test_read_dims_are_read_at_every_call() -> None:
    binder = Binder(reading())
    mask = np.zeros(12, np.float32)
    for start in (3, 9, 0, 3):
        at = np.array([77, start], np.int32)
        for given in (at, torch.from_numpy(at), np.array([[77, 0], [start, 0]], np.int32)[:, 0]):
            assert binder.bind((given, mask), {}).values == (12 - start, start)


def test_read_dims_out_of_range_or_not_there() -> None:
    mask = np.zeros(12, np.float32)
    assert refused(DimRangeError, reading(), np.array([0, 10], np.int32), mask) == (
        "TW004 dim out of its declared range: start = 10 is outside 0..9 (read from at)\n"
        "  next: pass values in this range"
    )
    with pytest.raises(DimRangeError, match=r"tokens = -1 is outside 0\.\.256"):
        Binder(reading()).bind((np.array([0, 9], np.int32), np.zeros(8, np.float32)), {})
    short = program(
        tensor_argument("at", (T,), I64), dims=(DIMS[1], Dim("n", 0, 9, "read")), reads=(ReadDim("n", 0, 2),)
    )
    assert refused(DimMismatchError, short, np.zeros(2, np.int64)) == (
        "TW005 dim does not match what was compiled: n is element 2 of at, which has 2 elements\n"
        "  next: pass the inputs that sizes are read from with at least that many elements"
    )


def test_autograd() -> None:
    binder = Binder(two_inputs())
    a, b = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, 3, requires_grad=True)
    with torch.no_grad():
        binder.bind((a, b), {})
    with torch.inference_mode():
        binder.bind((a, b), {})
    for _ in range(2):  # also once its shapes are known
        with pytest.raises(AutogradError) as raised:
            binder.bind((a, b), {})
        assert str(raised.value) == (
            "TW015 autograd through a compiled call: "
            "x requires grad, and grad mode is on; a compiled program computes no gradients\n"
            "  next: call it under torch.no_grad(), or pass x.detach()"
        )
    binder.bind((a, b.detach()), {})


def mutating() -> Program:
    arguments = (tensor_argument("cache", (T,), mutated=True), tensor_argument("x", (B,)))
    written = signature(*arguments, outputs=(), output=Tree("tuple"), mutations=(("cache", 0),))
    return program(signature=written, results=(affine_program().results[0],))


def test_inputs_that_the_model_writes_to() -> None:
    binder = Binder(mutating())
    whole = np.zeros(20, np.float32)
    binder.bind((whole[:10], whole[10:]), {})
    binder.bind((whole[9::-1], whole[10:]), {})
    frozen = whole[:10].copy()
    frozen.flags.writeable = False
    assert refused(ArgumentError, mutating(), frozen, whole) == (
        "TW001 arguments do not match the signature: cache is read-only, but the model writes to it\n"
        "  next: pass a writeable copy"
    )
    for folded in (torch.zeros(1).expand(10), np.broadcast_to(np.zeros(1, np.float32), 10).view()):
        if isinstance(folded, np.ndarray):
            folded.flags.writeable = True
        assert refused(ArgumentError, mutating(), folded, whole) == (
            "TW001 arguments do not match the signature: "
            "cache, which the model writes to, has elements that share memory (expanded)\n"
            "  next: pass a copy: cache.clone()"
        )
    for a, b in (
        (whole[:11], whole[10:]),
        (whole[9::-1], whole[9:]),
        (torch.from_numpy(whole)[::2], torch.from_numpy(whole)[4:5]),
    ):
        assert refused(ArgumentError, mutating(), a, b) == (
            "TW001 arguments do not match the signature: cache, which the model writes to, shares memory with x\n"
            "  next: pass a copy: the program was compiled for separate tensors"
        )


def test_constants_must_be_those_of_the_capture() -> None:
    fixed = Signature(
        parameters=(Parameter("x"), Parameter("scale", "either", True, 2.0), Parameter("mode", "keyword", True, None)),
        arguments=(
            tensor_argument("x", (T,)),
            Argument("scale", LEAF, (Input("scale", constant=2.0),)),
            Argument("mode", LEAF, (Input("mode", constant="fast"),)),
        ),
        output=Tree("tuple"),
        outputs=(),
    )
    constant = program(signature=fixed, dims=DIMS[1:])
    tensor = np.zeros(4, np.float32)
    for args, kwargs in (((tensor, 2.0), {"mode": "fast"}), ((tensor,), {"mode": "".join(("fa", "st")), "scale": 2.0})):
        assert Binder(constant).bind(args, kwargs).values == (4,)
    assert refused(ArgumentError, constant, tensor, 3.0, mode="slow") == (
        "TW001 arguments do not match the signature: 2 problems\n"
        "  - scale is 3.0, compiled for 2.0\n"
        "  - mode is 'slow', compiled for 'fast'\n"
        "  next: call it as compiled: (x, scale=2.0, *, mode='fast')"
    )
