"""Compiling needs the weights once: what is packed goes to the file in pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MEASURING = """
import sys
sys.modules["triton"] = None  # torch's tracer imports it where it is installed, 50 MiB that a plain install has not
import torch
import tilewright as tw

def peak():  # of this program: getrusage would give the peak of whoever started it, where that is more
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

layers = [torch.nn.Linear(SHAPE[i], SHAPE[i + 1]) for i in range(len(SHAPE) - 1)]
model = torch.nn.Sequential(*layers).eval()
weights = sum(p.numel() * p.element_size() for p in model.parameters())
before = peak()
compiled = tw.compile(model, (torch.randn(3, SHAPE[0]),), dims={"input": {0: tw.Dim("batch", 1, 9)}}, cache=CACHE)
print(weights, before, peak())
x = torch.randn(2, SHAPE[0])
assert (compiled(x) - model(x)).abs().max() < 1e-3
"""


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((4096, 24576, 11), id="one large tensor"),
        pytest.param((2048,) * 25, id="many tensors", marks=pytest.mark.slow),
    ],
)
def test_peak_memory_is_the_weights_and_a_constant(shape: tuple[int, ...], cached: bool, tmp_path: Path) -> None:
    program = f"SHAPE, CACHE = {shape}, {str(tmp_path) if cached else False!r}\n{MEASURING}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    weights, before, after = map(int, done.stdout.split())
    assert weights > 380 << 20
    assert after <= 1.15 * weights + (400 << 20), (weights, before, after)
