"""Capture leaves things out of torch's trace: the graph is the same, and torch is as it was afterwards."""

from __future__ import annotations

import logging

import torch

from tilewright.frontend.capturing import capture
from tilewright.frontend.lean_tracing import lean_tracing
from tilewright.frontend.quiet import quiet
from tilewright.ir.dims import Dim
from tilewright.ir.module import print_module


class Modes(torch.nn.Module):
    """Switches gradients in the middle, as rotary embeddings do, and multiplies by weights with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 4), torch.nn.Linear(4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = x.mean().cos()
        with torch.enable_grad():
            hidden = self.first(x) * scale
        return self.second(hidden)


def test_torch_is_as_it_was() -> None:
    from torch.fx import proxy
    from torch.fx.experimental import proxy_tensor

    linear = torch.ops.aten.linear.default
    before = (proxy.CapturedTraceback, proxy_tensor._extract_tensor_metadata, dict(linear.py_kernels))
    try:
        with lean_tracing():
            assert before[0] is not proxy.CapturedTraceback
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert before == (proxy.CapturedTraceback, proxy_tensor._extract_tensor_metadata, dict(linear.py_kernels))
    x = torch.randn(2, 6)
    assert torch.equal(torch.nn.functional.linear(x, torch.eye(6)), x)


def test_switching_gradients_leaves_one_flat_graph_with_its_lines() -> None:
    captured = capture(Modes().eval(), (torch.randn(5, 6),), None, {"x": (Dim("n", 0, 9), None)})
    text = print_module(captured.module)
    assert text.count("graph.matmul") == 2
    line = Modes.forward.__code__.co_firstlineno
    assert f"test_lean_tracing.py:{line + 4}" in text
    assert f"test_lean_tracing.py:{line + 5}" in text


def test_linear_with_a_vector_or_mixed_shapes_is_torchs_own() -> None:
    class Vector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x[0]) + self.linear.weight @ x[-1]

    captured = capture(Vector().eval(), (torch.randn(5, 6),), None, {"x": (Dim("n", 1, 9), None)})
    assert print_module(captured.module).count("graph.matmul") == 2


def test_torch_takes_no_records_that_nobody_reads_and_takes_them_again_afterwards() -> None:
    import torch._logging._internal as records

    asked: list[str] = []

    def tell() -> dict[str, str]:
        asked.append("asked")
        return {}

    handler = logging.NullHandler()
    records.trace_log.addHandler(handler)
    before = list(records.trace_log.handlers)
    try:
        with quiet():
            records.trace_structured("a", tell)
        assert not asked
        assert records.trace_log.handlers == before
        records.trace_structured("b", tell)
        assert asked
    finally:
        records.trace_log.removeHandler(handler)
