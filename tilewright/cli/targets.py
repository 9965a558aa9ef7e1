"""`tilewright targets`: every machine that a registered backend compiles for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.ir.backend import Backend
    from tilewright.ir.machine import Machine


def targets() -> None:
    """Lists the machines that kernels can be compiled for."""
    from tilewright.cli.tables import show
    from tilewright.ir.backend import backends

    rows = []
    for backend in backends().values():
        for name, describe in backend.machines.items():
            machine = describe()
            rows.append(
                (
                    f"{backend.name}:{name}",
                    _state(backend, machine),
                    machine.rules.lanes,
                    ", ".join(sorted(backend.dtypes)),
                    ", ".join(machine.features) or "none",
                )
            )
    show(("target", "state", "f32 lanes", "dtypes", "features"), rows, numbers=(2,))


def _state(backend: Backend, machine: Machine) -> str:
    """Whether kernels for a machine can be compiled here, and run here."""
    from tilewright.compiler.levels import LEVELS
    from tilewright.compiler.options import Options
    from tilewright.runtime.native import cpu_features

    if backend.takes not in LEVELS:
        return f"not ready: nothing lowers to {backend.takes}"
    missing = backend.probe()
    if missing is not None:
        return f"not ready: {missing}"
    if backend.device.why_not_here() is not None:
        return "compiles here"
    lacking = sorted(set(machine.features) - cpu_features()) if machine.family == "cpu" else []
    if lacking:
        return f"this CPU lacks {', '.join(lacking[:3])}" + (", ..." if len(lacking) > 3 else "")
    # several backends can run here, each with a machine of its own; one of them is what nobody has to ask for
    is_default = backend.name == Options().target and backend.default_machine() == machine.name
    return "the default here" if is_default else "ready"
