"""Whole models through the scalar rung: C from the loop IR, the host's compiler, the same runtime, the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from bench.models.minilm import MOST_BATCH, MOST_TOKENS
from bench.models.minilm import build as minilm
from tests.compiler.counting import check_formulas
from tests.compiler.models import bert, close, compile_bert, compile_llama, compile_mlp, llama, mlp, token_inputs
from tests.models.encoders import draw_call, draw_sizes
from tilewright.backends.clike import CLike
from tilewright.backends.toy import backend
from tilewright.backends.toy.compiler import compile_source, missing
from tilewright.compiler.instrumented import CountingTwin
from tilewright.errors import MissingDependencyError, TargetError, ToolchainError
from tilewright.ir.backend import resolve_target
from tilewright.ir.dtypes import F32
from tilewright.ir.loops import LoopBuilder

NO_CC = missing()
needs_cc = pytest.mark.skipif(NO_CC is not None, reason=f"toy: {NO_CC}")


@needs_cc
def test_minilm_runs_whole_and_agrees_with_pytorch(rng: np.random.Generator) -> None:
    model = minilm()
    batch, tokens = tw.Dim("batch", 1, MOST_BATCH), tw.Dim("tokens", 1, MOST_TOKENS)
    example = draw_call(np.random.default_rng(0), 3, 8)
    compiled = tw.compile(model, kwargs=example, dims=dict.fromkeys(example, (batch, tokens)), target="toy")
    assert compiled.code.program.target == "toy:scalar"
    for size in [(1, 1), (3, 17), (1, 67), *draw_sizes(rng, 5, budget=150)]:
        call = draw_call(rng, *size)
        with torch.inference_mode():
            wanted = model(**call)
        assert (compiled(**call) - wanted).abs().max() <= 2e-5, size


@needs_cc
@pytest.mark.parametrize("threads", [1, 2])
def test_an_encoder_a_decoder_and_a_perceptron_agree_with_pytorch(seed: int, threads: int) -> None:
    for model, make in ((bert(seed), compile_bert), (llama(seed), compile_llama)):
        compiled = make(model, target="toy", threads=threads)
        for size in ((1, 1), (5, 13), (2, 40)):
            given: dict[str, Any] = token_inputs(*size)
            given |= {"use_cache": False} if make is compile_llama else {}
            with torch.inference_mode():
                wanted = model(**given)
            found = compiled(**given)
            # a row that the mask hides from everyone is nobody's to compare
            seen = given["attention_mask"].bool()
            close(found[0][seen], wanted[0][seen])
    small = mlp(seed)
    compiled = compile_mlp(small, target="toy", threads=threads)
    for rows in (1, 2, 33):
        x = torch.randn(rows, 24)
        close(compiled(x), small(x).detach())


@needs_cc
def test_a_rows_bits_do_not_depend_on_its_neighbours(seed: int) -> None:
    compiled = compile_mlp(mlp(seed), target="toy")
    x = torch.randn(33, 24)
    together = compiled(x)
    for row in (0, 16, 32):
        assert torch.equal(compiled(x[row : row + 1])[0], together[row])


@needs_cc
def test_the_counting_twin_counts_what_the_formulas_say(seed: int) -> None:
    compiled = compile_bert(bert(seed), target="toy")
    assert check_formulas(compiled, CountingTwin(compiled).run(**token_inputs(3, 7)))


@needs_cc
def test_sources_are_plain_c_of_the_kernel_abi(seed: int) -> None:
    compiled = compile_mlp(mlp(seed), target="toy")
    for source in compiled.sources.values():
        assert "(void **buffers, int64_t *dims, int64_t tid, int64_t nthreads) {" in source
        assert "__" not in source


def test_without_a_compiler_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(TargetError, match="apt-get install gcc"):
        resolve_target("toy")
    with pytest.raises(MissingDependencyError, match="apt-get install gcc"):
        compile_source("", "k")


@needs_cc
def test_a_source_that_does_not_compile_is_a_coded_error() -> None:
    with pytest.raises(ToolchainError, match=r"kernel k: .*error"):
        compile_source("void k(void) { wrong }", "k")


@needs_cc
def test_names_from_outside_are_c_identifiers() -> None:
    b = LoopBuilder("names")
    given, out = b.buffer("for", F32), b.buffer("2.out", F32, writable=True)
    with b.loop(0, b.mod(b.dim("floorf"), b.dim("mod_i64"))) as loop:
        b.store(b.floor(b.load(given, loop.index)), out, loop.index)
    source = CLike(b.finish()).source()
    assert "const float *restrict for_0 = buffers[0];" in source
    assert "float *_2_out = buffers[1];" in source
    assert "const int64_t floorf_0 = dims[0];" in source
    assert "const int64_t mod_i64_0 = dims[1];" in source
    assert compile_source(source, "names")


def test_the_backend_takes_loops_and_describes_one_lane() -> None:
    assert backend.takes == "loops"
    assert [describe().rules.lanes for describe in backend.machines.values()] == [1]
