"""Devices are looked for by their drivers' files, which starts no driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.backends.triton import devices


def test_a_device_is_there_where_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_DEV", tmp_path)
    assert devices.cuda_missing() == f"there is no {tmp_path}/nvidia0"
    (tmp_path / "nvidiactl").touch()
    assert devices.cuda_missing() is not None, "the control file alone is no device"
    (tmp_path / "nvidia3").touch()
    assert devices.cuda_missing() is None
    assert devices.rocm_missing() == f"there is no {tmp_path}/kfd"
    (tmp_path / "kfd").touch()
    assert devices.rocm_missing() == f"there is no {tmp_path}/dri/renderD*"
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert devices.rocm_missing() is None
