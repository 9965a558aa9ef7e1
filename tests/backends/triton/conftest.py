"""What tests of printed kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tilewright.backends.triton.interpreter import InterpretedKernels


@pytest.fixture(scope="session")
def interpreter() -> Iterator[InterpretedKernels]:
    with InterpretedKernels() as found:
        yield found
