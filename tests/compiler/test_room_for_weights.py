"""The file of packed weights is begun beside the capture: it becomes the cache's, or goes when nobody takes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright.runtime.room import Room

# as large as it takes to be worth a file of its own
WIDE = 2048


class Product(torch.nn.Module):
    """One product; bad: and something that no program has."""

    def __init__(self, bad: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDE, WIDE), requires_grad=False)
        self.bad = bad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.qr(x @ self.weight)[0] if self.bad else x @ self.weight


def nameless() -> list[str]:
    """The files without a name that this process has open."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return [link for link in links if link.endswith("(deleted)") and "/building/" in link]


@pytest.mark.parametrize("bad", [False, True])
def test_it_becomes_the_packed_file_or_goes(bad: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = Room.take

    def told(room: Room, path: Path | None) -> tuple[int, int]:
        found = take(room, path)
        taken.append(found[1])
        return found

    monkeypatch.setattr(Room, "take", told)
    given: dict[str, Any] = {"args": (torch.randn(3, WIDE),), "cache": tmp_path}
    model = Product(bad).eval()
    if bad:
        with pytest.raises(tw.TilewrightError, match="qr"):
            tw.compile(model, **given)
    else:
        compiled = tw.compile(model, **given)
        x = torch.randn(3, WIDE)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-3)
        assert len(list(tmp_path.rglob("packed.safetensors"))) == 1
    assert len(taken) == (not bad)
    assert all(written > 0 for written in taken)
    assert nameless() == []
    assert [p.name for p in tmp_path.rglob("building/*") if p.is_dir()] == []
