"""Complex tensors in arguments: what is told to whoever passes one keeps both of its parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.errors import DTypeError
from tilewright.frontend import capture


def test_a_step_never_leaves_the_imaginary_part_out() -> None:
    apart = "next: complex numbers are not supported; pass real and imaginary parts apart: "

    class Product(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.view_as_complex(x))

    with pytest.raises(DTypeError) as raised:
        capture(Product(2, 3), (torch.ones(4, 2, 2),))
    assert str(raised.value).endswith(f"{apart}torch.view_as_real(x)")
    compiled = tw.compile(torch.nn.ReLU(), (torch.ones(3),))
    for given, step in (
        (torch.ones(3, dtype=torch.complex64), "torch.view_as_real(input)"),
        (np.ones(3, np.complex64), "np.stack([input.real, input.imag], -1)"),
    ):
        with pytest.raises(DTypeError) as raised:
            compiled(given)
        assert str(raised.value).endswith(f"{apart}{step}")
