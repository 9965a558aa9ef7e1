"""A fault planted at each stage of the way down is found at that stage, and named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.divergence import Case, Difference, first_difference
from tilewright.compiler.options import Options
from tilewright.compiler.target import Target
from tilewright.frontend.capturing import capture
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.dims import Dim
from tilewright.ir.passing import Context, Pass
from tilewright.passes.pipeline import default_pipeline


class Block(torch.nn.Module):
    """Two products with something between and around them, and a state."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(12, 20), torch.nn.Linear(20, 12)
        self.register_buffer("seen", torch.zeros(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x.sum((0, 1))
        return torch.softmax(x + self.down(torch.nn.functional.silu(self.up(x))), -1) * self.seen


@dataclass(frozen=True)
class SwapMaps(Pass):
    """Turns elementwise functions of one name into another, `skip` of them left alone."""

    name: ClassVar[str] = "swap-maps"
    op: str = "graph.map"
    old: str = "silu"
    new: str = "tanh"

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for op in list(module.walk()):
            if op.name == self.op and op.fn.data == self.old and ctx.apply([op], f"{self.old} is {self.new}"):  # type: ignore[attr-defined]
                op.properties["fn"] = type(op.fn)(self.new)  # type: ignore[attr-defined]


def case(pipeline: Any = None, *, skew: float = 0.0) -> Case:
    """A block, its results as the block itself gives them (off by `skew`), and a pipeline to compile it with."""
    torch.manual_seed(11)
    model = Block().eval()
    x = torch.randn(3, 7, 12)
    dims = {"x": (Dim("batch", 1, 8), Dim("tokens", 1, 64), None)}
    options = Options(passes=pipeline)

    def again() -> Any:
        return capture(model, (x,), {}, dims)

    with torch.inference_mode():
        expected = model(x) + skew
        model.seen.zero_()
    return Case(again, [x], [expected], Target.of(options), CompileOptions())


def tolerance(wanted: torch.Tensor) -> float:
    return 512 * 2.0**-23 * float(wanted.abs().max())


def found(given: Case) -> Difference:
    difference = first_difference(given, tolerance)
    assert difference is not None
    return difference


def test_a_right_program_has_no_first_difference() -> None:
    assert first_difference(case(), tolerance) is None


def test_a_capture_that_is_not_the_model() -> None:
    difference = found(case(skew=0.01))
    assert difference.stage == "capture"
    assert difference.worst == pytest.approx(0.01, rel=1e-3)
    assert difference.name.endswith("Block")


def test_a_wrong_rewrite_of_the_graph_is_named_with_its_line() -> None:
    difference = found(case(default_pipeline().after("recognize", SwapMaps())))
    assert (difference.stage, difference.name) == ("pass", "swap-maps")
    assert difference.detail == "output 0 after graph.map: silu is tanh"
    assert re.fullmatch(r"(tests/compiler/)?test_divergence\.py:\d+", difference.where or "")


def test_the_wrong_one_of_many_rewrites_is_found_by_bisection() -> None:
    # adding zero twice is harmless however often it is applied; the swap comes last
    harmless = SwapMaps(old="nothing")
    pipeline = default_pipeline().after("hoist-weights", harmless, SwapMaps(old="add", new="sub"))
    difference = found(case(pipeline))
    assert (difference.stage, difference.name) == ("pass", "swap-maps")
    assert "add is sub" in difference.detail


def test_a_wrong_kernel_is_found_in_the_fused_plan() -> None:
    difference = found(case(default_pipeline().after("lower-to-tile", SwapMaps(op="tile.map", old="exp", new="tanh"))))
    assert difference.stage == "kernel"
    assert "graph.softmax" in difference.detail
    # every op by itself is right: the fault was planted in the fused plan only
    assert "by itself" not in difference.detail
    assert difference.worst > difference.bound > 0


def test_a_kernel_that_is_wrong_by_itself_names_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "tanh", "exp")
    difference = found(case_of(lambda x: torch.tanh(x * 2) + 1, torch.randn(5, 6)))
    assert difference.stage == "kernel"
    assert "by itself" in difference.detail
    assert "graph.map" in difference.detail


def plant(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Every kernel that is compiled computes another function: a fault of the code generator."""
    import tilewright.compiler.levels as levels

    real: Callable[..., Any] = levels.lower_kernel

    def wrong(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        for op in kernel.walk():
            if op.name == "tile.map" and op.fn.data == old:
                op.properties["fn"] = type(op.fn)(new)
        return real(kernel, *args, **kwargs)

    monkeypatch.setattr(levels, "lower_kernel", wrong)


def case_of(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Case:
    class Function(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    model = Function().eval()
    return Case(lambda: capture(model, (x,), {}, None), [x], [function(x)], Target.of(Options()), CompileOptions())


def test_booleans_between_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "tanh", "exp")
    difference = found(case_of(lambda x: torch.where((x > 0) & (x < 3), torch.tanh(x * 2), x), torch.randn(5, 6)))
    assert difference.stage == "kernel"
