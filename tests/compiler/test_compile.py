"""What compile() promises of the object it returns, beyond equal numbers: shapes, weights, states, bits and threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.models import Mlp, bert, close, compile_bert, compile_llama, compile_mlp, llama, mlp, token_inputs
from tilewright.errors import (
    DimRangeError,
    NumericMismatchError,
    OptionError,
    PassOptionError,
    WeightsError,
)
from tilewright.runtime.threads import available_cores


@pytest.fixture(scope="module")
def compiled_mlp() -> tuple[Mlp, Any]:
    model = mlp(11)
    return model, compile_mlp(model)


@pytest.fixture(scope="module")
def compiled_bert() -> tuple[torch.nn.Module, Any]:
    model = bert(12)
    return model, compile_bert(model)


class TestCalls:
    @pytest.mark.parametrize("batch", [1, 2, 5, 16, 33])
    def test_every_size_in_range_gives_the_models_numbers(self, compiled_mlp: Any, batch: int) -> None:
        model, compiled = compiled_mlp
        x = torch.randn(batch, 24)
        close(compiled(x), model(x).detach())

    def test_a_size_out_of_range_prints_the_line_that_admits_it(self, compiled_mlp: Any) -> None:
        with pytest.raises(DimRangeError, match=r"34"):
            compiled_mlp[1](torch.randn(34, 24))

    def test_numpy_in_numpy_out(self, compiled_mlp: Any, rng: np.random.Generator) -> None:
        _, compiled = compiled_mlp
        x = rng.standard_normal((3, 24), np.float32)
        found = compiled(x)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, compiled(torch.from_numpy(x)).numpy())

    def test_outputs_are_freshly_owned(self, compiled_mlp: Any) -> None:
        compiled = compiled_mlp[1]
        x = torch.randn(3, 24)
        first = compiled(x)
        kept = first.clone()
        compiled(torch.randn(3, 24))
        assert torch.equal(first, kept)

    @pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (6, 40), (5, 7), (2, 31)])
    def test_bert_with_padding(self, compiled_bert: Any, batch: int, tokens: int) -> None:
        model, compiled = compiled_bert
        given = token_inputs(batch, tokens)
        with torch.inference_mode():
            wanted = model(**given)
        found = compiled(**given)
        assert type(found) is type(wanted)
        close(found.last_hidden_state, wanted.last_hidden_state)
        close(found.pooler_output, wanted.pooler_output)

    def test_llama_with_tied_embeddings(self) -> None:
        model = llama(13)
        compiled = compile_llama(model)
        for batch, tokens in ((1, 1), (3, 17), (6, 40)):
            given = token_inputs(batch, tokens, 83)
            given["attention_mask"] = torch.ones_like(given["attention_mask"])
            with torch.inference_mode():
                wanted = model(**given, use_cache=False)
            close(compiled(**given, use_cache=False).logits, wanted.logits)
        compiled.update_weights(llama(14).state_dict())
        with torch.inference_mode():
            wanted = llama(14)(**given, use_cache=False)
        close(compiled(**given, use_cache=False).logits, wanted.logits)

    def test_nested_inputs_and_outputs(self) -> None:
        class Nested(torch.nn.Module):
            def forward(self, pair: tuple[torch.Tensor, dict[str, torch.Tensor]], scale: float) -> dict[str, Any]:
                x, more = pair
                return {"sum": x + more["y"] * scale, "both": [x.sum(-1), (more["y"], 3)]}

        n = tw.Dim("n", 1, 9)
        pair = (torch.randn(4, 3), {"y": torch.randn(4, 3)})
        compiled = tw.compile(
            Nested().eval(), (pair, 2.0), dims={"pair": ({0: n}, {"y": {0: n}})},
        )  # fmt: skip
        x, y = torch.randn(7, 3), torch.randn(7, 3)
        found, wanted = compiled((x, {"y": y}), 2.0), Nested()((x, {"y": y}), 2.0)
        close(found["sum"], wanted["sum"])
        close(found["both"][0], wanted["both"][0])
        assert torch.equal(found["both"][1][0], y)
        assert found["both"][1][1] == 3

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_weights_that_are_no_numbers_pass_through(self, bad: float) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(5, 70)).eval()
        with torch.no_grad():
            model[0].weight[3, 2] = bad
            model[0].bias[69] = bad
        compiled = tw.compile(model, (torch.randn(3, 5),), dims={"input": {0: tw.Dim("n", 1, 9)}})
        x = torch.rand(4, 5) + 1
        close(compiled(x), model(x).detach())

    def test_a_state_goes_on_from_call_to_call(self) -> None:
        class Running(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("total", torch.ones(3))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.total.add_(x.sum(0))
                return self.total * 2

        compiled = tw.compile(Running().eval(), (torch.randn(4, 3),), dims={"x": {0: tw.Dim("n", 1, 9)}})
        model, xs = Running().eval(), [torch.randn(n, 3) for n in (1, 5, 9)]
        for x in xs:
            close(compiled(x), model(x))
        close(torch.as_tensor(compiled.state["total"]), model.total)
        compiled.reset()
        close(compiled(xs[0]), Running()(xs[0]))
        compiled.update_weights({"total": torch.full((3,), 5.0)})
        close(compiled(xs[0]), (5 + xs[0].sum(0)) * 2)

    def test_mutated_inputs_are_mutated_alike(self) -> None:
        class Scatter(torch.nn.Module):
            def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
                cache.mul_(2).add_(x)
                return cache.sum(-1)

        n = tw.Dim("n", 1, 9)
        example = (torch.randn(4, 3), torch.randn(4, 3))
        compiled = tw.compile(Scatter().eval(), example, dims={"x": {0: n}, "cache": {0: n}})
        x, cache = torch.randn(6, 3), torch.randn(6, 3)
        mine, theirs = cache.clone(), cache.clone()
        close(compiled(x, mine), Scatter()(x, theirs))
        close(mine, theirs)


class TestWeights:
    def test_two_seeds_of_one_config_share_code_and_nothing_else(self, tmp_path: Path) -> None:
        given = token_inputs(3, 9)
        models = [bert(seed) for seed in (21, 22)]
        programs = [compile_bert(model, cache=tmp_path) for model in models]
        assert [p.report.to_dict()["cache"].split()[0] for p in programs] == ["miss", "hit"]
        for model, compiled in zip(models, programs, strict=True):
            with torch.inference_mode():
                close(compiled(**given).last_hidden_state, model(**given).last_hidden_state)

    def test_edits_to_the_model_are_seen_only_by_update_weights(self) -> None:
        model = mlp(23)
        compiled = compile_mlp(model)
        x = torch.randn(5, 24)
        before = compiled(x)
        with torch.no_grad():
            model.up.weight.mul_(-1)
        assert torch.equal(compiled(x), before)
        compiled.update_weights(model.state_dict())
        close(compiled(x), model(x).detach())

    def test_the_whole_state_dict_is_known_and_nothing_else(self, compiled_mlp: Any) -> None:
        model, compiled = compiled_mlp
        state = model.state_dict()
        assert "unused.weight" in state
        with pytest.raises(WeightsError) as raised:
            compiled.update_weights(
                {
                    **state,
                    "upp.weight": torch.zeros(2),
                    "up.weight": torch.zeros(24, 40),
                    "up.bias": torch.zeros(40).double(),
                }
            )
        told = [str(p) for p in raised.value.problems]
        assert len(told) == 3
        assert any("upp.weight is no weight of the program" in line for line in told)
        x = torch.randn(2, 24)
        close(compiled(x), model(x).detach())

    def test_names_of_one_tensor_must_agree(self) -> None:
        compiled = compile_llama(llama(24))
        state = dict(llama(25).state_dict())
        state["lm_head.weight"] = state["lm_head.weight"] + 1
        with pytest.raises(WeightsError, match="one tensor in the program, but their values differ"):
            compiled.update_weights(state)


class TestBits:
    """Determinism `batch`, the default."""

    def test_a_row_does_not_depend_on_its_neighbours_or_threads(self, compiled_bert: Any) -> None:
        compiled = compiled_bert[1]
        given = token_inputs(6, 23)
        whole = compiled(**given).last_hidden_state
        for row in range(6):
            alone = {name: value[row : row + 1] for name, value in given.items()}
            assert torch.equal(compiled(**alone).last_hidden_state[0], whole[row])
        order = torch.randperm(6)
        shuffled = compiled(**{name: value[order] for name, value in given.items()}).last_hidden_state
        assert torch.equal(shuffled, whole[order])

    def test_the_number_of_threads_does_not_matter(self) -> None:
        model = bert(12)
        given = token_inputs(4, 19)
        one, two = (compile_bert(model, threads=n)(**given).last_hidden_state for n in (1, 2))
        assert torch.equal(one, two)

    def test_a_matrix_row_is_the_same_in_every_variant(self, compiled_mlp: Any) -> None:
        compiled = compiled_mlp[1]
        x = torch.randn(33, 24)
        whole = compiled(x)
        for batch in (1, 2, 4, 5, 16, 17, 32):
            assert torch.equal(compiled(x[:batch]), whole[:batch])


class TestThreads:
    def test_eight_callers_get_their_own_results(self, compiled_bert: Any) -> None:
        compiled = compiled_bert[1]
        calls = [token_inputs(1 + i % 6, 3 + 4 * i) for i in range(8)]
        wanted = [compiled(**c).last_hidden_state for c in calls]
        faults: list[Any] = []
        before = len(os.listdir("/proc/self/task"))
        most = [0]

        def work(i: int) -> None:
            for _ in range(10):
                if not torch.equal(compiled(**calls[i]).last_hidden_state, wanted[i]):
                    faults.append(i)
                most[0] = max(most[0], len(os.listdir("/proc/self/task")))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not faults
        assert most[0] <= before + 8 + available_cores()

    def test_a_child_forked_after_a_call_answers(self, compiled_mlp: Any) -> None:
        _, compiled = compiled_mlp
        x = torch.randn(33, 24)
        wanted = compiled(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(compiled(x), wanted) else 1)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0
                return
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")


class TestOptions:
    def test_bf16_rounds_operands_of_products_alone(self, compiled_bert: Any) -> None:
        model, _ = compiled_bert
        given = token_inputs(4, 30)
        with torch.inference_mode():
            wanted = model(**given).last_hidden_state
        found = compile_bert(model, precision="bf16")(**given).last_hidden_state
        assert torch.nn.functional.cosine_similarity(found, wanted, dim=-1).min() >= 0.999
        assert not torch.equal(found, wanted)

    def test_the_materialising_plan_computes_the_same(self, compiled_mlp: Any) -> None:
        model, compiled = compiled_mlp
        plain = compile_mlp(model, materialise=True)
        assert len(plain.code.program.main.steps) > len(compiled.code.program.main.steps)
        x = torch.randn(9, 24)
        close(plain(x), model(x).detach())

    def test_every_pass_can_be_verified_by_running(self) -> None:
        model = mlp(31)
        compiled = compile_mlp(model, verify_each="numeric")
        x = torch.randn(3, 24)
        close(compiled(x), model(x).detach())

    def test_memory_limit(self) -> None:
        from tilewright.errors import CapacityError

        with pytest.raises(CapacityError, match=r"TW028.*no call could run"):
            compile_mlp(mlp(11), memory_limit=1000)
        held = compile_mlp(mlp(11)).memory(batch=1).to_dict()["weights"]
        compiled = compile_mlp(mlp(11), memory_limit=held)
        with pytest.raises(CapacityError, match=r"TW028.*one call"):
            compiled(torch.randn(3, 24))

    def test_wrong_options_are_named_together(self) -> None:
        with pytest.raises(OptionError) as raised:
            compile_mlp(mlp(1), precision="bf61", determinism="bach")
        assert len(raised.value.problems) == 2
        assert "precision='bf61' is not one of 'model', 'f32', 'bf16'" in str(raised.value)
        assert "determinism='batch'" in raised.value.step
        with pytest.raises(OptionError, match="did you mean 'threads'"):
            compile_mlp(mlp(1), thread=2)


class TestIr:
    def test_levels_and_passes(self, compiled_mlp: Any) -> None:
        compiled = compiled_mlp[1]
        assert "graph.group" in compiled.ir("graph")
        assert "tile.launch" in compiled.ir("tile")
        assert "graph.group" not in compiled.ir(after="hoist-weights")
        assert compiled.ir(after="plan-memory") == compiled.ir("tile")
        assert compiled.ir(after="canonicalize:2") != compiled.ir(after="fuse")
        assert all(source in compiled.ir("target") for source in compiled.sources.values())
        with pytest.raises(PassOptionError, match="no pass 'fusee' ran on this program"):
            compiled.ir(after="fusee")
        with pytest.raises(OptionError, match="no IR level is called 'loops'"):
            compiled.ir("loops")

    def test_memory_is_said_before_a_call(self, compiled_mlp: Any) -> None:
        compiled = compiled_mlp[1]
        small, large = compiled.memory(batch=1).total, compiled.memory(batch=33).total
        assert 0 < small < large


class TestFirstCall:
    def test_equal_results_pass_once(self) -> None:
        model = mlp(41)
        compiled = compile_mlp(model, check="first")
        x = torch.randn(5, 24)
        close(compiled(x), model(x).detach())
        assert compiled.first_call is None

    def test_a_wrong_pass_is_caught_and_the_op_named(self) -> None:
        from tests.compiler.wrong_pass import SwapActivation

        pipeline = tw.pipeline().after("recognize", SwapActivation())
        compiled = compile_mlp(mlp(42), check="first", passes=pipeline, cache=False)
        with pytest.raises(NumericMismatchError) as raised:
            compiled(torch.randn(5, 24))
        assert "output 0" in str(raised.value)
        assert "first in pass swap-activation" in str(raised.value)

    def test_weights_of_another_model_are_no_steps_fault(self) -> None:
        compiled = compile_mlp(mlp(43), check="first", cache=False)
        other = mlp(44)
        compiled.update_weights({**mlp(43).state_dict(), "down.weight": other.down.weight})
        with pytest.raises(NumericMismatchError) as raised:
            compiled(torch.randn(5, 24))
        assert "no step differs by itself" in str(raised.value)

    def test_a_verified_pipeline_names_the_wrong_pass(self) -> None:
        from tests.compiler.wrong_pass import SwapActivation

        pipeline = tw.pipeline().after("recognize", SwapActivation())
        with pytest.raises(NumericMismatchError, match="after swap-activation"):
            compile_mlp(mlp(45), verify_each="numeric", passes=pipeline)
