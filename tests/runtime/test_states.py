"""States: they live from call to call, calls take turns, resets and new weights, every refusal in full."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.programs import (
    ONE,
    Addresses,
    affine_program,
    affine_step,
    executable,
    memory,
    pool,
    signature,
    values,
)
from tilewright.errors import StateError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.signature import Output
from tilewright.runtime.executor import Executable
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program import Copy, Program, Ref, Routine, State, Step, TensorSpec, Variant


def stateful() -> Program:
    """total: y = total * scale + bias, and y becomes the new total; it starts from the weight bias. count: zeros."""
    total = Ref("state", 0)
    step = affine_step("step", total, Ref("weight", 0), Ref("weight", 1), Ref("output", 0), ONE)
    return affine_program(
        dims=(),
        signature=signature(outputs=(Output(F32, (ONE,), index=0),)),
        results=(TensorSpec("y", (ONE,), F32),),
        main=Routine((step,)),
        packed=(),
        prepare=(),
        states=(State(TensorSpec("total", (ONE,), F32), 1), State(TensorSpec("count", (ONE,), I64))),
        copies=(Copy(Ref("output", 0), total, Expr.of(4)),),
    )


def test_states_live_from_call_to_call(rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(stateful(), weights)
    total = weights["bias"]
    for _ in range(3):
        total = total * weights["scale"] + weights["bias"]
        np.testing.assert_array_equal(run(), total)
        np.testing.assert_array_equal(run.state["total"], total)
    run.reset()
    np.testing.assert_array_equal(run.state["total"], weights["bias"])
    run.state["total"] = torch.tensor([2.5])
    run.state["count"] = np.array([7])
    assert run() == np.float32(2.5) * weights["scale"] + weights["bias"]
    new = values(rng)
    run.update_weights(new)
    np.testing.assert_array_equal(run.state["total"], new["bias"])
    assert run.state["count"] == 7
    assert sorted(run.state) == ["count", "total"]


def python_kernel(kernel: Callable[[Any, Any, int, int], None]) -> Executable:
    """The stateful program with one step, in Python, that gets the buffers of both states."""
    step = Step("step", (Variant("step"),), (Ref("state", 0), Ref("state", 1)))
    program = replace(stateful(), main=Routine((step,)), kernels=(), copies=())
    addresses = Addresses(step=kernel)
    weights = {"scale": np.ones(1, np.float32), "bias": np.ones(1, np.float32)}
    return Executable(program, addresses, prepare_weights(program, addresses, pool(), weights), pool())


def test_calls_on_a_stateful_program_take_turns() -> None:
    def bump(buffers: Any, dims: Any, tid: int, threads: int) -> None:
        if tid == 0:
            count = memory(buffers[1], (1,), np.int64)
            seen = count[0]
            time.sleep(0.002)
            count[0] = seen + 1

    run = python_kernel(bump)
    threads = [threading.Thread(target=lambda: [run() for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.state["count"] == 20


def test_a_child_forked_during_a_call_can_call() -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait(buffers: Any, dims: Any, tid: int, threads: int) -> None:
        if tid == 0 and os.getpid() == parent:
            inside.set()
            leave.wait(60)

    parent = os.getpid()
    run = python_kernel(wait)
    caller = threading.Thread(target=run)
    caller.start()
    assert inside.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        run()
        os._exit(0 if run.state["count"] == 0 else 1)
    leave.set()
    caller.join()
    assert os.waitpid(child, 0)[1] == 0


def test_state_errors_in_full(rng: np.random.Generator) -> None:
    state = executable(stateful(), values(rng)).state
    with pytest.raises(StateError) as raised:
        state["totals"]
    assert str(raised.value) == (
        "TW045 state does not fit: there is no state 'totals'; the program has total, count\n"
        "  next: did you mean 'total'?"
    )
    with pytest.raises(StateError) as raised:
        state["x"] = 1
    assert str(raised.value) == (
        "TW045 state does not fit: there is no state 'x'; the program has total, count\n  next: use one of these names"
    )
    with pytest.raises(StateError) as raised:
        state["total"] = np.zeros(2, np.float32)
    assert str(raised.value) == (
        "TW045 state does not fit: total is float32 [1], not float32 [2]\n  next: set it to a tensor of float32 [1]"
    )
    with pytest.raises(StateError) as raised:
        state["total"] = [1.0]
    assert str(raised.value) == (
        "TW045 state does not fit: total is float32 [1], not a list\n  next: set it to an array or a tensor"
    )
    with pytest.raises(StateError) as raised:
        del state["total"]
    assert str(raised.value) == (
        "TW045 state does not fit: total belongs to the program and cannot be deleted\n"
        "  next: reset() gives its first value"
    )


def test_rows_are_put_and_cleared_where_they_are(rng: np.random.Generator) -> None:
    state = executable(stateful(), values(rng)).state
    state["count"] = np.array([5])
    state.clear_rows("count", 0, 1)
    assert state["count"] == 0
    for wrong, said in (
        (lambda: state.put_page("count", 0, np.array([[5]])), r"count has pages of int64 \[\]"),
        (lambda: state.clear_rows("count", 0, 2), "count has 1 rows, not 2"),
    ):
        with pytest.raises(StateError, match=said):
            wrong()
