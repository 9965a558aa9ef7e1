"""The CPU backend's manifest."""

from tilewright.backends.cpu.build import build, runtime_objects
from tilewright.backends.cpu.machines import MACHINES, host_class
from tilewright.backends.host.build import probe, toolchain, warm
from tilewright.ir.backend import API_VERSION, Backend
from tilewright.ir.device import HOST

backend = Backend(
    api=API_VERSION,
    name="cpu",
    takes="loops",
    machines=MACHINES,
    default_machine=host_class,
    dtypes=frozenset({"f64", "f32", "bf16", "f16", "i64", "i32", "i16", "i8", "u8", "i1"}),
    legalize="",
    build=build,
    runtime_objects=runtime_objects,
    toolchain=toolchain,
    warm=warm,
    probe=probe,
    device=HOST,
)
