"""Calling a program: right numbers for numpy and torch, any dims, many threads, forks; states, copies, host steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.runtime.programs import (
    DIMS,
    ONE,
    SMALL,
    Addresses,
    B,
    T,
    affine,
    affine_program,
    code,
    executable,
    memory,
    pool,
    signature,
    tensor_argument,
    values,
)
from tilewright.errors import CapacityError, DimRangeError, OptionError, TargetError, WeightsError
from tilewright.ir.dims import Dim, Expr
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.signature import Output
from tilewright.ir.trees import LEAF, Tree
from tilewright.runtime.executor import Executable
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program import (
    Copy,
    HostCall,
    Program,
    Ref,
    Routine,
    Slot,
    Step,
    TensorSpec,
    Variant,
)


@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (1, 17), (3, 7), (64, 256), (0, 5), (5, 0), (0, 0)])
def test_a_call_computes_what_the_model_computes(shape: tuple[int, int], rng: np.random.Generator) -> None:
    weights = values(rng)
    x = rng.standard_normal(shape, np.float32)
    y = executable(affine_program(), weights)(x)
    assert type(y) is np.ndarray
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, affine(x, weights))


def test_torch_in_is_torch_out_and_numpy_in_is_numpy_out(rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(affine_program(), {name: torch.from_numpy(w) for name, w in weights.items()})
    x = rng.standard_normal((3, 5), np.float32)
    y = run(torch.from_numpy(x))
    assert type(y) is torch.Tensor
    np.testing.assert_array_equal(y.numpy(), affine(x, weights))
    assert type(run(x=x)) is np.ndarray


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "big-endian", "misaligned", "subclass"])
def test_inputs_that_are_not_dense_are_copied(layout: str, rng: np.random.Generator) -> None:
    weights = values(rng)
    plain = rng.standard_normal((5, 7), np.float32)
    x: NDArray[Any]
    match layout:
        case "transposed":
            x = np.ascontiguousarray(plain.T).T
        case "strided":
            x = np.repeat(plain, 2, axis=1)[:, ::2]
        case "reversed":
            x = np.ascontiguousarray(plain[::-1])[::-1]
        case "big-endian":
            x = plain.astype(">f4")
        case "misaligned":
            x = np.frombuffer(b"-" + plain.tobytes(), np.uint8)[1:].view(np.float32).reshape(5, 7)
            assert not x.flags.aligned
        case _:
            x = plain.view(np.memmap)
    run = executable(affine_program(), weights)
    for _ in range(2):  # checked in full, then remembered
        np.testing.assert_array_equal(run(x), affine(plain, weights))


def test_torch_tensors_that_are_not_dense_are_copied(rng: np.random.Generator) -> None:
    weights = values(rng)
    plain = rng.standard_normal((5, 7), np.float32)
    run = executable(affine_program(), weights)
    dense = torch.from_numpy(plain)
    negated = torch.complex(torch.zeros(5, 7), -dense).conj().imag
    densely_negated = torch._neg_view(-dense)
    assert negated.is_neg()
    assert densely_negated.is_neg()
    assert densely_negated.is_contiguous()
    for x in (dense, dense.T.clone().T, dense[:1].expand(5, 7), negated, densely_negated):
        for _ in range(2):
            np.testing.assert_array_equal(run(x).numpy(), affine(x.resolve_neg().numpy(), weights))


def test_outputs_are_fresh_memory_on_cache_lines(rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(affine_program(), weights)
    x = rng.standard_normal((3, 5), np.float32)
    first, second = run(x), run(x)
    assert not np.shares_memory(first, second)
    assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0
    first[:] = 0
    np.testing.assert_array_equal(second, affine(x, weights))


def test_the_variant_follows_the_dims(rng: np.random.Generator) -> None:
    run = executable(affine_program(), values(rng))
    for shape, symbol in (((1, SMALL), "affine_small"), ((1, SMALL + 1), "affine"), ((0, 9), "affine_small")):
        _, profile = run.profile(np.zeros(shape, np.float32))
        assert [step.symbol for step in profile.steps] == [symbol, symbol]


def test_a_profile_times_every_step(rng: np.random.Generator) -> None:
    def sleepy(buffers: Any, dims: Any, tid: int, threads: int) -> None:
        time.sleep(0.01 * dims[0])

    step = Step("nap", (Variant("nap"),), (), ("n",), (Expr.of(1),))
    longer = replace(step, name="long nap", dims=(Expr.of(3),))
    program = affine_program(main=Routine((step, longer)), prepare=(), packed=(), weights=(), kernels=())
    naps = Addresses(nap=sleepy)
    run = Executable(program, naps, prepare_weights(program, naps, pool(), {}), pool())
    for _ in range(20):
        _, profile = run.profile(np.zeros((2, 2), np.float32))
        short, long = profile.steps
        assert [short.name, long.name] == ["nap", "long nap"]
        assert short.seconds >= 0.01
        assert long.seconds >= 0.03
        assert short.start == 0
        assert long.start >= short.seconds
        assert profile.seconds >= long.start + long.seconds
        # other processes may take a core away in any step of a try
        if short.seconds < long.seconds and long.busy >= long.seconds * profile.threads * 0.9:
            return
    pytest.fail(f"{short}, {long}")


def test_many_threads_call_one_object(rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(affine_program(), weights)
    inputs = [rng.standard_normal((n % 9, 3 * n % 31), np.float32) for n in range(40)]
    wrong: list[int] = []

    def caller(turn: int) -> None:
        for index in range(40):
            x = inputs[(index * 7 + turn) % 40]
            if not np.array_equal(run(x), affine(x, weights)):
                wrong.append(index)

    threads = [threading.Thread(target=caller, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_dims_than_plans_are_kept(rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(affine_program(), weights)
    for tokens in [*range(200), 0, 199]:
        x = rng.standard_normal((1, tokens), np.float32)
        np.testing.assert_array_equal(run(x), affine(x, weights))


def test_a_forked_child_answers(rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(affine_program(), weights)
    x = rng.standard_normal((64, 256), np.float32)
    expected = affine(x, weights)
    run(x)
    busy = True

    def caller() -> None:
        while busy:
            run(x)

    thread = threading.Thread(target=caller)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if all(np.array_equal(run(x), expected) for _ in range(3)) else 1)
            assert os.waitpid(child, 0)[1] == 0
            np.testing.assert_array_equal(run(x), expected)
    finally:
        busy = False
        thread.join()


def test_memory_limit_is_kept_with_the_buffers_in_the_message(rng: np.random.Generator) -> None:
    run = executable(affine_program(), values(rng), memory_limit=2000)
    run(np.zeros((1, 64), np.float32))
    with pytest.raises(CapacityError) as raised:
        run(np.zeros((4, 256), np.float32))
    assert str(raised.value) == (
        "TW028 does not fit in memory: one call at batch=4, tokens=256 needs 8.0 KiB\n"
        "weights        12 B  3 tensors\n"
        "scratch     4.0 KiB  1 slots\n"
        "results     4.0 KiB  1 tensors\n"
        "  result y                    4.0 KiB  4*batch*tokens\n"
        "  slot 0                      4.0 KiB  4*batch*tokens\n"
        "  packed:power                    4 B  4\n"
        "  weight:bias                     4 B  4\n"
        "  weight:scale                    4 B  4\n"
        "  but memory_limit is 2.0 KiB\n"
        "  next: call it with smaller dims, or give compile() or tw.load() memory_limit=8204"
    )
    assert run.footprint({"batch": 4, "tokens": 256}).total == 8204
    with pytest.raises(CapacityError, match="weights and states are 12 B, and memory_limit is 11 B: no call could run"):
        executable(affine_program(), values(rng), memory_limit=11)
    executable(affine_program(), values(rng), memory_limit=8204)(np.zeros((4, 256), np.float32))


def test_footprint_wants_every_dim(rng: np.random.Generator) -> None:
    with pytest.raises(OptionError) as raised:
        executable(affine_program(), values(rng)).footprint({"batch": 4, "token": 3})
    assert str(raised.value) == (
        "TW008 wrong option: 2 problems\n  - the program has no dim 'token'; did you mean 'tokens'?\n"
        "  - tokens has no value\n  next: give batch=4, tokens=256"
    )


def test_sizes_beyond_any_memory_are_a_coded_error(rng: np.random.Generator) -> None:
    big = Expr.of(1 << 50)
    main = affine_program().main
    for slot in (Slot((big * T,)), Slot((big * big * T,))):
        program = affine_program(main=replace(main, slots=(slot,)))
        with pytest.raises(CapacityError, match="scratch memory"):
            executable(program, values(rng))(np.zeros((1, 3), np.float32))
    program = affine_program(results=(TensorSpec("y", (big, T), F32),))
    for x in (np.zeros((1, 3), np.float32), torch.zeros(1, 3)):
        with pytest.raises(CapacityError, match=r"no memory for a tensor of f32 \[1125899906842624, 3\]"):
            executable(program, values(rng))(x)


def test_options_are_checked(rng: np.random.Generator) -> None:
    weights = values(rng)
    for options, said in (
        (
            {"threads": 0},
            "TW008 wrong option: threads=0 is not a count of threads\n  next: threads=None uses all cores",
        ),
        (
            {"memory_limit": -1},
            "TW008 wrong option: memory_limit=-1 is not a number of bytes\n  next: memory_limit=None sets none",
        ),
    ):
        with pytest.raises(OptionError) as raised:
            executable(affine_program(), weights, **options)
        assert str(raised.value) == said
    main = affine_program().main
    away = replace(main, steps=(replace(main.steps[0], device="npu"), main.steps[1]))
    with pytest.raises(TargetError) as refused:
        executable(affine_program(main=away), weights)
    assert str(refused.value) == (
        "TW030 target cannot be used: steps for npu cannot run on the CPU\n  next: compile with target='cpu'"
    )


def test_new_weights_are_taken_whole_or_not_at_all(rng: np.random.Generator) -> None:
    old, new = values(rng), values(rng)
    run = executable(affine_program(), old)
    x = rng.standard_normal((3, 5), np.float32)
    with pytest.raises(WeightsError):
        run.update_weights({"scale": new["scale"]})
    np.testing.assert_array_equal(run(x), affine(x, old))
    run.update_weights(new)
    np.testing.assert_array_equal(run(x), affine(x, new))
    new["scale"][:] = np.nan  # edits after the update are not seen
    assert not np.isnan(run(x)).any()


def test_transient_weights_keep_their_values(rng: np.random.Generator) -> None:
    old, new = values(rng), values(rng)
    program = affine_program(transient=("scale",))
    run = executable(program, old)
    x = rng.standard_normal((3, 5), np.float32)
    run.update_weights({"bias": new["bias"]})
    np.testing.assert_array_equal(run(x), affine(x, {**old, "bias": new["bias"]}))
    run.update_weights(new)
    np.testing.assert_array_equal(run(x), affine(x, new))
    first = affine_program().main.steps[0]
    unread = affine_program(transient=("scale",), main=Routine((first,), affine_program().main.slots))
    assert unread.resident == (0, 1), "kept although only @prepare reads it"


def test_nan_and_inf_weights_pass_through(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3), np.float32)
    for scale, bias in ((np.nan, 1), (np.inf, 1), (1, -np.inf)):
        weights = {"scale": np.array([scale], np.float32), "bias": np.array([bias], np.float32)}
        np.testing.assert_array_equal(executable(affine_program(), weights)(x), affine(x, weights))


@dataclass
class Pair:
    y: Any
    length: Any
    note: Any


def test_the_models_own_output_structure_comes_back(rng: np.random.Generator) -> None:
    weights = values(rng)
    tree = Tree(
        "dict",
        ("pair", "rest"),
        (
            Tree("record", ("y", "length", "note"), (LEAF, LEAF, LEAF), f"{__name__}:Pair"),
            Tree("list", (), (LEAF, Tree("tuple"))),
        ),
    )
    y = Output(F32, (B, T), index=0)
    outputs = (y, Output(size=B * T + 1), Output(constant="note"), Output(constant=None))
    program = affine_program(signature=signature(tensor_argument("x", (B, T)), outputs=outputs, output=tree))
    x = rng.standard_normal((3, 5), np.float32)
    found = executable(program, weights)(x)
    assert list(found) == ["pair", "rest"]
    assert found["rest"] == [None, ()]
    assert (found["pair"].length, found["pair"].note) == (16, "note")
    np.testing.assert_array_equal(found["pair"].y, affine(x, weights))


def test_results_can_be_inputs_and_weights_as_they_are(rng: np.random.Generator) -> None:
    weights = values(rng)
    outputs = tuple(Output(F32, (), index=i) for i in range(3))
    program = affine_program(
        signature=signature(tensor_argument("x", (B, T)), outputs=outputs, output=Tree("tuple", (), (LEAF,) * 3)),
        results=(TensorSpec("y", (B, T), F32), TensorSpec("x", (B, T), F32), TensorSpec("bias", (ONE,), F32)),
        copies=(
            Copy(Ref("input", 0), Ref("output", 1), B * T * 4),
            Copy(Ref("weight", 1), Ref("output", 2), Expr.of(4)),
        ),
    )
    x = rng.standard_normal((3, 5), np.float32)
    y, same, bias = executable(program, weights)(x)
    np.testing.assert_array_equal(y, affine(x, weights))
    np.testing.assert_array_equal(same, x)
    assert not np.shares_memory(same, x)
    np.testing.assert_array_equal(bias, weights["bias"])


def mutating() -> Program:
    """Writes y back into x, and gives nothing."""
    x = tensor_argument("x", (B, T), mutated=True)
    return affine_program(signature=signature(x, outputs=(), output=Tree("tuple"), mutations=(("x", 0),)))


def test_mutated_inputs_are_mutated_alike(rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(mutating(), weights)
    start = rng.standard_normal((4, 6), np.float32)
    expected = affine(start, weights)
    dense, strided = start.copy(), np.zeros((4, 12), np.float32)
    strided[:, ::2] = start
    assert run(dense) == ()
    np.testing.assert_array_equal(dense, expected)
    run(strided[:, ::2])
    np.testing.assert_array_equal(strided[:, ::2], expected)
    assert not strided[:, 1::2].any()
    tensor = torch.from_numpy(start.copy())
    run(tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    with torch.inference_mode():
        inference = torch.from_numpy(start.copy()) * 1
    run(inference)
    np.testing.assert_array_equal(inference.numpy(), expected)


def hosted(callee: str = "flip") -> Program:
    """first on the device, `callee` on the host, second on the device."""
    main = affine_program().main
    spec = TensorSpec("t", (B, T), F32)
    call = HostCall(callee, '{"axis":0}', (spec,), (spec,))
    host = Step("flip", buffers=(Ref("slot", 0), Ref("slot", 1)), host=call)
    second = replace(main.steps[1], buffers=(Ref("slot", 1), *main.steps[1].buffers[1:]))
    return affine_program(main=Routine((main.steps[0], host, second), (main.slots[0], main.slots[0])))


def test_host_steps_run_between_native_ones(rng: np.random.Generator) -> None:
    weights = values(rng)

    def flip(t: NDArray[Any], *, axis: int) -> list[NDArray[Any]]:
        return [np.flip(t, axis)]

    run = executable(hosted(), weights, host={"flip": flip})
    x = rng.standard_normal((5, 3), np.float32)
    np.testing.assert_array_equal(run(x), affine(x[::-1], weights))
    output, profile = run.profile(x)
    np.testing.assert_array_equal(output, affine(x[::-1], weights))
    assert [step.symbol for step in profile.steps] == ["affine_small", None, "affine_small"]
    assert profile.steps[1].seconds > 0


def test_a_host_function_must_exist(rng: np.random.Generator) -> None:
    with pytest.raises(OptionError) as raised:
        executable(hosted(), values(rng))
    assert str(raised.value) == (
        "TW008 wrong option: the program calls flip on the host, which was not given\n"
        "  next: load it with the functions it was compiled with"
    )


def counting() -> Program:
    """A kernel that counts what is positive in x and gives the positive ones: a size found while running."""
    found = Expr.of("found")
    step = Step("filter", (Variant("filter"),), (Ref("input", 0), Ref("output", 0), Ref("dims", 1)), ("n",), (T,))
    return affine_program(
        dims=(DIMS[1], Dim("found", 0, 8, "runtime")),
        signature=signature(
            tensor_argument("x", (T,)),
            outputs=(Output(F32, (found,), index=0), Output(size=found * 2)),
            output=Tree("tuple", (), (LEAF, LEAF)),
        ),
        results=(TensorSpec("y", (found,), F32),),
        main=Routine((step,)),
        weights=(),
        packed=(),
        prepare=(),
    )


def keep_positive(buffers: Any, dims: Any, tid: int, threads: int) -> None:
    if tid == 0:
        x = memory(buffers[0], (dims[0],), np.float32)
        kept = x[x > 0]
        memory(buffers[1], (8,), np.float32)[: len(kept)] = kept[:8]
        memory(buffers[2], (1,), np.int64)[0] = len(kept)


def test_run_time_dims_size_the_results(rng: np.random.Generator) -> None:
    program, kernels = counting(), Addresses(filter=keep_positive)
    run = Executable(program, kernels, prepare_weights(program, kernels, pool(), {}), pool())
    for x in (rng.standard_normal(8, np.float32), -np.ones(4, np.float32), np.ones(8, np.float32)):
        y, doubled = run(x)
        np.testing.assert_array_equal(y, x[x > 0])
        assert doubled == 2 * len(y)
        tensor, _ = run(torch.from_numpy(x))
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.numpy(), x[x > 0])
    with pytest.raises(DimRangeError) as raised:
        run(np.ones(9, np.float32))
    assert str(raised.value) == (
        "TW004 dim out of its declared range: found = 9, computed while running, is outside 0..8\n"
        "  next: compile with a larger upper bound for it"
    )


def test_bf16_goes_through_torch_and_ml_dtypes(rng: np.random.Generator) -> None:
    import ml_dtypes

    program = affine_program(
        signature=signature(tensor_argument("x", (T,), BF16), outputs=(Output(BF16, (T,), index=0),)),
        dims=DIMS[1:],
        results=(TensorSpec("y", (T,), BF16),),
        main=Routine(),
        weights=(),
        packed=(),
        prepare=(),
        copies=(Copy(Ref("input", 0), Ref("output", 0), T * 2),),
    )
    run = Executable(program, code(), prepare_weights(program, code(), pool(), {}), pool())
    x = torch.randn(7).bfloat16()
    assert torch.equal(run(x), x)
    array = rng.standard_normal(7).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(array), array)
