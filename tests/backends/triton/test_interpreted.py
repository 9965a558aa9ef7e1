"""Printed kernels, run by Triton's own interpreter, compute what the tile interpreter computes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from bench.models.minilm import build as minilm
from tests.backends.triton.both_interpreters import near, run_both
from tests.backends.triton.lowered import MACHINES, lowered
from tests.compiler.models import bert, llama, token_inputs
from tests.ir.tile.kernels import CASES, Case, matmul
from tests.models.encoders import draw_call
from tilewright.backends.triton.interpreter import InterpretedKernels
from tilewright.backends.triton.printer import print_kernel
from tilewright.ir.backend import kernels_of
from tilewright.ir.dtypes import BF16, F32, I8, I16, I32, I64, U8, DType
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import LaunchOp
from tilewright.ir.tile_interpreter import chosen_variant

# Triton's interpreter multiplies no bf16
PRINTED = [case for case in CASES if not any(buffer(v).dtype == BF16 for v in case.kernel.buffers)]


@pytest.mark.parametrize("case", PRINTED, ids=lambda c: c.name)
def test_every_shape_of_kernel_computes_the_same(
    case: Case, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    for sizes in case.dims(rng):
        inputs, outputs, _ = case.buffers(sizes, rng)
        for found, wanted in zip(*run_both(case.kernel, inputs, outputs, sizes, interpreter), strict=True):
            near(found, wanted, steps=64)


@pytest.mark.parametrize("dtype", [I8, U8, I16, I32, I64], ids=str)
@pytest.mark.parametrize("fn", ["shl", "shr"])
def test_a_shift_by_any_amount_computes_the_same(
    fn: str, dtype: DType, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    kind, bits = dtype.numpy(), dtype.bits
    b = KernelBuilder("by_any_amount", ["n"])
    x, by, y = b.buffer(["n"], dtype), b.buffer(["n"], dtype), b.output(["n"], dtype)
    z, w = b.output(["n"], dtype), b.output(["n"], dtype)
    (i,) = b.grid(["n"], [64])
    value = b.load(b.dense(x), [i], [64])
    for out, amount in ((y, b.load(b.dense(by), [i], [64])), (z, b.constant(bits, (64,), dtype)),
                        (w, b.constant(3, (64,), dtype))):  # fmt: skip
        b.store(b.map(fn, value, amount), b.dense(out), [i])
    kernel = b.finish()
    amounts = np.array([*range(0 if dtype == U8 else -bits - 1, bits + 2), 100, np.iinfo(kind).max]).astype(kind)
    values = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, amounts.size, kind, endpoint=True)
    blank = [np.zeros(amounts.size, kind) for _ in range(3)]
    found, wanted = run_both(kernel, [values, amounts], blank, {"n": amounts.size}, interpreter)
    for a, e in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, e)


def test_a_box_of_a_load_has_the_loads_fill(interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    b = KernelBuilder("boxed", ["n"])
    x, y = b.buffer(["n"], F32), b.output([16], F32)
    (i,) = b.grid(["n"], [32])
    b.store(b.slice(b.load(b.dense(x), [i], [32], 3.0), [16], [32]), b.dense(y), [0])
    kernel, given = b.finish(), rng.standard_normal(20).astype(np.float32)
    found, wanted = run_both(kernel, [given], [np.zeros(16, np.float32)], {"n": 20}, interpreter)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[0], [*given[16:], *[3.0] * 12])


@pytest.mark.parametrize("mode", ["set", "add"])
@pytest.mark.parametrize("along", [True, False])
def test_updates_in_place_come_one_after_the_other(
    mode: str, along: bool, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    b = KernelBuilder("changing", ["n"])
    at, new = b.buffer(["n", 20] if along else ["n"], I64), b.buffer(["n", 20], F32)
    memory = b.dense(b.updated([7, 20], F32))
    (i,) = b.grid([20], [16])
    with b.loop(0, "n", 1) as loop:
        value = b.load(b.dense(new), [loop.at, i], [1, 16])
        places = b.load(b.dense(at), [loop.at, i], [1, 16]) if along else b.load(b.dense(at), [loop.at], [1])
        b.update(b.reshape(value, (16,)), b.reshape(places, (16,) if along else (1,)), memory, [i], 0, mode)
    kernel = b.finish()
    places_given = rng.integers(0, 7, (9, 20) if along else 9)
    given = rng.standard_normal((9, 20)).astype(np.float32)
    start = rng.standard_normal((7, 20)).astype(np.float32)
    found, wanted = run_both(kernel, [places_given, given], [start.copy()], {"n": 9}, interpreter)
    np.testing.assert_array_equal(found[0], wanted[0])
    assert not np.array_equal(found[0], start)


class Both:
    """Runs a module's launches by both interpreters and compares every result of each."""

    def __init__(self, module: ModuleOp, interpreter: InterpretedKernels, steps: float) -> None:
        self.kernels, self.interpreter, self.steps = kernels_of(module), interpreter, steps
        self.launched: set[str] = set()

    def __call__(self, op: Any, operands: Any, sizes: Mapping[str, int]) -> list[torch.Tensor]:
        assert isinstance(op, LaunchOp)
        numbers = [d.evaluate(sizes) for d in op.dims.data]
        name = chosen_variant(op, self.kernels[op.callees.data[0]], numbers)
        kernel = self.kernels[name]
        self.launched.add(name)
        inputs = [t.detach().contiguous().numpy() for t in operands]
        outputs = [np.zeros([d.evaluate(sizes) for d in t.type.dims], t.type.dtype.numpy()) for t in op.outputs]
        own = dict(zip(kernel.dims.data, numbers, strict=True))
        for found, wanted in zip(*run_both(kernel, inputs, outputs, own, self.interpreter), strict=True):
            near(found, wanted, steps=self.steps)
        return [torch.from_numpy(a) for a in outputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize(("family", "machine"), [("encoder", "sm_90"), ("decoder", "gfx942")])
def test_every_kernel_of_a_model_computes_the_same(
    family: str, machine: str, dtype: torch.dtype, interpreter: InterpretedKernels, seed: int
) -> None:
    model = (bert(seed, 1) if family == "encoder" else llama(seed, 1)).to(dtype)
    extra = {} if family == "encoder" else {"use_cache": False}
    captured = lowered(model, MACHINES[machine], {**token_inputs(2, 8), **extra})
    both = Both(captured.module, interpreter, steps=128 if dtype == torch.float32 else 4)
    for size in ((1, 1), (1, 7), (2, 19)):
        given = token_inputs(*size)
        result = next(iter(interpret(captured.module, given, weights=captured.weights, launch=both).values()))
        with torch.inference_mode():
            wanted = model(**given, **extra)[0]
        # the whole model, too: a row that the mask hides from everyone is nobody's to compare
        seen = given["attention_mask"].bool()
        near(result[seen].numpy(), wanted[seen].numpy(), steps=4096 if dtype == torch.float32 else 64)
    missed = set(both.kernels) - both.launched
    assert not {name for name in missed if not name.endswith("64")}, missed


def test_a_saved_source_runs_by_itself(tmp_path: Path) -> None:
    printed = print_kernel(matmul(16, 16, 16).kernel)
    saved = tmp_path / "kept.py"
    saved.write_text(printed.source)
    done = subprocess.run(
        [sys.executable, saved],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tensor([[")
    head = ast.get_docstring(ast.parse(printed.source))
    assert head is not None
    assert "matmul: dot" in head
    assert "in  x0   f32[m, k]" in head
    assert "out y0   f32[m, n]" in head
    assert "(m by 16, n by 16)" in head


def test_what_a_loop_does_not_change_is_computed_before_it_and_nothing_is_computed_in_vain() -> None:
    source = print_kernel(matmul(16, 16, 16).kernel).source
    body = source.partition("@triton.jit")[2].partition("def launch")[0]
    before, _, inside = body.partition("    for ")
    assert "i0 + tl.arange(0, 16)" in before
    assert "i0 + tl.arange(0, 16)" not in inside
    for name in re.findall(r"^ +(\w+) = ", body, re.MULTILINE):
        assert len(re.findall(rf"\b{name}\b", body)) > 1, name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_every_kernel_of_minilm_computes_the_same(
    dtype: torch.dtype, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    model = minilm()
    # the six layers have the same kernels
    model.encoder.encoder.layer = model.encoder.encoder.layer[:1]
    model = model.to(dtype)
    captured = lowered(model, MACHINES["sm_90"], draw_call(np.random.default_rng(0), 3, 8))
    both = Both(captured.module, interpreter, steps=256 if dtype == torch.float32 else 4)
    for size in ((1, 1), (2, 37)):
        call = draw_call(rng, *size)
        result = next(iter(interpret(captured.module, call, weights=captured.weights, launch=both).values()))
        with torch.inference_mode():
            near(result.numpy(), model(**call).numpy(), steps=4096 if dtype == torch.float32 else 64)
