"""Backends are found by name and imported when asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tilewright.errors import BackendManifestError, TargetError
from tilewright.ir import backend


class _Broken:
    """An installed backend whose module is gone."""

    name, dist = "broken", None

    def load(self) -> Any:
        raise ModuleNotFoundError("No module named 'gone'")


@pytest.fixture(autouse=True)
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = backend.entry_points
    monkeypatch.setattr(backend, "entry_points", lambda group: [*installed(group=group), _Broken()])


def test_a_backend_that_cannot_be_imported_hurts_only_those_who_ask_for_it() -> None:
    assert "broken" in backend.backends()
    assert backend.resolve_target("cpu:generic")[0].name == "cpu"
    with pytest.raises(BackendManifestError, match=r"'broken' of \? cannot be imported: No module named 'gone'"):
        backend.resolve_target("broken")


def test_an_unknown_target_lists_the_names_there_are() -> None:
    with pytest.raises(TargetError, match=r"(?s)no backend is called 'cqu'.*use one of cpu, .*broken"):
        backend.resolve_target("cqu")


def test_a_manifest_is_refused_with_every_field_at_fault() -> None:
    cpu = backend.backends()["cpu"]
    for change, said in (
        ({"api": 1}, "backend cpu: api: 1 is not 2"),
        ({"name": "my cpu"}, "name: 'my cpu' is not an identifier"),
        ({"machines": {}}, "machines: none is described"),
        ({"dtypes": cpu.dtypes | {"f7", "f5"}}, "dtypes: f5, f7 is none of "),
        ({"device": "cpu"}, "device: 'cpu' is no DeviceKind"),
    ):
        with pytest.raises(BackendManifestError) as caught:
            replace(cpu, **change)  # type: ignore[arg-type]
        assert said in str(caught.value)
