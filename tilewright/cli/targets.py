"""`tilewright targets`: every machine that a registered backend compiles for."""

from __future__ import annotations


def targets() -> None:
    """Lists the machines that kernels can be compiled for, and whether each backend is ready here."""
    from tilewright.cli.tables import show
    from tilewright.ir.backend import backends

    rows = []
    for backend in backends().values():
        missing = backend.probe()
        default = backend.default_machine() if missing is None else None
        for name, describe in backend.machines.items():
            machine = describe()
            state = f"not ready: {missing}" if missing else "the default here" if name == default else "ready"
            rows.append((
                f"{backend.name}:{name}", state, machine.rules.lanes, ", ".join(machine.features) or "none",
                ", ".join(sorted(backend.dtypes)),
            ))  # fmt: skip
    show(("target", "state", "f32 lanes", "features", "dtypes"), rows, numbers=(2,))
