"""Torch's random tensors in these tests come from the test's own seed, so that a failure can be replayed."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def torch_seed(seed: int) -> None:
    torch.manual_seed(seed)
