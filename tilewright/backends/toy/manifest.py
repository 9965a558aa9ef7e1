"""The toy backend's manifest."""

from tilewright.backends.toy.build import build, probe, runtime_objects, toolchain, warm
from tilewright.backends.toy.machines import MACHINES, default_machine
from tilewright.ir.backend import API_VERSION, Backend
from tilewright.ir.device import HOST

backend = Backend(
    api=API_VERSION,
    name="toy",
    takes="loops",
    machines=MACHINES,
    default_machine=default_machine,
    dtypes=frozenset({"f64", "f32", "bf16", "f16", "i64", "i32", "i16", "i8", "u8", "i1"}),
    legalize="",
    build=build,
    runtime_objects=runtime_objects,
    toolchain=toolchain,
    warm=warm,
    probe=probe,
    device=HOST,
)
