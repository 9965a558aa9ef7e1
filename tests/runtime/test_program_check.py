"""Every rule that a program must keep, broken once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.runtime.programs import DIMS, ONE, B, T, affine_program, signature, tensor_argument
from tilewright.errors import IRError
from tilewright.ir.dims import Dim, Expr
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.guards import Guard
from tilewright.ir.signature import Output
from tilewright.runtime.program import (
    Copy,
    HostCall,
    ReadDim,
    Ref,
    Routine,
    Slot,
    State,
    TensorSpec,
    Variant,
)
from tilewright.runtime.program_check import check_program

N = Expr.of("nowhere")
MAIN = affine_program().main
STEP = MAIN.steps[0]
PREPARE = affine_program().prepare[0]
SCALE = TensorSpec("scale", (ONE,), F32)
X = tensor_argument("x", (B, T))
Y = Output(F32, (B, T), index=0)


def stepped(**changes: Any) -> dict[str, Any]:
    return {"main": replace(MAIN, steps=(replace(STEP, **changes), MAIN.steps[1]))}


def prepared(**changes: Any) -> dict[str, Any]:
    return {"prepare": (Routine((replace(PREPARE.steps[0], **changes),)),)}


HOST = HostCall("f", "{}", (SCALE,), ())
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"dims": (*DIMS, DIMS[0])}, "two dims share a name"),
    ({"dims": (*DIMS, Dim("more"))}, "dim more stands on no input's axis, so no call gives it a value"),
    ({"dims": (*DIMS, Dim("n", 0, None, "runtime"))}, "run-time dim n has no upper bound, so no buffer can be sized"),
    ({"dims": (*DIMS, Dim("n", 0, 9, "read"))}, "the read dims are not those that `reads` lists"),
    ({"reads": (ReadDim("n", 0),)}, "the read dims are not those that `reads` lists"),
    (
        {"dims": (*DIMS, Dim("n", 0, 9, "read")), "reads": (ReadDim("n", 1),)},
        "n is read from input 1, element 0: there is none",
    ),
    (
        {"dims": (*DIMS, Dim("n", 0, 9, "read")), "reads": (ReadDim("n", 0),)},
        "n is read from x, which holds no integers",
    ),
    ({"signature": signature(tensor_argument("x", (B, T, N)), outputs=(Y,))}, "input x uses unknown"),
    ({"results": (TensorSpec("y", (N,), F32),)}, "result y uses unknown dims nowhere"),
    (
        {"packed": (TensorSpec("power", (T,), F32),)},
        "power: f32 [tokens]: weights, packed tensors and states have static",
    ),
    ({"weights": (SCALE, SCALE)}, "two weights are called 'scale'"),
    ({"packed": (SCALE, SCALE)}, "no routine of prepare touches packed tensor scale"),
    ({"states": (State(SCALE), State(SCALE))}, "two states are called 'scale'"),
    ({"states": (State(SCALE, 2),)}, "state scale starts from weight 2: there is none"),
    ({"transient": ("scale", "other")}, "other is transient, but no weight"),
    ({"guards": (Guard(N, "<=", B),)}, "guard nowhere <= batch uses unknown dims nowhere"),
    (
        {"signature": signature(X, outputs=(Y,), mutations=(("z", 0),))},
        "result 0 is to be written back to input z: one of",
    ),
    (
        {"signature": signature(X, outputs=(Y,), mutations=(("x", 1),))},
        "result 1 is to be written back to input x: one of",
    ),
    ({"signature": signature(X, outputs=(replace(Y, index=1),))}, "the output holds result 1; there are 1"),
    ({"signature": signature(X, outputs=(Output(size=N),))}, "an output uses unknown dims nowhere"),
    ({"main": replace(MAIN, slots=(Slot((N,)),))}, "main: slot 0 uses unknown dims nowhere"),
    (stepped(variants=()), "first: main: a step has either variants or a host call"),
    (stepped(host=HOST), "first: main: a step has either variants or a host call"),
    (stepped(host=HOST, variants=()), "first: main: its host call names 1 tensors for 4 buffers"),
    (stepped(dims=()), "first: main: 1 formal dims but 0 values"),
    (stepped(variants=(Variant("a", 3),)), "first: main: exactly the last variant must have no limit"),
    (stepped(variants=(Variant("a"), Variant("b"))), "first: main: exactly the last variant must have no limit"),
    (
        stepped(variants=(Variant("a", 3), Variant("b", 3), Variant("c"))),
        "first: main: the variants' limits [3, 3, None] do not increase",
    ),
    (stepped(guard=B), "first: main: its guard uses batch, which are no formal dims of it"),
    (stepped(dims=(N,)), "first: main: unknown dims nowhere"),
    (stepped(buffers=(Ref("slot", 1),)), "first: main: buffer slot 1: there are 1"),
    (stepped(buffers=(Ref("weight", -1),)), "first: main: buffer weight -1: there are 2"),
    (stepped(buffers=(Ref("moon", 0),)), "first: main: there is no space 'moon'"),  # type: ignore[arg-type]
    (stepped(buffers=(Ref("slot", 0, N),)), "first: main: unknown dims nowhere in a buffer's offset"),
    (stepped(written=5), "first: main: writes 5 of 4 buffers"),
    (stepped(written=-1), "first: main: writes -1 of 4 buffers"),
    (stepped(written=2), "first: main: writes weight 1"),
    (stepped(buffers=(Ref("slot", 0), Ref("slot", 0)), written=1), "first: main: writes slot 0 while it reads it"),
    (stepped(written=1, barrier_after=False), "second: main: touches slot 0 before a barrier"),
    (prepared(buffers=(Ref("input", 0), Ref("packed", 0))), "square: prepare 0 touches the space 'input'"),
    (prepared(dims=(T,)), "square: prepare 0: unknown dims tokens"),
    (prepared(variants=(), host=replace(HOST, inputs=(SCALE,) * 4)), "square: prepare 0 calls the host"),
    ({"copies": (Copy(Ref("input", 1), Ref("output", 0), B),)}, "buffer input 1: there are 1"),
    ({"copies": (Copy(Ref("input", 0), Ref("output", 0), N),)}, "a copy uses unknown dims nowhere"),
]


@pytest.mark.parametrize(("changes", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_a_broken_program_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(IRError) as raised:
        check_program(affine_program(**changes))
    assert any(said in str(problem) for problem in raised.value.problems), raised.value


def test_all_problems_come_at_once_with_their_places() -> None:
    with pytest.raises(IRError) as raised:
        check_program(affine_program(**stepped(dims=(), guard=B)))
    assert str(raised.value) == (
        "TW020 malformed IR: 2 problems\n"
        "  - first: main: 1 formal dims but 0 values  (at model.py:12)\n"
        "  - first: main: its guard uses batch, which are no formal dims of it  (at model.py:12)\n"
        "  next: this is a fault of whoever built the program: report it with the lines above"
    )


def test_whole_programs_pass() -> None:
    check_program(affine_program())
    n = Dim("n", 0, 9, "read")
    at = tensor_argument("at", (B + Expr.of("n"),), I64)
    check_program(
        affine_program(dims=(*DIMS, n), signature=signature(X, at, outputs=(Y,)), reads=(ReadDim("n", 1, 0),))
    )
