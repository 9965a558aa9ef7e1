"""The manifests of the two backends that print Triton source."""

from __future__ import annotations

from typing import Final

from tilewright.backends.triton.build import build, probe, runtime_objects, toolchain, warm
from tilewright.backends.triton.devices import CUDA, ROCM
from tilewright.backends.triton.machines import machines
from tilewright.ir.backend import API_VERSION, Backend
from tilewright.ir.device import DeviceKind

_DTYPES: Final = frozenset({"f64", "f32", "bf16", "f16", "i64", "i32", "i16", "i8", "u8", "i1"})


def _backend(triton_name: str, default: str, device: DeviceKind) -> Backend:
    def default_machine() -> str:
        return default

    return Backend(
        api=API_VERSION,
        name=device.name,
        takes="tile",
        machines=machines(triton_name),
        default_machine=default_machine,
        dtypes=_DTYPES,
        legalize="",
        build=build,
        runtime_objects=runtime_objects,
        toolchain=toolchain,
        warm=warm,
        probe=probe,
        device=device,
    )


cuda: Final = _backend("cuda", "sm_90", CUDA)
rocm: Final = _backend("hip", "gfx942", ROCM)
