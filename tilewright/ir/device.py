"""Where kernels run: what a device does, and how a backend names its own.

The host is a device that nobody opens: its kernels are code of this process (`ir/native_abi.py`), and the native driver
walks the step table. Any other device has memory of its own and runs a grid of programs itself (`ir/grid_abi.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

from tilewright.errors import BackendManifestError
from tilewright.ir.grid_abi import Grid

Abi: TypeAlias = Literal["native", "grid"]


class Device(Protocol):
    """One opened device. Addresses are the device's own; sizes are bytes. What it is asked happens in order.

    TargetError for what the device refuses.
    """

    def alloc(self, size: int) -> int:
        """Memory for `size` bytes, aligned for any tensor: its address."""

    def free(self, address: int) -> None:
        """Gives memory back, once all that was launched before has read and written it."""

    def write(self, address: int, data: memoryview) -> None:
        """Bytes of this process to the device. `data` may be changed when it returns."""

    def read(self, address: int, into: memoryview) -> None:
        """Bytes of the device to this process; waits for what was launched before."""

    def copy(self, source: int, destination: int, size: int) -> None:
        """Bytes from one place of the device to another; the two do not overlap."""

    def load(self, image: bytes, symbol: str) -> int:
        """A kernel of an object: what `launch` calls it by."""

    def launch(self, function: int, grid: Grid, programs: int, buffers: Sequence[int], dims: Sequence[int]) -> None:
        """Starts a kernel by the grid ABI and does not wait. programs: what `grid.programs` is for these dims, 1 or
        more.
        """

    def sync(self) -> None:
        """Waits for all that was launched."""

    def clock(self) -> int:
        """The device's time in nanoseconds, where what was launched before has ended."""


@runtime_checkable
class Capturing(Device, Protocol):
    """A device that can keep launches and start them again at once."""

    def capture(self) -> AbstractContextManager[Callable[[], None]]:
        """What is launched inside is kept, not started; the function starts all of it."""


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """A kind of device, as a backend's manifest names it.

    name: what steps of a program call it. abi: how its kernels are called. availability: why there is none here, in
    a few words; None where there is one. open: gives it; None for the host, and where nothing opens it.
    """

    name: str
    abi: Abi
    availability: Callable[[], str | None]
    open: Callable[[], Device] | None = None

    def __post_init__(self) -> None:
        if self.abi == "native" and self.open is not None:
            raise BackendManifestError(
                f"device {self.name}: kernels of the native ABI run in this process, so nobody opens their device",
                step="leave open out, or name the grid ABI",
            )

    @property
    def in_process(self) -> bool:
        """Its kernels are code of this process."""
        return self.abi == "native"

    def why_not_here(self) -> str | None:
        """Why programs for it do not run in this process: no device, or nothing that executes programs on it."""
        missing = self.availability()
        return missing if missing is not None or self.in_process else "programs on devices have no executor yet"


HOST_NAME: Final = "cpu"


def _always() -> str | None:
    return None


HOST: Final = DeviceKind(HOST_NAME, "native", _always)
