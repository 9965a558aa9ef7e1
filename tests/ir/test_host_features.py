"""Features on leave of the operating system: asked for once, and only where the CPU has them."""

from __future__ import annotations

import pytest

from tilewright.errors import CpuFeatureError
from tilewright.ir import host_features
from tilewright.runtime import native


def test_nothing_is_asked_for_features_that_need_no_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_features, "_granted", lambda: pytest.fail("asked"))
    assert host_features.usable(["avx2", "fma"]) == {"avx2", "fma"}


@pytest.mark.parametrize("granted", [True, False])
def test_features_are_usable_with_leave_alone(granted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_features, "_granted", lambda: granted)
    wanted = {"avx2", "amx-tile", "amx-bf16"} if granted else {"avx2"}
    assert host_features.usable(["avx2", "amx-tile", "amx-bf16"]) == wanted


def test_an_error_tells_leave_from_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_features, "_granted", lambda: False)
    monkeypatch.setattr(native, "_present", lambda name: name == "amx-tile")
    with pytest.raises(CpuFeatureError, match="need amx-tile, which the operating system keeps from this process"):
        native.require_features(["amx-tile"])
    monkeypatch.setattr(native, "_present", lambda name: False)
    with pytest.raises(CpuFeatureError, match="need amx-tile, which this CPU does not have"):
        native.require_features(["amx-tile"])
