"""A backend takes kernels at a level that something leads to, or is refused when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest

from tests.compiler.models import compile_mlp, mlp
from tilewright.compiler.levels import LEVELS
from tilewright.errors import BackendManifestError
from tilewright.ir import backend as backend_module
from tilewright.ir.backend import Backend, Level, backends, resolve_target


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Backend], None]:
    """Makes a backend the only one there is."""

    def install(made: Backend) -> None:
        class Point:
            name, dist = made.name, None

            def load(self) -> Any:
                return made

        monkeypatch.setattr(backend_module, "entry_points", lambda group: [Point()])

    return install


@pytest.mark.parametrize("level", sorted(set(get_args(Level)) - set(LEVELS)))
def test_a_level_that_nothing_lowers_to_is_refused(level: Any, installed: Callable[[Backend], None]) -> None:
    installed(replace(resolve_target("cpu")[0], takes=level))
    with pytest.raises(BackendManifestError) as caught:
        compile_mlp(mlp(1), cache=False)
    assert f"backend cpu: takes: nothing lowers kernels to '{level}' yet" in str(caught.value)
    assert "take one of tile, loops" in str(caught.value)


def test_a_level_that_does_not_exist_is_no_manifest() -> None:
    with pytest.raises(BackendManifestError, match="takes: 'vectors' is not loops, tile, queue or graph"):
        replace(resolve_target("cpu")[0], takes="vectors")  # type: ignore[arg-type]


def test_every_installed_backend_takes_a_level_that_something_leads_to() -> None:
    assert {backend.takes for backend in backends().values()} <= set(LEVELS)
