"""A backend names where its kernels run; what nothing here runs is skipped by preference lists and refused by calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.compiler.models import compile_mlp, mlp
from tilewright.errors import BackendManifestError, TargetError
from tilewright.ir import backend as backend_module
from tilewright.ir.backend import Backend, resolve_target
from tilewright.ir.device import HOST, DeviceKind

HERE = DeviceKind("sim", "grid", lambda: None)
ABSENT = DeviceKind("sim", "grid", lambda: "its cable is not plugged in")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs the CPU backend and a copy of it, `sim`, on another kind of device."""
    plain = resolve_target("cpu")[0]

    def with_device(device: DeviceKind) -> Backend:
        made = replace(plain, name="sim", device=device)

        class Point:
            dist = None

            def __init__(self, found: Backend) -> None:
                self.name, self.found = found.name, found

            def load(self) -> Backend:
                return self.found

        monkeypatch.setattr(backend_module, "entry_points", lambda group: [Point(plain), Point(made)])
        return made

    return with_device


def test_a_preference_list_skips_a_device_that_is_not_there(install: Any) -> None:
    install(ABSENT)
    assert resolve_target(("sim", "cpu"))[0].name == "cpu"
    # one target by itself is compiled for wherever it would run
    assert resolve_target("sim")[0].name == "sim"
    with pytest.raises(TargetError) as caught:
        resolve_target(("sim", "sim:generic"))
    assert "sim compiles here, but this process has no executor for it: its cable is not plugged in" in str(
        caught.value
    )


@pytest.mark.parametrize("device", [ABSENT, HERE], ids=["absent", "without an executor"])
def test_a_program_for_another_device_is_compiled_and_not_run_or_saved(
    install: Any, device: DeviceKind, tmp_path: Any
) -> None:
    install(device)
    compiled = compile_mlp(mlp(1), target="sim", cache=False)
    assert compiled.sources
    assert {step.device for step in compiled.code.program.main.steps} == {"sim"}
    with pytest.raises(TargetError, match="and this process has no executor for that device"):
        compiled.reset()
    with pytest.raises(TargetError, match="an artifact holds weights as the program's own kernels pack them"):
        compiled.save(tmp_path / "x.tw")
    assert not list(tmp_path.iterdir())


def test_the_host_is_always_there_and_nobody_opens_it() -> None:
    assert HOST.in_process
    assert HOST.why_not_here() is None
    with pytest.raises(BackendManifestError, match="nobody opens their device"):
        replace(HOST, open=lambda: None)  # type: ignore[arg-type,return-value]
